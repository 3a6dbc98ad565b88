"""Why a pod does not start, from its logs: an image that does not exist would be waited for, and
billed, until the boot's deadline, on one offer after the other.
"""

from __future__ import annotations

import json
import math
import re
import threading
from datetime import datetime, timedelta

from providers.base import Clock, ProviderError
from providers.runpod_client import RunpodClient

_AFTER = timedelta(seconds=60)  # most images are there by then
_EVERY_SECONDS = 60.0  # each look is one request of sixty a minute
_HOPELESS = re.compile(
    r"manifest unknown|manifest for .* not found|pull access denied|repository does not exist"
    r"|no matching manifest|unauthorized: |denied: requested access|invalid reference format"
    r"|cannot be mapped to a host ID|layer does not exist|OCI runtime create failed",
    re.IGNORECASE,
)


class Logs:
    """Looks into the logs of pods that take long, not too often.

    Args:
        clock: for how long that is.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._looked: dict[str, float] = {}
        self._lock = threading.Lock()

    def started(self, provider_id: str) -> None:
        """Take note that a pod has run: whatever its logs say of its start, it was no hindrance."""
        with self._lock:
            self._looked[provider_id] = math.inf

    def why_hopeless(
        self, api: RunpodClient, provider_id: str, created_at: datetime | None
    ) -> str | None:
        """Return what the logs say that nothing but another pod can mend; None: nothing, or it is
        not time to look. Logs that cannot be read say nothing: the deadline of the boot stands.
        """
        if created_at is None or self._clock.now() - created_at < _AFTER:
            return None
        now = self._clock.monotonic()
        with self._lock:
            if now - self._looked.get(provider_id, -_EVERY_SECONDS) < _EVERY_SECONDS:
                return None
            self._looked[provider_id] = now
        try:
            said = api.first_lines(f"/v2/pods/{provider_id}/logs", {"source": "system"})
        except ProviderError:
            return None
        return next((line for line in map(_line, reversed(said)) if _HOPELESS.search(line)), None)


def _line(event: str) -> str:
    """What one line of the stream says; "" where it is none of the pod's."""
    if not event.startswith("data:"):
        return ""
    try:
        told = json.loads(event.removeprefix("data:"))
    except ValueError:
        return ""
    return str(told.get("line", "")) if isinstance(told, dict) else ""
