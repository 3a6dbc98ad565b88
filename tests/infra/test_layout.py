"""infra/ is laid out as the best public modules are, and its READMEs are current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import infra_docs
from tests.infra.terraform import INFRA, Root, need_terraform

MODULES = sorted(file.parent for file in INFRA.glob("modules/*/versions.tf"))
EXAMPLES = sorted(file.parent for file in INFRA.glob("examples/*/versions.tf"))
PUBLIC = {"aws-spot-gpu", "aws-checkpoint-bucket", "aws-deadman", "hetzner-host"}
PROVIDER = re.compile(r"^provider ", re.MULTILINE)


def named(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def test_there_is_an_example_for_every_module_and_a_complete_one() -> None:
    assert {folder.name for folder in MODULES} == PUBLIC | {"machine-boot"}
    assert {folder.name for folder in EXAMPLES} == PUBLIC | {"complete"}


@pytest.mark.parametrize("folder", MODULES + EXAMPLES, ids=named)
def test_the_files_are_where_everybody_looks(folder: Path) -> None:
    files = {file.name for file in folder.glob("*.tf")}
    assert files == {"main.tf", "variables.tf", "outputs.tf", "versions.tf"}
    assert list(folder.glob("tests/*.tftest.hcl"))


@pytest.mark.parametrize("folder", MODULES, ids=named)
def test_a_module_brings_no_provider_of_its_own(folder: Path) -> None:
    text = "".join(file.read_text() for file in folder.glob("*.tf"))
    assert PROVIDER.search(text) is None
    for version in re.findall(r'version\s*=\s*"([^"]+)"', (folder / "versions.tf").read_text()):
        assert version.startswith(">= "), f"{folder.name} pins a provider: {version}"


@pytest.mark.parametrize("folder", MODULES + EXAMPLES, ids=named)
def test_every_input_is_typed_and_described_and_every_output_described(folder: Path) -> None:
    found = list(infra_docs.blocks(folder))
    for block in found:
        if block.kind in ("variable", "output"):
            assert len(block.description) > 9, f"{block.kind} {block.name} is not described"
        if block.kind == "variable":
            assert block.arguments["type"], f"{block.name} has no type"
    declared = len(re.findall(r"^variable ", (folder / "variables.tf").read_text(), re.MULTILINE))
    assert sum(block.kind == "variable" for block in found) == declared


@pytest.mark.parametrize("folder", MODULES + EXAMPLES, ids=named)
def test_the_tables_of_the_readme_are_current(folder: Path) -> None:
    assert (folder / "README.md").read_text() == infra_docs.current(folder), "make infra-docs"


def test_a_table_that_is_not_current_is_found(tmp_path: Path) -> None:
    (tmp_path / "versions.tf").write_text('terraform {\n  required_version = ">= 1.9"\n}\n')
    (tmp_path / "variables.tf").write_text(
        'variable "size" {\n  description = "How large it is | in GiB."\n'
        "  type = object({\n    gib = number\n  })\n  default = null\n\n"
        "  validation {\n    condition = true\n  }\n}\n"
    )
    (tmp_path / "README.md").write_text(f"# x\n{infra_docs.BEGIN}\nold\n{infra_docs.END}\nrest\n")
    text = infra_docs.current(tmp_path)
    assert (
        "| `size` | How large it is \\| in GiB. | `object({ gib = number })` | `null` | no |"
        in text
    )
    assert "old" not in text
    assert text.startswith("# x\n")
    assert text.endswith("\nrest\n")


def test_links_lead_somewhere() -> None:
    for document in INFRA.rglob("*.md"):
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
        assert [link for link in links if not (document.parent / link).exists()] == [], document


def test_everything_is_formatted() -> None:
    need_terraform()
    assert Root(INFRA).run("fmt", "-check", "-recursive") == ""
