"""The tree of keys of a model: what is below which, and what an unknown one may have meant."""

from __future__ import annotations

import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gpuctl.spec.problems import KeyPath, did_you_mean


def fields_by_key(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a section by their keys as they are written."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_below(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that a key holds, or holds a list of, or None."""
    return _section_in(field.annotation)


def section_at(root: type[BaseModel], key: KeyPath) -> type[BaseModel] | None:
    """Return the section that a key leads to, or None when it leads to no section."""
    section: type[BaseModel] | None = root
    for part in key:
        if isinstance(part, int):
            continue
        field = fields_by_key(section).get(part) if section else None
        section = section_below(field) if field else None
    return section


def all_keys(root: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key with its field, dotted, ``[]`` for "each of a list": ``data[].from``."""
    for key, field in fields_by_key(root).items():
        yield key, field
        section = section_below(field)
        if section is not None:
            each = "[]" if typing.get_origin(field.annotation) is tuple else ""
            for below, field_below in all_keys(section):
                yield f"{key}{each}.{below}", field_below


def unknown_key(root: type[BaseModel], key: KeyPath) -> str:
    """Return what to say about an unknown key: the nearest there is, or where it belongs."""
    section, word = section_at(root, key[:-1]), str(key[-1])
    known = fields_by_key(section) if section else {}
    elsewhere = [dotted for dotted, _ in all_keys(root) if dotted.split(".")[-1] == word]
    if word not in known and len(elsewhere) == 1:
        return f"unknown key here; it belongs at {elsewhere[0]!r}"
    hint = did_you_mean(word, known)
    return f"unknown key{hint or '; known here are ' + ', '.join(known)}"


def _section_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(argument) for argument in typing.get_args(annotation))
    return next((section for section in found if section is not None), None)
