"""Write the tables of inputs and outputs into the READMEs of infra/, or check them.

    python scripts/infra_docs.py           write them
    python scripts/infra_docs.py --check   say which are not current; exit 1 if any is not

Reads the Terraform files as `terraform fmt` lays them out, and needs nothing but Python.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INFRA = Path(__file__).resolve().parents[1] / "infra"
BEGIN, END = "<!-- BEGIN_TF_DOCS -->", "<!-- END_TF_DOCS -->"
_BLOCK = re.compile(
    r'^(variable|output|resource|module|data) ((?:"[^"]+" ?)+)\{\n(.*?)^\}', re.M | re.S
)
_ARGUMENT = re.compile(r"^  (\w+)\s*=\s*(.*?)(?=^  [a-z#]|\Z)", re.M | re.S)
_PROVIDER = re.compile(r'source\s*=\s*"([^"]+)"\s*version\s*=\s*"([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One top-level block: its labels, and its arguments as they stand."""

    kind: str
    labels: tuple[str, ...]
    arguments: dict[str, str]

    @property
    def name(self) -> str:
        """Its own name, the last label."""
        return self.labels[-1]

    @property
    def description(self) -> str:
        """Its description as Markdown in a table's cell."""
        text = self.arguments.get("description", "")
        return text.strip('"').replace('\\"', '"').replace("|", "\\|")


def blocks(folder: Path) -> Iterator[Block]:
    """Read all top-level blocks of a module."""
    for file in sorted(folder.glob("*.tf")):
        for kind, labels, body in _BLOCK.findall(file.read_text()):
            arguments = {name: value.strip() for name, value in _ARGUMENT.findall(body)}
            yield Block(kind, tuple(re.findall(r'"([^"]+)"', labels)), arguments)


def tables(folder: Path) -> str:
    """Return the Markdown that goes between the marks of a module's README."""
    found = list(blocks(folder))
    parts = [_requirements(folder), _resources(found)]
    inputs = sorted((b for b in found if b.kind == "variable"), key=lambda b: b.name)
    rows = [
        (f"`{b.name}`", b.description, _code(b.arguments["type"]), _default(b), _required(b))
        for b in inputs
    ]
    parts.append(_table("Inputs", ("Name", "Description", "Type", "Default", "Required"), rows))
    outputs = sorted((b for b in found if b.kind == "output"), key=lambda b: b.name)
    told = [(f"`{b.name}`", b.description) for b in outputs]
    parts.append(_table("Outputs", ("Name", "Description"), told))
    return "\n".join(part for part in parts if part)


def current(folder: Path) -> str:
    """Return the module's README with its tables made anew. Raises ValueError without marks."""
    text = (folder / "README.md").read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{folder / 'README.md'} has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{tables(folder)}{END}{after}"


def documented() -> list[Path]:
    """Return the folders whose READMEs have tables: every module and every example."""
    return sorted(file.parent for file in INFRA.glob("*/*/versions.tf"))


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = [
        folder for folder in documented() if (folder / "README.md").read_text() != current(folder)
    ]
    for folder in stale:
        if check:
            print(f"{folder / 'README.md'} is not current: run `make infra-docs`", file=sys.stderr)
        else:
            (folder / "README.md").write_text(current(folder))
    return 1 if check and stale else 0


def _requirements(folder: Path) -> str:
    text = (folder / "versions.tf").read_text()
    wanted = re.search(r'required_version = "([^"]+)"', text)
    rows = [("Terraform", f"`{wanted[1]}`")] if wanted else []
    rows += [(f"`{source}`", f"`{version}`") for source, version in _PROVIDER.findall(text)]
    return _table("Requirements", ("What", "Version"), rows)


def _resources(found: list[Block]) -> str:
    rows = [
        (f"`{b.labels[0]}.{b.name}`" if len(b.labels) > 1 else f"`{b.name}`", b.kind)
        for b in found
        if b.kind in ("resource", "data", "module")
    ]
    return _table("Resources and modules", ("Name", "Kind"), rows)


def _default(block: Block) -> str:
    return _code(block.arguments["default"]) if "default" in block.arguments else ""


def _required(block: Block) -> str:
    return "no" if "default" in block.arguments else "yes"


def _code(text: str) -> str:
    flat = re.sub(r"\s+", " ", text).replace("|", "\\|")
    return f"`{flat}`"


def _table(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [f"## {title}", "", _row(heads), _row(tuple("---" for _ in heads))]
    return "\n".join([*lines, *(_row(row) for row in rows), ""])


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
