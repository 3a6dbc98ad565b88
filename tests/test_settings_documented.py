"""Every setting that the source reads is in .env.example, and nothing else is.

The source is searched with `ast` for look-ups in an environment, and for constants that have the
shape of a setting's name (settings also reach their look-up through tables and constants).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / ".env.example"
SETTING = re.compile(r"(GPUCTL|RUNPOD|VAST|HCLOUD|AWS|LAMBDA)_[A-Z0-9_]*[A-Z0-9]")
ENVIRONMENT = re.compile(r"(.*[._])?environ(ment)?")

# Set by gpuctl for a job or a machine, not by its user: see docs/train-yaml.md.
GIVEN_TO_JOBS = {
    "GPUCTL_RUN_ID",
    "GPUCTL_ATTEMPT",
    "GPUCTL_CHECKPOINT_DIR",
    "GPUCTL_RESUME_FROM",
    "GPUCTL_NODE_RANK",
    "GPUCTL_NODES",
    "GPUCTL_MACHINE",
    "GPUCTL_MACHINE_FOLDER",
    "RUNPOD_POD_ID",  # by RunPod, in its pods
}
# Conventions of the system and of other tools, honoured where they are met.
CONVENTIONS = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TERM|LANG|LC_ALL|TMPDIR|VIRTUAL_ENV|LD_LIBRARY_PATH"
    r"|(CUDA|NVIDIA|PIP|UV|XDG|SSL)_[A-Z_]+|REQUESTS_CA_BUNDLE|([A-Z]+_PROXY|[a-z]+_proxy)"
)


@dataclass(frozen=True)
class Entry:
    """One setting of .env.example."""

    line: int
    comment: str  # the comment lines above it

    @property
    def planned(self) -> bool:
        """Whether only a provider reads it that is not built yet."""
        return "Planned: " in self.comment

    @property
    def read_by_library(self) -> bool:
        """Whether a library reads it by itself."""
        return "Read by " in self.comment


def documented(text: str) -> dict[str, Entry]:
    """Return the settings of .env.example by name. Those in one block share its comment."""
    found: dict[str, Entry] = {}
    comment: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if setting := re.fullmatch(r"#?([A-Z][A-Z0-9_]*)=(.*)", line):
            assert setting[1] not in found, f".env.example:{number}: {setting[1]} stands twice"
            found[setting[1]] = Entry(number, " ".join(comment))
        elif line.startswith("# "):
            comment.append(line[2:])
        elif not line or line == "#":
            comment = []
        else:
            pytest.fail(f".env.example:{number} is neither a comment nor a setting: {line!r}")
    return found


def sources() -> list[Path]:
    """Every source file that is shipped."""
    return sorted(path for top in ("gpuctl", "providers") for path in (ROOT / top).rglob("*.py"))


def constants(tree: ast.Module) -> dict[str, str]:
    """Return the module's own text constants by name."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }


def looked_up(tree: ast.Module) -> Iterator[str]:
    """Yield the names that are looked up in an environment, directly or by a constant."""
    known = constants(tree)
    for node in ast.walk(tree):
        key: ast.expr | None = None
        if isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func)
            where, _, verb = function.rpartition(".")
            if (verb == "get" and ENVIRONMENT.fullmatch(where)) or verb == "getenv":
                key = node.args[0]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            key = node.slice if ENVIRONMENT.fullmatch(ast.unparse(node.value)) else None
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            key = node.left if ENVIRONMENT.fullmatch(ast.unparse(node.comparators[0])) else None
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value
        elif isinstance(key, ast.Name) and key.id in known:
            yield known[key.id]
        elif isinstance(key, ast.JoinedStr):
            parts = [
                part.value if isinstance(part, ast.Constant) else "<NAME>" for part in key.values
            ]
            yield "".join(str(part) for part in parts)


def named(tree: ast.Module) -> set[str]:
    """Return every text constant that has the shape of a setting's name."""
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and SETTING.fullmatch(node.value)
    }


def settings_of(text: str) -> set[str]:
    """Return the settings that a source text reads or names."""
    tree = ast.parse(text)
    found = {name for name in looked_up(tree) if not CONVENTIONS.fullmatch(name)}
    return (found | named(tree)) - GIVEN_TO_JOBS


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` is ``pattern``, in which <NAME> stands for a provider."""
    return re.fullmatch(re.escape(pattern).replace("<NAME>", "[A-Z]+"), name) is not None


def test_every_setting_in_the_source_is_documented() -> None:
    entries = documented(EXAMPLE.read_text())
    missing = [
        f"{path.relative_to(ROOT)} uses {name}, which .env.example does not have"
        for path in sources()
        for name in sorted(settings_of(path.read_text()))
        if not any(matches(name, entry) for entry in entries)
    ]
    assert not missing, "\n".join(missing)


def test_every_documented_setting_is_used() -> None:
    used = {name for path in sources() for name in settings_of(path.read_text())}
    idle = [
        f".env.example:{entry.line}: nothing reads {name}"
        for name, entry in documented(EXAMPLE.read_text()).items()
        if not (entry.planned or entry.read_by_library)
        and not any(matches(pattern, name) for pattern in used)
    ]
    assert not idle, "\n".join(idle)


def test_planned_settings_are_not_read_yet() -> None:
    texts = [path.read_text() for path in sources() if path.parent.name != "spec"]
    read = {name for text in texts for name in looked_up(ast.parse(text))}
    stale = [
        f".env.example:{entry.line}: {name} is read by now; take 'Planned' away"
        for name, entry in documented(EXAMPLE.read_text()).items()
        if entry.planned and any(matches(pattern, name) for pattern in read)
    ]
    assert not stale, "\n".join(stale)


def test_every_setting_has_a_comment_and_is_off() -> None:
    text = EXAMPLE.read_text()
    for name, entry in documented(text).items():
        assert len(entry.comment) > 10, f"{name} has no comment"
        assert text.splitlines()[entry.line - 1].startswith("#"), f"{name} is on"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('import os\nos.environ["MY_FLAG"]', {"MY_FLAG"}),
        ('import os\nos.getenv("MY_FLAG", "0")', {"MY_FLAG"}),
        ('x = self._environ.get("MY_FLAG")', {"MY_FLAG"}),
        ('KEY = "MY_FLAG"\ndef f(environ): return environ.get(KEY)', {"MY_FLAG"}),
        ('"MY_FLAG" in environ', {"MY_FLAG"}),
        ('environ.get(f"GPUCTL_{name}_SSH_PORT")', {"GPUCTL_<NAME>_SSH_PORT"}),
        ('_first(environ, "AWS_REGION", "OTHER")', {"AWS_REGION"}),
        ('message = "Set GPUCTL_HOME to a folder"', set()),
        ('environ["GPUCTL_RUN_ID"] = run', set()),
        ('environ.get("HTTPS_PROXY")', set()),
        ('other.get("MY_FLAG")', set()),
    ],
)
def test_the_search_finds_settings(source: str, expected: set[str]) -> None:
    assert settings_of(source) == expected
