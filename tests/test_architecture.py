"""The arrows between the rooms point down, and only the right room does the dangerous things.

Read from the source with `ast`, imports inside functions included. docs/architecture.md shows
the same picture.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
AGENT = "gpuctl/agent/machine_agent.py"

# From the top down. A room may import its own and lower levels, never a higher one.
LEVELS = [
    {"cli"},
    {"run"},
    {"fleet"},
    {"market", "policy", "spec", "starter", "ledger"},  # and every other module of gpuctl/
    {"remote", "agent", "store"},
    {"errors", "names", "home", "quantities", "printable"},  # words that every room uses
    {"providers"},
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
MIDDLE = LEVEL["market"]
PROVIDER_LIBRARIES = {"boto3", "botocore", "hcloud", "paramiko", "requests", "urllib3"}


def sources() -> list[Path]:
    """Every source file that is shipped."""
    return sorted(path for top in ("gpuctl", "providers") for path in (ROOT / top).rglob("*.py"))


def relative(path: Path) -> str:
    """A file's path as messages show it."""
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=relative(path))


def module_name(path: Path) -> str:
    """The dotted name that a file is imported by."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str | None:
    """The room that a module belongs to; None for the bare package, and for foreign modules."""
    parts = module.split(".")
    if parts[0] == "providers":
        return "providers"
    if parts[0] != "gpuctl" or len(parts) == 1:
        return None
    if parts[1] == "__main__":
        return "cli"
    family = parts[1].split("_")[0]  # spec_paths.py belongs to spec.py
    return family if family in LEVEL else parts[1]


def level(name: str) -> int:
    """How deep a room lies; bigger is lower."""
    return LEVEL.get(name, MIDDLE)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module name) of every import in a file, wherever it stands."""
    own = module_name(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield node.lineno, base
            # `from gpuctl import market` names a module after the import.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def arrows() -> Iterator[tuple[str, str, str]]:
    """Yield (where, from room, to room) for every import between rooms."""
    for path in sources():
        source = room(module_name(path))
        for line, module in imports(path):
            target = room(module)
            if source and target and source != target:
                yield f"{relative(path)}:{line} imports {module}", source, target


def test_there_is_something_to_check() -> None:
    assert any((source, target) == ("home", "errors") for _, source, target in arrows())


def test_arrows_point_down() -> None:
    wrong = [
        f"{where}: {target} is above {source}"
        for where, source, target in arrows()
        if level(target) < level(source)
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_on_one_level_do_not_need_each_other() -> None:
    needs: defaultdict[str, set[str]] = defaultdict(set)
    for _, source, target in arrows():
        needs[source].add(target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(needs[start])
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += needs[name]
        return seen

    circles = [name for name in sorted(needs) if name in reached(name)]
    assert not circles, f"these rooms import each other in a circle: {circles}"


def test_providers_know_nothing_of_gpuctl() -> None:
    wrong = [
        f"{relative(path)}:{line} imports {module}"
        for path in sources()
        if relative(path).startswith("providers/")
        for line, module in imports(path)
        if module.split(".")[0] == "gpuctl"
    ]
    assert not wrong, "\n".join(wrong)


def test_the_agent_needs_only_the_standard_library() -> None:
    foreign = {
        module.split(".")[0]
        for _, module in imports(ROOT / AGENT)
        if module.split(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign


@pytest.mark.parametrize(
    "file",
    [AGENT, "gpuctl/run/preflight.py", "providers/processes.py", "providers/ssh_host.py"],
)
def test_what_machines_run_is_python_3_8(file: str) -> None:
    """Its grammar; the slow tests run the agent with a real one."""
    ast.parse((ROOT / file).read_text(), feature_version=(3, 8))


def calls(path: Path) -> Iterator[ast.Call]:
    """Yield every call in a file."""
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def test_only_fleet_creates_and_destroys() -> None:
    """Found by the verbs' names, called or handed on; what else has them is named here."""
    no_providers = {"self._objects"}  # the objects of a store
    wrong = [
        f"{relative(path)}:{node.lineno} uses {ast.unparse(node)}: ask gpuctl.fleet to do it"
        for path in sources()
        if relative(path).startswith("gpuctl/") and not relative(path).startswith("gpuctl/fleet/")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and node.attr in {"create", "destroy"}
        and ast.unparse(node.value) not in no_providers
    ]
    assert not wrong, "\n".join(wrong)


def prints(path: Path) -> Iterator[int]:
    """Yield the lines where a file writes to the terminal."""
    terminal = (
        r"(rich\.)?print|click\.s?echo|Console|sys\.(stdout|stderr)(\.buffer)?\.write(lines)?"
    )
    for call in calls(path):
        if re.fullmatch(terminal, ast.unparse(call.func)):
            yield call.lineno


def test_only_cli_prints() -> None:
    programs_of_their_own = {  # what they print is a protocol or their log
        AGENT,
        "providers/local_machine.py",
        "providers/ssh_host.py",
        "gpuctl/fleet/watchdog.py",
        "gpuctl/run/background.py",
        "gpuctl/run/preflight.py",
    }
    wrong = [
        f"{relative(path)}:{line} prints"
        for path in sources()
        if not relative(path).startswith("gpuctl/cli/")
        and relative(path) not in programs_of_their_own
        for line in prints(path)
    ]
    assert not wrong, "\n".join(wrong)


def test_start_up_loads_no_provider_library() -> None:
    command_line = [
        module_name(path) for path in sources() if relative(path).startswith("gpuctl/cli/")
    ]
    program = (
        "import importlib, json, sys\n"
        f"for name in {command_line!r}: importlib.import_module(name)\n"
        f"print(*sorted({PROVIDER_LIBRARIES!r} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], "loaded by `gpuctl --help` already"


def test_child_processes_do_not_import_from_the_working_directory() -> None:
    """A child Python gets -I or -P; see test_shadowing.py for why."""
    wrong = []
    for path in sources():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.List | ast.Tuple) or len(node.elts) < 2:
                continue
            first, second = node.elts[:2]
            if ast.unparse(first) != "sys.executable":
                continue
            flag = second.value if isinstance(second, ast.Constant) else None
            if not (isinstance(flag, str) and re.match(r"-[a-zA-Z]*[IP]", flag)):
                wrong.append(f"{relative(path)}:{node.lineno} starts Python without -I or -P")
    assert not wrong, "\n".join(wrong)


def test_the_picture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {room(module_name(path)) for path in sources()} - {None}
    missing = sorted(name for name in rooms if name and not re.search(rf"\b{name}\b", text))
    assert not missing, f"docs/architecture.md says nothing of {missing}"


def test_every_document_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [
        path.name for path in (ROOT / "docs").glob("*.md") if f"](docs/{path.name}" not in readme
    ]
    assert not missing, f"README.md does not link {missing}"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_between_documents_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / document).read_text())
    dead = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not dead, f"{document} links to {dead}"
