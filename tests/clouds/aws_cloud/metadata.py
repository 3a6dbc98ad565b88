"""The instance metadata service of one machine (IMDSv2)."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Any

from providers.base import Clock
from tests.clouds.http_cloud import HttpCloud, Reply, Request, route

_TEXT = {"Content-Type": "text/plain"}
_LONGEST = 21600
_ROLES = "iam/security-credentials"


class Metadata(HttpCloud):
    """What 169.254.169.254 answers there.

    Attributes:
        tokens_expire: after so many seconds, whatever TTL was asked for; None: as asked for.
        role: of the machine's instance profile, whose passing keys it hands out; "" for none.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.facts: dict[str, str] = {}
        self.tags: dict[str, str] | None = None  # None: InstanceMetadataTags is not enabled
        self.user_data = b""
        self.tokens_expire: float | None = None
        self.role = ""
        self.key_id = f"ASIA{secrets.token_hex(8).upper()}"
        self._tokens: dict[str, float] = {}
        self._action: dict[str, str] | None = None
        self._rebalance: datetime | None = None

    def announce(self, when: datetime, does: str = "terminate") -> None:
        """The machine will be taken away then."""
        self._action = {"action": does, "time": _stamp(when)}

    def recommend(self, when: datetime) -> None:
        """It is at risk of being taken away."""
        self._rebalance = when

    @route("PUT", "/latest/api/token")
    def token(self, request: Request) -> Reply:
        """A token that lives as long as was asked for."""
        ttl = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdecimal() or not 1 <= int(ttl) <= _LONGEST:
            return Reply(400, b"", _TEXT)
        token = secrets.token_urlsafe(24)
        lives = float(ttl) if self.tokens_expire is None else self.tokens_expire
        self._tokens[token] = self.clock.monotonic() + lives
        return Reply(200, token.encode(), _TEXT)

    @route("GET", "/latest/{kind}/?(?P<path>.*)")
    def read(self, request: Request, kind: str, path: str) -> Reply:
        """Whatever there is for a valid token."""
        given = request.headers.get("x-aws-ec2-metadata-token", "")
        if self._tokens.get(given, 0.0) <= self.clock.monotonic():
            return Reply(401, b"", _TEXT)
        found: Any = None
        if kind == "user-data":
            found = self.user_data or None
        elif kind == "meta-data":
            found = self._read(path)
        if found is None:
            return Reply(404, b"", _TEXT)
        if isinstance(found, dict):
            return Reply(200, found)
        return Reply(200, found if isinstance(found, bytes) else str(found).encode(), _TEXT)

    def _read(self, path: str) -> Any:
        if path == "spot/instance-action":
            return self._action
        if path == "events/recommendations/rebalance" and self._rebalance is not None:
            return {"noticeTime": _stamp(self._rebalance)}
        if path.startswith(_ROLES) and self.role:
            named = path.removeprefix(_ROLES).strip("/")
            return self.role if not named else self._keys() if named == self.role else None
        if path.startswith("tags/instance") and self.tags is not None:
            name = path.removeprefix("tags/instance").strip("/")
            return self.tags.get(name) if name else "\n".join(self.tags)
        return self.facts.get(path)

    def _keys(self) -> dict[str, str]:
        now = self.clock.now()
        return {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": _stamp(now),
            "AccessKeyId": self.key_id,
            "SecretAccessKey": secrets.token_urlsafe(30),
            "Token": secrets.token_urlsafe(60),
            "Expiration": _stamp(now + timedelta(hours=6)),
        }


def _stamp(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%SZ}"
