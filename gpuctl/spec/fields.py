"""The types of train.yaml's values: how each is read, what is said when it is wrong, its schema.

Every reader takes what YAML gave and raises ValueError with one sentence. The readers of paths
are in `gpuctl.spec.paths`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from gpuctl.quantities import (
    DURATION_EXPECTED,
    exact_decimal,
    exact_duration,
    parse_count,
    parse_duration,
    parse_gb,
    parse_money,
    shown,
)
from gpuctl.spec.paths import (
    below_workdir,
    in_workdir,
    local_folder,
    local_or_s3,
    target,
    text_of,
)
from gpuctl.spec.problems import did_you_mean

Schema = dict[str, Any]

ACCOUNT_KEYS = frozenset(
    {
        "RUNPOD_API_KEY",
        "VAST_API_KEY",
        "HCLOUD_TOKEN",
        "LAMBDA_API_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    }
)
"""Keys of cloud accounts. Hosts are strangers: these never go to a machine."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,254}")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,_/-]{0,63}")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?P<time>[Tt ][0-9:.]+(?P<zone>[Zz]|[+-]\d\d:\d\d)?)?"
)
_SAID_YES = frozenset({"yes", "on", "y", "true", "1"})
_SAID_NO = frozenset({"no", "off", "n", "false", "0"})


# -------------------------------------------------------------------------- words and text


def _command(value: object) -> str:
    if isinstance(value, list):
        raise ValueError("expected one command as text, got a list; write the lines below '|'")
    return text_of(value)


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        text = text_of(value)
        if not pattern.fullmatch(text):
            raise ValueError(f"expected {expected}; got {shown(value)}")
        return text

    return read


_read_name = _matching(
    _NAME,
    "at most 63 letters, digits, spaces, dots, dashes and underscores, the first a letter or digit",
)
_read_image = _matching(
    _IMAGE, "the name of an image, such as pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"
)
_read_region = _matching(_REGION, "the name of a region, such as us-east-1")
_read_variable = _matching(
    _VARIABLE, "the name of an environment variable: letters, digits and _, no digit first"
)


def _variable(value: object) -> str:
    name = _read_variable(value)
    if name.upper().startswith("GPUCTL_"):
        raise ValueError("names that start with GPUCTL_ are set by gpuctl itself; choose another")
    if name in ACCOUNT_KEYS:
        raise ValueError(
            f"{name} is the key of a cloud account, and those never go to a rented machine; "
            "pass a key with narrow rights under another name"
        )
    return name


def _secret(value: object) -> str:
    """Read the name of a secret. What is no name may be the secret itself, so it is not quoted."""
    if not isinstance(value, str) or not _VARIABLE.fullmatch(value):
        raise ValueError(
            "expected only the name of an environment variable; the value comes from your "
            "environment and must not stand in this file"
        )
    return _variable(value)


def _variable_value(value: object) -> str:
    if value is None:
        raise ValueError("expected a value; write '' for an empty one")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {shown(value)}")
    if "\x00" in value:
        raise ValueError("a NUL character is not allowed")
    return value


def _flag(value: object, *, also: str = "") -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    hint = ""
    if word in _SAID_YES:
        hint = "; did you mean true?"
    elif word in _SAID_NO:
        hint = "; did you mean false?"
    raise ValueError(f"expected true{',' if also else ' or'} false{also}; got {shown(value)}{hint}")


def _spot(value: object) -> bool | Literal["auto"]:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    return _flag(value, also=" or auto")


# ------------------------------------------------------------------------- what to rent


def _gpus(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, str) and item.strip().lower() == "none" for item in items):
        if len(items) > 1:
            raise ValueError("'none' means no GPU and cannot stand beside others")
        return ()
    return tuple(_gpu(item) for item in items)


def _gpu(item: object) -> str:
    from providers.gpus import UnknownGpu, parse_selector

    if isinstance(item, int | float) and not isinstance(item, bool):
        raise ValueError(f"expected the name of a GPU or a size such as '24GB+'; got {shown(item)}")
    if not isinstance(item, str) or not item.strip():
        raise ValueError(f"expected the name of a GPU or a size such as '24GB+', got {shown(item)}")
    if len(item) > 64:
        raise ValueError(f"expected the name of a GPU or a size such as '24GB+', got {shown(item)}")
    try:
        return parse_selector(item.strip()).text
    except UnknownGpu as error:
        raise ValueError(str(error)) from error


def _provider(value: object) -> str:
    from providers import registry

    text = text_of(value)
    known = sorted({*registry.names(), *registry.known_systems()})
    if text not in known:
        hint = did_you_mean(text, known) or f"; known are {', '.join(known)}"
        raise ValueError(f"unknown provider {shown(value)}{hint}")
    return text


def _positive_gb(value: object) -> float:
    size = parse_gb(value)
    if size == 0:
        raise ValueError("expected more than 0 GB")
    return size


def _count_from(least: int, most: int) -> Callable[[object], int]:
    return lambda value: parse_count(value, least=least, most=most)


# --------------------------------------------------------------------------------- time


def _positive_duration(value: object) -> timedelta:
    duration = parse_duration(value)
    if not duration:
        raise ValueError(f"{DURATION_EXPECTED}; it must be more than 0")
    return duration


