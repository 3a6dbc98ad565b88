"""YAML to plain values, each with the line that it was written on. Nothing here knows any key.

The reading is narrower than YAML: one document of mappings, lists and plain values; words mean
what YAML 1.2 says (``yes``, ``on``, ``1:30`` and ``010`` stay text); no tags, no duplicate keys.
A file is refused before it can cost time or memory: by its size, depth and number of values.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpuctl.spec.problems import KeyPath, Origin

LARGEST_FILE = 256_000  # bytes; the slowest text of this size takes a quarter of a second
_MOST_NODES = 5_000
_DEEPEST = 20
_TAG = "tag:yaml.org,2002:"
_UNPRINTABLE = yaml.reader.Reader.NON_PRINTABLE


class Unreadable(ValueError):
    """The file or text cannot be read. ``line`` counts from 1; ``key`` is empty if unknown."""

    def __init__(self, message: str, line: int | None = None, key: KeyPath = ()) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.key = key


@dataclass(frozen=True, slots=True)
class Document:
    """Plain values (dict, list, str, int, float, bool, None) and where each was written."""

    value: object
    origins: dict[KeyPath, Origin] = field(default_factory=dict)


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        Unreadable: it is missing, not a regular file, too large, or not UTF-8 text.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to must not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable(_why(error)) from error
    except ValueError as error:
        raise Unreadable("is not a file name") from error
    try:
        return _decode(_content(descriptor))
    except OSError as error:
        raise Unreadable(_why(error)) from error
    finally:
        os.close(descriptor)


def parse(text: str, *, verbatim: Callable[[KeyPath], bool] = lambda _: False) -> Document:
    """Return what a YAML text says.

    Args:
        text: one YAML document.
        verbatim: whether the value of a key is kept as it was written even when it looks like a
            number or a boolean.

    Raises:
        Unreadable: it is not YAML, or a kind of YAML that is refused here.
    """
    if found := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise Unreadable(f"holds the control character {found[0]!r}", line)
    loader = _Composer(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _explained(error) from error
    except Unreadable:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets chr() and int() fail on escapes and directives that are out of range.
        message = "is not valid YAML: a number or an escape is out of range"
        raise Unreadable(message, loader.line + 1) from error
    finally:
        loader.dispose()
    if node is None:
        return Document(None)
    reading = _Reading(verbatim)
    return Document(reading.plain(node, ()), reading.origins)


# ------------------------------------------------------------------------ reading the file


def _content(descriptor: int) -> bytes:
    facts = os.fstat(descriptor)
    if stat.S_ISDIR(facts.st_mode):
        raise Unreadable("is a folder; name the train.yaml in it")
    if not stat.S_ISREG(facts.st_mode):
        raise Unreadable("is not a regular file")
    if facts.st_size > LARGEST_FILE:
        raise Unreadable(_too_large(facts.st_size))
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:  # it grew since, or the file system does not tell sizes
        raise Unreadable(_too_large(len(content)))
    return content


def _decode(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("is UTF-16 text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"is not UTF-8 text: byte 0x{content[error.start]:02x}", line) from error
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise Unreadable("is not a text file: it holds NUL bytes", line)
    return text


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file; `gpuctl init` writes a first train.yaml"
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _too_large(size: int) -> str:
    return (
        f"is too large for a train.yaml: {size:,} bytes, at most {LARGEST_FILE:,}; "
        "put programs and data into files of their own"
    )


# ----------------------------------------------------------------------------- YAML itself


class _Composer(yaml.SafeLoader):
    """Composes nodes, but only so many, so deep, and with the words of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MOST_NODES or self._depth > _DEEPEST:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1
            if self._depth > _DEEPEST:
                raise Unreadable(f"is nested more than {_DEEPEST} levels deep", line)
            raise Unreadable(f"has more than {_MOST_NODES:,} values", line)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_DIGITS = r"(?:0|[1-9][0-9]{0,29})"
