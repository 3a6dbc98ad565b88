"""How an attempt ended, as its agent left it in the store for whoever comes later.

The format is that of docs/store-format.md. It comes from a stranger's machine: what is not
exactly as it should be is not there.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

FORMAT = 1
MAX_ENDING_BYTES = 1024 * 1024

Outcome = Literal["completed", "failed", "interrupted", "cancelled", "capped", "lease"]


class Delivered(BaseModel):
    """What became of one output: ``seq`` of its manifest, None when none was shipped."""

    model_config = ConfigDict(frozen=True)

    source: str = Field(alias="from")
    seq: int | None = None
    shipped: bool = False


class Ending(BaseModel):
    """How an attempt ended. When it is there, everything that the attempt had was shipped."""

    model_config = ConfigDict(frozen=True, strict=True)

    run: str
    attempt: int
    at: AwareDatetime = Field(strict=False)
    outcome: Outcome
    exit_code: int | None = None
    reason: str = Field(max_length=2000)
    outputs: tuple[Delivered, ...] = Field(default=(), strict=False)


def ending_key(attempt: int) -> str:
    """Return where the ending of an attempt lies, relative to the run."""
    return f"ends/a{attempt:04d}.json"


def parse_ending(content: bytes, run: str, attempt: int) -> Ending | None:
    """Read an ending; None when it cannot be believed: torn, of another attempt, or newer."""
    try:
        document = json.loads(content)
        claimed = document.pop("sha256")
        written = json.dumps(
            document, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        if document.pop("format") != FORMAT or claimed != hashlib.sha256(written).hexdigest():
            return None
        ending = Ending.model_validate(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return ending if (ending.run, ending.attempt) == (run, attempt) else None
