"""train.yaml and ``--set`` to a `RunSpec`, or to one line that says what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gpuctl.quantities import shown
from gpuctl.spec.document import Document, Unreadable, parse, read_text
from gpuctl.spec.keys import fields_by_key, section_at, unknown_key
from gpuctl.spec.model import RunSpec
from gpuctl.spec.overrides import apply_override
from gpuctl.spec.paths import Place
from gpuctl.spec.problems import KeyPath, Origin, Problem, origin_of, spec_error

_SMALLEST = "the smallest train.yaml is one line, such as 'run: python train.py'"


def load_spec(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> RunSpec:
    """Return what a train.yaml says, checked.

    Args:
        path: the file. Relative paths in it start at its folder.
        overrides: ``key=value`` as ``--set`` takes them: dotted keys, values as YAML.
        environ: where ``HOME`` is looked up for paths that start with ``~/``. Secrets are not
            looked up here, see `missing_secrets`.

    Raises:
        SpecError: the file cannot be read or says something wrong. The message is one line with
            file, line, key, and what was expected.
    """
    document = _document(path)
    value = document.value
    if not isinstance(value, dict):
        raise spec_error(str(path), [_not_a_mapping(document)])
    origins = dict(document.origins)
    for argument in overrides:
        value = apply_override(argument, value, origins, verbatim=is_verbatim)
    place = Place(path.absolute().parent, environ.get("HOME"))
    try:
        return RunSpec.model_validate(value, context=place)
    except ValidationError as error:
        problems = [_problem(details, origins) for details in error.errors(include_url=False)]
        # Not chained: pydantic's text quotes values, and somebody may have pasted a token.
        raise spec_error(str(path), problems) from None


def is_verbatim(key: KeyPath) -> bool:
    """Whether a value is kept as it was written: those of ``env`` always are text."""
    return len(key) == 2 and key[0] == "env"


def _document(path: Path) -> Document:
    try:
        return parse(read_text(path), verbatim=is_verbatim)
    except Unreadable as error:
        problem = Problem(error.key, error.message, Origin(error.line))
        raise spec_error(str(path), [problem]) from error


def _not_a_mapping(document: Document) -> Problem:
    if document.value is None:
        return Problem((), f"is empty; {_SMALLEST}")
    message = f"expected keys and values at the top, got {shown(document.value)}; {_SMALLEST}"
    return Problem((), message, document.origins[()])


def _problem(details: ErrorDetails, origins: Mapping[KeyPath, Origin]) -> Problem:
    key: KeyPath = tuple(part for part in details["loc"] if part != "[key]")
    context: dict[str, Any] = details.get("ctx", {})
    if details["type"] == "conflict":
        key = (*key, *context["key"])
    return Problem(key, _message(key, details, context), origin_of(key, origins))


def _message(key: KeyPath, details: ErrorDetails, context: Mapping[str, Any]) -> str:
    match details["type"]:
        case "extra_forbidden":
            return unknown_key(RunSpec, key)
        case "missing":
            return _required(key)
        case "value_error":
            return str(context["error"])
        case "model_type" | "model_attributes_type" | "dict_type" | "mapping_type":
            return f"expected keys and values, got {shown(details['input'])}"
        case "tuple_type" | "list_type":
            given = details["input"]
            if key == ("secrets",):  # what was given may be the secret itself
                return "expected a list of names, such as [HF_TOKEN]"
            return f"expected a list, such as [{_as_item(given)}]; got {shown(given)}"
        case _:
            return details["msg"]


def _required(key: KeyPath) -> str:
    section = section_at(RunSpec, key[:-1])
    field = fields_by_key(section).get(str(key[-1])) if section else None
    if field is None or not field.description:
        return "is required"
    meaning = field.description.partition(". ")[0].rstrip(".")
    return f"is required: {meaning[0].lower()}{meaning[1:]}"


def _as_item(value: object) -> str:
    return value if isinstance(value, str) and 0 < len(value) <= 40 else "…"
