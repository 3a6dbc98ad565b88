"""A first train.yaml for a folder: what `gpuctl init` writes.

It looks at file names and reads Python as text (`ast`); nothing from the folder is executed.
"""

from __future__ import annotations

import ast
import shlex
import textwrap
import tomllib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from gpuctl.names import slug

_LARGEST_SOURCE = 512_000  # bytes read of any file
_MOST_ENTRIES = 10_000
_SCRIPTS = (
    *("train.py", "main.py", "finetune.py", "fine_tune.py", "run.py"),
    *("train*.py", "finetune*.py", "*train*.py", "train*.sh", "run*.sh", "*.sh"),
)
_OUTPUT_FLAGS = ("--output_dir", "--output-dir")
_RESUME_FLAGS = (
    "--resume_from_checkpoint",
    "--resume-from-checkpoint",
    "--resume_from",
    "--resume-from",
    "--resume",
)
_GPU_PACKAGES = frozenset(
    {
        *("torch", "transformers", "tensorflow", "jax", "keras", "lightning", "pytorch_lightning"),
        *("accelerate", "diffusers", "vllm", "unsloth", "trl", "peft"),
    }
)
_WORDS_OF_YAML = frozenset({"true", "false", "null"})
_SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "COMET_API_KEY", "OPENAI_API_KEY")
_SECRET_OF_PACKAGE = {"wandb": "WANDB_API_KEY", "comet_ml": "COMET_API_KEY"}


@dataclass(frozen=True, slots=True)
class Findings:
    """What a folder tells about its training."""

    script: str | None = None  # file name; None = no script was found
    setup: str | None = None
    output_flag: str | None = None
    resume_flag: str | None = None
    resume_takes_value: bool = True
    reads_environment: bool = False  # the script knows GPUCTL_CHECKPOINT_DIR itself
    wants_gpu: bool = False
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Source:
    """What one Python file tells."""

    packages: frozenset[str] = frozenset()
    flags: tuple[tuple[str, bool], ...] = ()  # flag, whether it takes a value
    words: frozenset[str] = frozenset()  # names and texts in it


def starter_yaml(folder: Path) -> str:
    """Return a commented train.yaml for a folder. It is valid, and meant to be edited.

    Raises:
        OSError: the folder cannot be listed.
    """
    return render(look_at(folder), slug(folder.absolute().name))


def look_at(folder: Path) -> Findings:
    """Return what the names and contents of a folder's files tell.

    Raises:
        OSError: the folder cannot be listed.
    """
    names = [entry.name for entry, _ in zip(folder.iterdir(), range(_MOST_ENTRIES), strict=False)]
    files = sorted(name for name in names if name.isprintable() and (folder / name).is_file())
    script = _first_script(files)
    is_python = script is not None and script.endswith(".py")
    source = _read_python(folder / script) if script and is_python else _Source()
    packages = source.packages | _required_packages(folder, files)
    flags = dict(reversed(source.flags)) | _flags_of_trainer(source)
    output = next((flag for flag in _OUTPUT_FLAGS if flag in flags), None)
    resume = next((flag for flag in _RESUME_FLAGS if flag in flags), None)
    return Findings(
        script=script,
        setup=_setup(folder, files),
        output_flag=output,
        resume_flag=resume if output else None,
        resume_takes_value=flags.get(resume, True) if resume else True,
        reads_environment="GPUCTL_CHECKPOINT_DIR" in source.words,
        wants_gpu=bool(packages & _GPU_PACKAGES),
        secrets=tuple(_secrets(source)),
    )


def render(findings: Findings, name: str) -> str:
    """Return a train.yaml that says what was found, with every other common key commented out."""
    sections = (
        "# What to train, on what, and what to keep. Every key: docs/train-yaml.md\n"
        "# Start it with `gpuctl run train.yaml`.\n"
        f"name: {_plain(name)}",
        _resources(findings),
        "budget:                    # past any of these the run ends cleanly\n"
        "  max_cost: 5.00           # USD for the whole run\n"
        "  max_duration: 4h",
        "workdir: .                 # sent to the machine, without what .gitignore names",
        _secrets_section(findings.secrets),
        _setup_section(findings.setup),
        _run_section(findings),
        _checkpoints(findings),
        "# outputs:                 # fetched when the job has ended\n"
        "#   - {from: out, to: ./artifacts}",
    )
    return "\n\n".join(sections) + "\n"


# ------------------------------------------------------------------------- what is there


def _first_script(files: Iterable[str]) -> str | None:
    candidates = [name for name in files if not name.startswith((".", "-", "test_"))]
    for pattern in _SCRIPTS:
        for name in candidates:
            if fnmatch(name.lower(), pattern) and not name.startswith("setup"):
                return name
    return None


def _setup(folder: Path, files: Iterable[str]) -> str | None:
    here = set(files)
    if "requirements.txt" in here:
        return "pip install -r requirements.txt"
    for name in ("environment.yml", "environment.yaml"):
        if name in here:
            return f"conda env update -n base -f {name}"
    if "pyproject.toml" in here and _pyproject(folder).keys() & {"project", "build-system"}:
        return "pip install ."
    return None


