"""The rules for bodies, as the API's schema and its handlers have them."""

from __future__ import annotations

import re
from typing import Any

_TEXTS = {"name", "image", "args", "templateId"}
_FIELDS = {
    *_TEXTS,
    *("gpu", "cpu", "disk", "env", "ports", "registry", "cloud", "dataCenterIds", "mounts"),
    *("globalNetworking", "startSsh", "startJupyter"),
}
_GPU_FIELDS = {"id", "count", "allowedCudaVersions", "minCudaVersion"}
_PATCHABLE = {
    *("name", "image", "args", "disk", "ports", "env", "registry", "mounts", "locked"),
    *("globalNetworking", "templateId"),
}
_MOST_HTTP_PORTS = 10
ACTIONS = ("start", "stop", "restart", "terminate")


def create_errors(body: Any) -> list[str]:
    """What of a create's body breaks the schema: answered with 422."""
    if not isinstance(body, dict):
        return ["$: value must be an object"]
    errors = _unknown("$", body, _FIELDS)
    if not body.get("name"):
        errors.append("$: missing property 'name'")
    if not body.get("image") and not body.get("templateId"):
        errors.append("$: missing property 'image'")
    errors += _text_errors(body)
    errors += _compute_errors(body) + _container_errors(body)
    if body.get("cloud", "SECURE") not in ("SECURE", "COMMUNITY"):
        errors.append("$.cloud: value must be one of 'SECURE', 'COMMUNITY'")
    return errors


def patch_errors(body: Any) -> list[str]:
    """What of a change's body breaks the schema."""
    if not isinstance(body, dict):
        return ["$: value must be an object"]
    errors = _unknown("$", body, _PATCHABLE)
    if not body.get("name", "x"):
        errors.append("$.name: value must not be empty")
    errors += _text_errors(body)
    errors += [
        f"$.{key}: value must be a boolean"
        for key in ("locked", "globalNetworking")
        if not isinstance(body.get(key, True), bool)
    ]
    return errors + _container_errors(body)


def patch_rule_broken(before: dict[str, Any], body: dict[str, Any]) -> str | None:
    """Which rule of the handlers a change breaks; mounts keep their kind and never shrink."""
    mounts, there = body.get("mounts") or {}, before.get("mounts") or {}
    if set(mounts) - set(there) or mounts.get("network") == []:
        return "mount kind is fixed at create"
    for mine, theirs in zip(mounts.get("network", []), there.get("network", []), strict=False):
        if mine["volumeId"] != theirs["volumeId"]:
            return "mounts.network volumeId is immutable"
    if mounts.get("persistent", {}).get("size", 10**6) < there.get("persistent", {}).get("size", 0):
        return "mounts.persistent size cannot be decreased"
    return None


def rule_broken(body: dict[str, Any]) -> str | None:
    """Which rule of the handlers is broken: answered with 400."""
    if ("gpu" in body) == ("cpu" in body):
        return "exactly one of gpu or cpu must be set"
    mounts = body.get("mounts", {})
    if "persistent" in mounts and "network" in mounts:
        return "mounts.persistent and mounts.network are mutually exclusive"
    if "cpu" in body:
        count = body["cpu"]["vcpuCount"]
        if count & (count - 1):
            return "cpu.vcpuCount must be a power of two"
        if "persistent" in mounts:
            return "mounts.persistent is not supported for CPU pods"
    if sum(port.endswith("/http") for port in body.get("ports", [])) > _MOST_HTTP_PORTS:
        return f"at most {_MOST_HTTP_PORTS} http ports are supported"
    if mounts.get("network") and body.get("cloud") == "COMMUNITY":
        return "network volumes are only available in Secure Cloud"
    gpu = body.get("gpu", {})
    if gpu.get("allowedCudaVersions") and gpu.get("minCudaVersion"):
        return "gpu.allowedCudaVersions and gpu.minCudaVersion are mutually exclusive"
    if gpu and "count" not in gpu:  # the misleading answer that was observed
        return (
            "There are no longer any instances available with the requested specifications. "
            "Please refresh and try again."
        )
    return None


def action_errors(body: Any) -> list[str]:
    """What of an action's body breaks the schema."""
    action = body.get("action") if isinstance(body, dict) else None
    known = ", ".join(f"'{one}'" for one in ACTIONS)
    return [] if action in ACTIONS else [f"$.action: value must be one of {known}"]


def _text_errors(body: dict[str, Any]) -> list[str]:
    return [
        f"$.{key}: value must be a string"
        for key in sorted(_TEXTS & set(body))
        if not isinstance(body[key], str)
    ]


def _compute_errors(body: dict[str, Any]) -> list[str]:
    errors = []
    gpu, cpu = body.get("gpu"), body.get("cpu")
    if gpu is not None:
        if not isinstance(gpu, dict) or not isinstance(gpu.get("id"), str):
            return ["$.gpu: missing property 'id'"]
        errors += _unknown("$.gpu", gpu, _GPU_FIELDS)
        count = gpu.get("count", 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            errors.append("$.gpu.count: value must be at least 1")
        if not re.fullmatch(r"\d+\.\d+", gpu.get("minCudaVersion", "1.0")):
            errors.append("$.gpu.minCudaVersion: value must match '^\\d+\\.\\d+$'")
    if cpu is not None:
        count = cpu.get("vcpuCount") if isinstance(cpu, dict) else None
        if not isinstance(count, int) or count < 2 or not cpu.get("id"):
            errors.append("$.cpu: id and vcpuCount (at least 2) are required")
    return errors


def _container_errors(body: dict[str, Any]) -> list[str]:
    errors = []
    disk = body.get("disk", 1)
    if not isinstance(disk, int) or isinstance(disk, bool) or disk < 1:
        errors.append("$.disk: value must be an integer of at least 1")
    env = body.get("env", {})
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        errors.append("$.env: values must be strings")
    elif len(env) > 50:
        errors.append("$.env: at most 50 variables")
    for place, port in enumerate(body.get("ports", [])):
        if not re.fullmatch(r"\d+/(http|tcp)", str(port)):
            errors.append(f"$.ports[{place}]: value must be '<port>/http' or '<port>/tcp'")
    mounts = body.get("mounts", {})
    if not isinstance(mounts, dict):
        return [*errors, "$.mounts: value must be an object"]
    errors += _unknown("$.mounts", mounts, {"persistent", "network"})
    persistent = mounts.get("persistent")
    if persistent is not None and (persistent.get("size", 0) < 10 or "path" not in persistent):
        errors.append("$.mounts.persistent: size (at least 10) and path are required")
    network = mounts.get("network", [])
    if len(network) > 1 or not all({"volumeId", "path"} == set(one) for one in network):
        errors.append("$.mounts.network: at most one, with volumeId and path")
    return errors


def _unknown(place: str, given: dict[str, Any], known: set[str]) -> list[str]:
    return [
        f"{place}: additional properties '{key}' not allowed" for key in sorted(set(given) - known)
    ]
