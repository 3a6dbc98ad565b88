"""Request quotas in fixed windows, told in headers on every answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_SECONDS = {"minute": 60, "hour": 3600, "day": 86400}


@dataclass
class Limits:
    """One account's quotas."""

    quota: dict[str, int] = field(
        default_factory=lambda: {"minute": 60, "hour": 3000, "day": 50000}
    )
    _began: dict[str, float] = field(default_factory=dict)
    _used: dict[str, int] = field(default_factory=dict)

    def take(self, now: float) -> tuple[str, int] | None:
        """Count one request; return the window that is used up, and in how many seconds it ends."""
        self._turn(now)
        for name, most in self.quota.items():
            if self._used[name] >= most:
                return name, self._left(name, now)
        for name in self.quota:
            self._used[name] += 1
        return None

    def headers(self, now: float) -> dict[str, str]:
        """What is left, as the API tells it."""
        self._turn(now)
        policy = ", ".join(f'"{n}";q={q};w={_SECONDS[n]}' for n, q in self.quota.items())
        left = ", ".join(
            f'"{n}";r={max(q - self._used[n], 0)};t={self._left(n, now)}'
            for n, q in self.quota.items()
        )
        return {"RateLimit-Policy": policy, "RateLimit": left}

    def _turn(self, now: float) -> None:
        for name in self.quota:
            if now - self._began.get(name, -math.inf) >= _SECONDS[name]:
                self._began[name], self._used[name] = now, 0

    def _left(self, name: str, now: float) -> int:
        return max(1, math.ceil(self._began[name] + _SECONDS[name] - now))
