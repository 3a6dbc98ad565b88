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
    sections = schema.get("$defs", {})
    for section in (schema, *sections.values()):
        required = section.get("required", [])
        for key, described in section.get("properties", {}).items():
            referred = sections.get(described.get("$ref", "").rpartition("/")[2], {})
            # pydantic leaves a description out where the section it refers to has the same.
            about = described.get("description") or referred["description"]
            section["properties"][key] = _property(described, about, optional=key not in required)
    return {"$schema": DIALECT, **schema, "title": "train.yaml of gpuctl"}


def _property(described: dict[str, Any], about: str, *, optional: bool) -> dict[str, Any]:
    """A key without a value is a key not given, so null is allowed where absence is."""
    left_out = ("description", "title", "default")
    kind = {key: each for key, each in described.items() if key not in left_out}
    if "patternProperties" in kind:
        kind["additionalProperties"] = False
    if not optional:
        return {"description": about, **kind}
    kinds = [each for each in kind.get("anyOf", [kind]) if each != {"type": "null"}]
    return {"description": about, "anyOf": [*kinds, {"type": "null"}]}
