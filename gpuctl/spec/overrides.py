"""``--set key=value``: one value of a train.yaml, replaced on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from gpuctl.errors import SpecError
from gpuctl.spec.document import Unreadable, parse
from gpuctl.spec.problems import KeyPath, Origin, Problem, spec_error

_LONGEST_SHOWN = 60
_DEEPEST = 10


def apply_override(
    argument: str,
    value: dict[str, object],
    origins: dict[KeyPath, Origin],
    *,
    verbatim: Callable[[KeyPath], bool],
) -> dict[str, object]:
    """Return ``value`` with one key set, and note in ``origins`` where it now comes from.

    Args:
        argument: ``resources.gpu=RTX-4090`` or ``data.0.from=../other``; nothing after ``=``
            is as if the key were not given. The index after the last of a list adds an entry.
        value: what the file says; it is not changed.
        origins: where each key was written; changed.
        verbatim: see `gpuctl.spec.document.parse`.

    Raises:
        SpecError: it is not ``key=value``, the value is not YAML, or the key leads nowhere.
    """
    name, sign, text = argument.partition("=")
    key: KeyPath = tuple(name.strip().split("."))
    origin = Origin(override=_shown(name.strip(), text), override_key=key)
    if not sign or not all(key) or len(key) > _DEEPEST:
        message = "expected key=value, such as resources.gpu=RTX-4090"
        raise _error(Origin(override=argument[:_LONGEST_SHOWN]), (), message)
    try:
        new = parse(text, verbatim=lambda below: verbatim((*key, *below))).value
    except Unreadable as error:
        raise _error(origin, error.key, f"the value {error.message}") from error
    result, key = _with(value, key, new, (), origin)
    for stale in [known for known in origins if known[: len(key)] == key]:
        del origins[stale]
    origins[key] = replace(origin, override_key=key)
    return cast(dict[str, object], result)


def _with(
    value: object, key: KeyPath, new: object, done: KeyPath, origin: Origin
) -> tuple[object, KeyPath]:
    """Return a copy of ``value`` with a key set, and the key with its indexes as numbers."""
    if not key:
        return new, ()
    head, rest = key[0], key[1:]
    if isinstance(value, list):
        index = _index(str(head), len(value), done, origin)
        items = [*value, None] if index == len(value) else list(value)
        items[index], below = _with(items[index], rest, new, (*done, index), origin)
        return items, (index, *below)
    if value is not None and not isinstance(value, dict):
        raise _error(origin, done, f"holds a single value; it has no key {str(head)!r} below it")
    mapping = dict(value or {})
    mapping[head], below = _with(mapping.get(head), rest, new, (*done, head), origin)
    return mapping, (head, *below)


def _index(text: str, length: int, done: KeyPath, origin: Origin) -> int:
    if text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= length:
        return int(text)
    raise _error(
        origin, done, f"is a list with {length} entries; expected a number from 0 to {length}"
    )


def _shown(name: str, text: str) -> str:
    """What an error quotes. Values below env and secrets may be private and are left out."""
    private = name.partition(".")[0] in ("env", "secrets")
    whole = f"{name}={'…' if private else text}"
    return whole if len(whole) <= _LONGEST_SHOWN else whole[: _LONGEST_SHOWN - 1] + "…"


def _error(origin: Origin, key: KeyPath, message: str) -> SpecError:
    return spec_error("", [Problem(key, message, origin)])