_WORDS: tuple[tuple[str, str, str], ...] = (
    ("null", r"(?:~|null|Null|NULL|)\Z", "~nN\0"),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF"),
    ("int", rf"[-+]?{_DIGITS}\Z", "-+0123456789"),
    (
        "float",
        rf"(?:[-+]?(?:\.[0-9]{{1,30}}(?:[eE][-+]?[0-9]{{1,3}})?"
        rf"|{_DIGITS}\.[0-9]{{0,30}}(?:[eE][-+]?[0-9]{{1,3}})?|{_DIGITS}[eE][-+]?[0-9]{{1,3}})"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
        "-+0123456789.",
    ),
)
for _name, _pattern, _first in _WORDS:
    _Composer.add_implicit_resolver(
        _TAG + _name, re.compile(_pattern), ["" if c == "\0" else c for c in _first]
    )


def _explained(error: yaml.MarkedYAMLError) -> Unreadable:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    problem = error.problem or "unknown mistake"
    if "found character '\\t'" in problem:
        return Unreadable("a tab is used for indentation; YAML wants spaces", line)
    if "found another document" in problem:
        return Unreadable("a second document starts here ('---'); only one is allowed", line)
    hint = ""
    if "mapping values are not allowed" in problem:
        hint = " (a text that holds ': ' needs quotes, or write it below 'key: |')"
    elif "that cannot start any token" in problem:
        hint = " (put the text in quotes)"
    elif "undefined alias" in problem:
        hint = " (a text that starts with '*' needs quotes)"
    begun = error.context_mark
    if begun is not None and error.context and begun.line + 1 != line:
        problem += f" {error.context} that starts on line {begun.line + 1}"
    return Unreadable(f"is not valid YAML: {problem}{hint}", line)


class _Reading:
    """One walk over the nodes of a document."""

    def __init__(self, verbatim: Callable[[KeyPath], bool]) -> None:
        self.origins: dict[KeyPath, Origin] = {}
        self._verbatim = verbatim
        self._inside: list[int] = []
        self._seen = 0

    def plain(self, node: yaml.Node, key: KeyPath) -> object:
        """Return the plain value of a node, and note where everything below it is."""
        line = node.start_mark.line + 1
        self._seen += 1
        if self._seen > _MOST_NODES:
            raise Unreadable(
                f"repeats itself through aliases ('*') into more than {_MOST_NODES:,} values",
                line,
                key,
            )
        if id(node) in self._inside:
            raise Unreadable("an alias ('*') points to what it is itself part of", line, key)
        if len(self._inside) > _DEEPEST:
            raise Unreadable(f"is nested more than {_DEEPEST} levels deep", line, key)
        self.origins.setdefault(key, Origin(line))
        self._inside.append(id(node))
        value = self._value(node, key, line)
        self._inside.pop()
        return value

    def _value(self, node: yaml.Node, key: KeyPath, line: int) -> object:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.plain(child, (*key, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag.startswith(_TAG):
            kind = node.tag.removeprefix(_TAG)
            if kind in _SCALARS:
                return self._scalar(kind, node, key, line)
        tag = node.tag.replace(_TAG, "!!")
        raise Unreadable(f"the tag {tag!r} is not supported; write plain values", line, key)

    def _mapping(self, node: yaml.MappingNode, key: KeyPath) -> dict[str, object]:
        result: dict[str, object] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                raise Unreadable("a list or mapping is used as a key", line, key)
            name = name_node.value
            below = (*key, name)
            if not name:
                raise Unreadable("there is no key before ':'", line, key)
            if name == "<<":
                raise Unreadable("merge keys ('<<') are not supported; repeat the keys", line, key)
            if name in result:
                first = self.origins[below].line
                raise Unreadable(f"is given twice; first on line {first}", line, below)
            self.origins[below] = Origin(line)
            result[name] = self.plain(value_node, below)
        return result

    def _scalar(self, kind: str, node: yaml.ScalarNode, key: KeyPath, line: int) -> object:
        text: str = node.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise Unreadable("holds half of a surrogate pair", line, key)
        if kind in ("int", "float", "bool") and self._verbatim(key):
            return text
        try:
            return _SCALARS[kind](text)
        except (ValueError, KeyError) as error:
            raise Unreadable(f"{text[:40]!r} is not of the type '!!{kind}'", line, key) from error


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
}