def _settle(value: object) -> timedelta:
    duration = parse_duration(value)
    if duration > timedelta(hours=1):
        raise ValueError("expected at most 1h")
    return duration


def _deadline(value: object) -> timedelta | datetime:
    if isinstance(value, str) and (found := _MOMENT.fullmatch(value.strip())):
        if not found["zone"]:
            raise ValueError(
                f"a moment needs a time and a time zone, such as 2026-11-22T18:00:00Z; "
                f"got {shown(value)}"
            )
        return _moment(value.strip())
    try:
        return _positive_duration(value)
    except ValueError as error:
        raise ValueError(f"{error}; or a moment, such as 2026-11-22T18:00:00Z") from error


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"there is no such moment: {shown(text)}") from error
    if not 2000 <= moment.year <= 2200:
        raise ValueError(f"that moment is not in this century or the next: {shown(text)}")
    return moment


# --------------------------------------------------------------------------------- types


def _schema(read: Callable[..., object], **schema: Any) -> tuple[BeforeValidator, WithJsonSchema]:
    return BeforeValidator(read), WithJsonSchema(schema)


_STRING: Schema = {"type": "string", "minLength": 1}
_SIZE: Schema = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^\s*[0-9.]+\s*([KkMmGgTt]?[Ii]?[Bb])?\s*$"},
    ]
}
_USD: Schema = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^\s*(\$|[Uu][Ss][Dd])?\s*[0-9.]+\s*(\$|[Uu][Ss][Dd])?\s*$"},
    ]
}
_DURATION: Schema = {
    "anyOf": [
        {"const": 0},
        {"type": "string", "pattern": r"^(\s*[0-9.]+\s*[A-Za-z]+)+\s*$|^\s*[0.]+\s*$"},
    ]
}
_INSIDE: Schema = {"type": "string", "pattern": r"^[^/~].*$"}
_WORD: Schema = {"type": "string", "minLength": 1}
_GPU: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
_ENV_NAME = r"^(?!GPUCTL_)[A-Za-z_][A-Za-z0-9_]*$"
_as_seconds = PlainSerializer(exact_duration, return_type=str, when_used="json")
_as_text = PlainSerializer(exact_decimal, return_type=str, when_used="json")


def _moment_or_seconds(value: timedelta | datetime) -> str:
    if isinstance(value, timedelta):
        return exact_duration(value)
    return value.isoformat().replace("+00:00", "Z")


def _whole(least: int, most: int) -> tuple[BeforeValidator, WithJsonSchema]:
    number = {"type": "integer", "minimum": least, "maximum": most}
    text = {"type": "string", "pattern": r"^\s*(0|[1-9][0-9]{0,6})\s*$"}
    return _schema(_count_from(least, most), anyOf=[number, text])


Name = Annotated[str, *_schema(_read_name, type="string", pattern=f"^{_NAME.pattern}$")]
Command = Annotated[str, *_schema(_command, **_STRING)]
Image = Annotated[str, *_schema(_read_image, type="string", pattern=f"^{_IMAGE.pattern}$")]
Region = Annotated[str, *_schema(_read_region, type="string", pattern=f"^{_REGION.pattern}$")]
ProviderName = Annotated[str, *_schema(_provider, **_WORD)]
Gpus = Annotated[tuple[str, ...], *_schema(_gpus, anyOf=[_GPU, {"type": "array", "items": _GPU}])]
Variable = Annotated[str, *_schema(_variable, type="string", pattern=_ENV_NAME)]
Secret = Annotated[str, *_schema(_secret, type="string", pattern=_ENV_NAME)]
VariableValue = Annotated[str, *_schema(_variable_value, type=["string", "number", "boolean"])]
Flag = Annotated[bool, *_schema(_flag, type="boolean")]
Spot = Annotated[
    bool | Literal["auto"], *_schema(_spot, anyOf=[{"type": "boolean"}, {"const": "auto"}])
]
Gb = Annotated[float, *_schema(_positive_gb, **_SIZE)]
Usd = Annotated[Decimal, *_schema(parse_money, **_USD), _as_text]
Duration = Annotated[timedelta, *_schema(_positive_duration, **_DURATION), _as_seconds]
Settle = Annotated[timedelta, *_schema(_settle, **_DURATION), _as_seconds]
Deadline = Annotated[
    timedelta | datetime,
    *_schema(_deadline, type="string", minLength=2),
    PlainSerializer(_moment_or_seconds, return_type=str, when_used="json"),
]
GpuCount = Annotated[int, *_whole(1, 64)]
NodeCount = Annotated[int, *_whole(1, 1024)]
CpuCount = Annotated[int, *_whole(1, 4096)]
Keep = Annotated[int, *_whole(1, 10_000)]
Recoveries = Annotated[int, *_whole(0, 1000)]
InWorkdir = Annotated[str, *_schema(in_workdir, **_INSIDE)]
BelowWorkdir = Annotated[str, *_schema(below_workdir, **_INSIDE)]
LocalFolder = Annotated[str, *_schema(local_folder, **_STRING)]
LocalOrS3 = Annotated[str, *_schema(local_or_s3, **_STRING)]
Target = Annotated[str, *_schema(target, type="string", pattern=r"^[^/~].*$")]
