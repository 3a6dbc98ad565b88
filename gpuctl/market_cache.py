"""What providers last answered to a question, kept on disk for a moment.

Some clouds take ten searches a minute. A young answer spares one; an older one stands in when a
cloud says that it was asked too often. An offer keeps the moment at which it was true (`as_of`):
nothing here makes an old price look fresh. Renting never relies on it: `create` checks the price.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from providers.base import Clock, Offer, Want

YOUNG_SECONDS = 10.0
STAND_IN_SECONDS = 600.0
_FORMAT = 2
_MAX_BYTES = 32 << 20
_FIELDS = tuple(field.name for field in fields(Offer))
_MINE = ("GPUCTL_", "RUNPOD_", "VAST_", "HCLOUD_", "AWS_", "LAMBDA_")


@dataclass(frozen=True, slots=True)
class OfferCache:
    """Answers by provider, question and settings.

    Args:
        folder: made on first use.
        clock: for the age of what is there.
        environ: other keys or addresses mean another account.
    """

    folder: Path
    clock: Clock
    environ: Mapping[str, str]

    def young(self, provider: str, want: Want, seconds: float) -> tuple[Offer, ...] | None:
        """Return the last answer if it is no older than ``seconds``."""
        try:
            with self._file(provider, want).open("rb") as file:
                document = json.loads(file.read(_MAX_BYTES))
            at = datetime.fromisoformat(document["at"])
            if document["format"] != _FORMAT:
                return None
            age = (self.clock.now() - at).total_seconds()
            if not 0 <= age <= seconds:  # a clock that was set back makes nothing young
                return None
            return tuple(_offer(one) for one in document["offers"])
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
            return None  # absent, torn, or of another version: then nobody has answered yet

    def keep(self, provider: str, want: Want, offers: Sequence[Offer]) -> None:
        """Keep an answer. Where it cannot be written there is none next time."""
        document = {
            "format": _FORMAT,
            "at": self.clock.now().isoformat(),
            "offers": [_document(offer) for offer in offers],
        }
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._sweep()
            draft = self.folder / f".{secrets.token_hex(8)}"
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "w") as out:
                json.dump(document, out)
            draft.replace(self._file(provider, want))

    def _file(self, provider: str, want: Want) -> Path:
        settings = sorted((k, v) for k, v in self.environ.items() if k.startswith(_MINE))
        told = repr((provider, want, settings)).encode("utf-8", "surrogateescape")
        return self.folder / f"{provider}-{hashlib.sha256(told).hexdigest()[:32]}.json"

    def _sweep(self) -> None:
        oldest = time.time() - STAND_IN_SECONDS
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < oldest:
                    file.unlink()


def _document(offer: Offer) -> dict[str, Any]:
    values = ((name, getattr(offer, name)) for name in _FIELDS)
    return {
        name: str(value) if isinstance(value, Decimal | datetime | date) else value
        for name, value in values
    }


def _offer(document: Mapping[str, Any]) -> Offer:
    given = {name: value for name, value in document.items() if name in _FIELDS}
    for money in ("price_hour", "gb_in_price", "gb_out_price"):
        given[money] = Decimal(given[money])
    given["as_of"] = datetime.fromisoformat(given["as_of"]).astimezone(UTC)
    if given["fx_rate"] is not None:
        given["fx_rate"] = Decimal(given["fx_rate"])
    if given["fx_date"] is not None:
        given["fx_date"] = date.fromisoformat(given["fx_date"])
    return Offer(**given)
