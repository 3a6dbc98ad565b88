"""docs/train-yaml.md has every key of the model, no other, and examples that are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpuctl.quantities import exact_duration
from gpuctl.spec import RunSpec, load_spec
from gpuctl.spec.keys import all_keys

PAGE = (Path(__file__).parents[1] / "docs" / "train-yaml.md").read_text()
ROWS = dict(re.findall(r"^\| `([\w.\[\]]+)` \| (.*?) \|", PAGE, re.MULTILINE))
KEYS = dict(all_keys(RunSpec))


def test_every_key_has_a_row() -> None:
    missing = sorted(set(KEYS) - set(ROWS))
    assert not missing, f"docs/train-yaml.md has no row for {missing}"


def test_every_row_is_a_key() -> None:
    unknown = sorted(set(ROWS) - set(KEYS))
    assert not unknown, f"docs/train-yaml.md explains {unknown}, which train.yaml does not have"


def test_every_key_says_what_it_means() -> None:
    for key, field in KEYS.items():
        assert field.description, f"{key} has no description"
        assert field.description.endswith((".", ")")), key


@pytest.mark.parametrize("key", [key for key, field in KEYS.items() if field.is_required()])
def test_required_keys_are_said_to_be_required(key: str) -> None:
    assert ROWS[key] == "*required*"


def test_defaults_are_those_of_the_model() -> None:
    for key, field in KEYS.items():
        default = field.default
        if isinstance(default, bool | str) and key != "name":
            assert ROWS[key] == f"`{str(default).lower()}`", key
        elif isinstance(default, int | float):
            assert ROWS[key] == f"{default:g}", key
        elif hasattr(default, "total_seconds"):
            assert ROWS[key] == exact_duration(default), key


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_examples_are_valid(example: str, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(example)
    assert load_spec(tmp_path / "train.yaml", environ={}).run.startswith("python train.py")


def test_the_page_has_examples() -> None:
    assert len(re.findall(r"```yaml\n", PAGE)) >= 2
