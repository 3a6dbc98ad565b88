"""What `gpuctl init` writes: always valid, from what lies in the folder, without running it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuctl.spec import RunSpec, load_spec
from gpuctl.starter import Findings, look_at, render, starter_yaml

TORCH = "import torch\nfrom transformers import Trainer\n"
FLAGS = 'p.add_argument("--output_dir")\np.add_argument("--resume", default=None)\n'


def started(folder: Path) -> RunSpec:
    """Write the starter into the folder and read it back as `gpuctl run` would."""
    path = folder / "train.yaml"
    path.write_text(starter_yaml(folder))
    return load_spec(path, environ={})


def test_an_empty_folder_gets_a_valid_one_that_says_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "My Project!"
    folder.mkdir()
    spec = started(folder)
    assert spec.name == "my-project"
    assert spec.resources.gpu == ()
    assert spec.checkpoints.store is None
    assert "No training script was found" in (folder / "train.yaml").read_text()


def test_a_script_with_flags_gets_checkpoints_and_resume(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TORCH + FLAGS)
    (tmp_path / "requirements.txt").write_text("torch\n")
    spec = started(tmp_path)
    assert spec.run.strip() == (
        'python train.py --output_dir "$GPUCTL_CHECKPOINT_DIR" '
        '${GPUCTL_RESUME_FROM:+--resume "$GPUCTL_RESUME_FROM"}'
    )
    assert spec.setup == "pip install -r requirements.txt"
    assert spec.resources.gpu == ("24GB+",)
    assert spec.checkpoints.dir == "checkpoints"


@pytest.mark.parametrize(
    "switch",
    ['p.add_argument("--resume", action="store_true")', '@click.option("--resume/--fresh")'],
)
def test_a_resume_switch_gets_no_value(switch: str, tmp_path: Path) -> None:
    code = f'{switch}\ndef f(): pass\np.add_argument("--output-dir")\n'
    (tmp_path / "train.py").write_text(code)
    assert "${GPUCTL_RESUME_FROM:+--resume}" in started(tmp_path).run
    assert '--output-dir "$GPUCTL_CHECKPOINT_DIR"' in started(tmp_path).run


def test_the_flags_of_transformers_are_known(tmp_path: Path) -> None:
    code = "from transformers import *\nHfArgumentParser(TrainingArguments)\n"
    (tmp_path / "finetune_llama.py").write_text(code)
    run = started(tmp_path).run
    assert "finetune_llama.py --output_dir" in run
    assert '--resume_from_checkpoint "$GPUCTL_RESUME_FROM"' in run


def test_a_script_that_reads_the_variable_itself_gets_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text('import os\nos.environ.get("GPUCTL_CHECKPOINT_DIR")\n')
    assert started(tmp_path).run.strip() == "python train.py"


def test_secrets_come_from_what_the_script_names(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text('import os, wandb\nos.environ["HF_TOKEN"]\n')
    assert started(tmp_path).secrets == ("HF_TOKEN", "WANDB_API_KEY")


@pytest.mark.parametrize(
    ("files", "setup"),
    [
        (
            {"pyproject.toml": "[project]\nname = 'x'\ndependencies = ['torch>=2']\n"},
            "pip install .",
        ),
        ({"pyproject.toml": "[tool.ruff]\nline-length = 100\n"}, None),
        ({"pyproject.toml": "= broken"}, None),
        ({"environment.yml": "name: x\n"}, "conda env update -n base -f environment.yml"),
        (
            {"environment.yml": "", "requirements.txt": "", "pyproject.toml": ""},
            "pip install -r requirements.txt",
        ),
    ],
)
def test_setup(files: dict[str, str], setup: str | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert started(tmp_path).setup == setup


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("requirements.txt", "# deep learning\nTorch==2.8.0+cu128 ; python_version > '3.8'\n"),
        ("pyproject.toml", "[project]\nname='x'\ndependencies=['pytorch-lightning[extra]~=2.0']\n"),
        ("main.py", "if True:\n    import jax.numpy as jnp\n"),
    ],
)
def test_a_gpu_is_suggested_for(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    assert started(tmp_path).resources.gpu == ("24GB+",)


@pytest.mark.parametrize(
    ("names", "script"),
    [
        (["main.py", "train.py"], "train.py"),
        (["main.py", "finetune.py"], "main.py"),
        (["train_gpt.py", "train.sh"], "train_gpt.py"),
        (["train.sh", "other.sh"], "train.sh"),
        (["setup.py", "test_train.py", ".train.py", "-train.py"], None),
        (["my train's.py"], "my train's.py"),
    ],
)
def test_which_script(names: list[str], script: str | None, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert look_at(tmp_path).script == script
    assert started(tmp_path).run


def test_nothing_from_the_folder_is_executed(tmp_path: Path) -> None:
    trap = f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n"
    for name in ("train.py", "setup.py", "conftest.py", "torch.py", "yaml.py", "sitecustomize.py"):
        (tmp_path / name).write_text(trap)
    started(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x01\xff\xfe",
        b"print 'python 2'\n",
        b"(" * 50_000,
        b"-" * 100_000 + b"1",
        b"x = " + b"1 + " * 20_000 + b"1",
        b"",
        b"'\\d'\n",
    ],
    ids=["binary", "python-2", "brackets", "minuses", "pluses", "empty", "escape-warning"],
)
@pytest.mark.filterwarnings("error")
def test_scripts_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes(content)
    assert started(tmp_path).run.strip() == "python train.py"


def test_things_that_are_no_files_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.py")  # reading it would wait for ever
    (tmp_path / "requirements.txt").mkdir()
    (tmp_path / "main.py").symlink_to(tmp_path / "main.py")
    assert look_at(tmp_path) == Findings()


@pytest.mark.parametrize("name", ["123", "true", "null", "1e5", "0x10", "...", "ünï", "-x-"])
def test_folders_with_names_that_yaml_reads_otherwise(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert isinstance(started(folder).name, str)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    stem=st.text(st.characters(blacklist_characters="/\x00"), min_size=1, max_size=20),
    ending=st.sampled_from([".py", ".sh"]),
)
def test_any_file_name_makes_a_valid_file(stem: str, ending: str, tmp_path: Path) -> None:
    name = f"train{stem}{ending}"
    findings = Findings(script=name if name.isprintable() else None)
    path = tmp_path / "train.yaml"
    path.write_text(render(findings, "demo"))
    spec = load_spec(path, environ={})
    if findings.script:
        assert stem in spec.run.replace("'\"'\"'", "'")


def test_the_starter_of_the_quickstart(tmp_path: Path) -> None:
    quickstart = Path(__file__).parents[1] / "examples" / "quickstart"
    (tmp_path / "train.yaml").write_text(starter_yaml(quickstart))
    spec = load_spec(tmp_path / "train.yaml", environ={})
    assert spec.name == "quickstart"
    assert spec.run.startswith("python train.py")
    assert spec.checkpoints.dir is not None
