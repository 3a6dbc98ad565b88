"""The JSON Schema of train.yaml, for editors. It knows the structure, not every rule."""

from __future__ import annotations

from typing import Any

from gpuctl.spec.model import RunSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12), with a description on every key.

    It accepts what `load_spec` accepts, also the forms people write (``50``, ``"50GB"``).
    What needs several keys or outside knowledge (the names of GPUs and providers) is left to
    `load_spec`.
    """
    schema = RunSpec.model_json_schema(by_alias=True, mode="validation")
    for section in (schema, *schema.get("$defs", {}).values()):
        required = section.get("required", [])
        for key, described in section.get("properties", {}).items():
            section["properties"][key] = _property(described, optional=key not in required)
    return {"$schema": DIALECT, **schema, "title": "train.yaml of gpuctl"}


def _property(described: dict[str, Any], *, optional: bool) -> dict[str, Any]:
    """A key without a value is a key not given, so null is allowed where absence is."""
    about = {key: described[key] for key in ("description",) if key in described}
    kind = {
        key: each
        for key, each in described.items()
        if key not in ("description", "title", "default")
    }
    if not optional or {"type": "null"} in kind.get("anyOf", []):
        return {**about, **kind}
    return {
        **about,
        "anyOf": [*kind.get("anyOf", [kind]), {"type": "null"}],
    }