def _pyproject(folder: Path) -> dict[str, object]:
    try:
        return tomllib.loads(_text(folder / "pyproject.toml"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}  # not readable as a project, so nothing is installed from it


def _required_packages(folder: Path, files: Iterable[str]) -> frozenset[str]:
    """Packages that requirements.txt or pyproject.toml name, as import names."""
    here = set(files)
    lines = _text(folder / "requirements.txt").splitlines() if "requirements.txt" in here else []
    project = _pyproject(folder).get("project") if "pyproject.toml" in here else None
    dependencies = project.get("dependencies") if isinstance(project, dict) else None
    if isinstance(dependencies, list):
        lines += [line for line in dependencies if isinstance(line, str)]
    return frozenset(_package_of(line) for line in lines)


def _package_of(requirement: str) -> str:
    word = requirement.strip().lower()
    end = next((i for i, c in enumerate(word) if not (c.isalnum() or c in "_-.")), len(word))
    return word[:end].replace("-", "_")


def _text(path: Path) -> str:
    """The beginning of a file as text; nothing when it cannot be read, which is no mistake here."""
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_SOURCE).decode("utf-8", errors="replace")
    except OSError:
        return ""


# ------------------------------------------------------------------- what Python tells


def _read_python(path: Path) -> _Source:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the user's code, not for our terminal
            tree = ast.parse(_text(path))
        nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Source()  # not Python of today; the starter then says less
    return _Source(
        packages=frozenset(_imports(nodes)),
        flags=tuple(_flags(nodes)),
        words=frozenset(_words(nodes)),
    )


def _imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _flags(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, bool]]:
    """Every ``--flag`` that a call declares (argparse, click, typer); if it takes a value."""
    for node in nodes:
        if not isinstance(node, ast.Call) or _called(node) not in (
            "add_argument",
            "option",
            "Option",
        ):
            continue
        takes_value = not any(_is_switch(keyword) for keyword in node.keywords)
        for argument in node.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                name, _, off = argument.value.partition("/")
                if name.startswith("--"):
                    yield name, takes_value and not off


def _called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _is_switch(keyword: ast.keyword) -> bool:
    if keyword.arg == "is_flag":
        return isinstance(keyword.value, ast.Constant) and keyword.value.value is True
    if keyword.arg == "action":
        return not (isinstance(keyword.value, ast.Constant) and keyword.value.value == "store")
    return False


def _words(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _flags_of_trainer(source: _Source) -> dict[str, bool]:
    """The flags that transformers makes of TrainingArguments itself."""
    if {"HfArgumentParser", "TrainingArguments"} <= source.words:
        return {"--output_dir": True, "--resume_from_checkpoint": True}
    return {}


def _secrets(source: _Source) -> Iterator[str]:
    meant = {_SECRET_OF_PACKAGE[name] for name in source.packages if name in _SECRET_OF_PACKAGE}
    for name in _SECRETS:
        if name in source.words or name in meant:
            yield name


# --------------------------------------------------------------------------- the text


def _resources(findings: Findings) -> str:
    gpu = (
        '  gpu: ["24GB+"]           # any GPU with as much memory; or names: [A100-40GB]'
        if findings.wants_gpu
        else '  # gpu: ["24GB+"]         # no GPU framework was found, so: CPU only'
    )
    return (
        f"resources:\n{gpu}\n"
        "  disk: 40                 # GB\n"
        "  spot: auto               # true, false, or auto: whichever finishes cheaper\n"
        "  # max_price: 1.00        # USD an hour for the whole machine"
    )


def _plain(name: str) -> str:
    """Quote a name that YAML would take for a number or a word of its own."""
    return name if name[0].isalpha() and name not in _WORDS_OF_YAML else f'"{name}"'


def _secrets_section(secrets: tuple[str, ...]) -> str:
    about = "# names only; the values come from your environment"
    if secrets:
        return f"secrets: [{', '.join(secrets)}]  {about}"
    return f"# secrets: [HF_TOKEN]      {about}"


def _setup_section(setup: str | None) -> str:
    if setup is None:
        return "# setup: pip install -r requirements.txt"
    note = "  # needs an image with conda" if setup.startswith("conda") else ""
    return f"setup: {setup}{note}"


def _run_section(findings: Findings) -> str:
    if findings.script is None:
        return "# No training script was found here; write your own command.\nrun: python train.py"
    runner = "python" if findings.script.endswith(".py") else "bash"
    words = [runner, shlex.quote(findings.script)]
    if findings.output_flag:
        words.append(f'{findings.output_flag} "$GPUCTL_CHECKPOINT_DIR"')
    if findings.resume_flag:
        value = ' "$GPUCTL_RESUME_FROM"' if findings.resume_takes_value else ""
        words.append(f"${{GPUCTL_RESUME_FROM:+{findings.resume_flag}{value}}}")
    return "run: |\n" + textwrap.indent(" ".join(words), "  ")


def _checkpoints(findings: Findings) -> str:
    if findings.output_flag or findings.reads_environment:
        return (
            "checkpoints:\n"
            "  dir: checkpoints         # $GPUCTL_CHECKPOINT_DIR; every entry is a checkpoint\n"
            "  # store: s3://bucket/prefix\n"
            "  keep: 3"
        )
    return (
        "# Write checkpoints into $GPUCTL_CHECKPOINT_DIR and start from $GPUCTL_RESUME_FROM\n"
        "# (empty on a first start); then losing a machine costs what came after the last one.\n"
        "# checkpoints:\n"
        "#   dir: checkpoints\n"
        "#   keep: 3"
    )
