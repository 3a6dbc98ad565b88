"""Letting our SSH key in: known to the account before an instance is made, attached to it after.

Each of the two has been seen not to suffice. A third way is in the instance's boot script.
"""

from __future__ import annotations

import contextlib
import threading

from providers.base import AuthFailed, ProviderError
from providers.vastai_client import VastClient, is_absence, refusal, succeeded

_KEYS = "/api/v0/ssh/"


class Keys:
    """The public keys of one account and of its instances."""

    def __init__(self, client: VastClient) -> None:
        self._client = client
        self._registered: set[str] = set()
        self._missing: dict[str, str] = {}  # instance -> key that is not attached yet
        self._lock = threading.Lock()

    def register(self, key: str) -> None:
        """Make the key known to the account, unless it is; nothing is rented yet.

        An account of a team takes none, and an API key may lack the right: then attaching has to
        do. A key that is refused altogether is told by what comes next.

        Raises:
            ProviderError: the account could not be asked, or refuses the key.
        """
        with self._lock:
            if key in self._registered:
                return
            with contextlib.suppress(AuthFailed):
                self._make_known(key)
            self._registered.add(key)

    def _make_known(self, key: str) -> None:
        if self._is_known(key):
            return
        answer = self._client.write("POST", "add-key", _KEYS, {"ssh_key": key})
        teams = "team_ssh_keys_not_supported" in answer.text
        if not succeeded(answer) and not teams and "already" not in answer.text:
            raise refusal("our SSH key", answer)

    def _is_known(self, key: str) -> bool:
        answer = self._client.read_any("keys", _KEYS)
        if answer.status == 404 or is_absence(answer):
            return False  # it answers so when there are none; a refused key was raised before
        rows = answer.body.get("ssh_keys") if isinstance(answer.body, dict) else answer.body
        if answer.status != 200 or not isinstance(rows, list):
            raise refusal("to list the account's SSH keys", answer)
        ours = key.split()[:2]
        texts = [row.get("public_key") or row.get("key") for row in rows if isinstance(row, dict)]
        return any(isinstance(text, str) and text.split()[:2] == ours for text in texts)

    def attach(self, id: str, key: str) -> None:
        """Attach the key to a new instance. One that is not to be seen yet gets it later."""
        self._missing[id] = key
        self.attach_if_missing(id)

    def attach_if_missing(self, id: str) -> None:
        """Try again for an instance that did not take its key; without a word when it fails.

        The boot script lets the key in as well, and the instance must not be lost over this.
        """
        key = self._missing.get(id)
        if key is None:
            return
        path = f"/api/v0/instances/{id}/ssh/"
        try:
            answer = self._client.write("POST", "attach", path, {"ssh_key": key})
        except AuthFailed:
            self._missing.pop(id, None)  # another try would not do better
        except ProviderError:
            return
        else:
            if succeeded(answer) or "already" in answer.text:
                self._missing.pop(id, None)
