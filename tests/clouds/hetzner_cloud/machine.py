"""The real machine behind an emulated server, and what cloud-init does there at boot."""

from __future__ import annotations

import base64
import shlex
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.clouds.hetzner_cloud.metadata import Metadata
from tests.clouds.rented import Rented
from tests.waiting import until

_STEP_SECONDS = 60
_ASKED = "run/poweroff-asked"

# As systemd's: `shutdown [-h|-P] now|+minutes`, `shutdown -c`.
_SHUTDOWN = """#!/bin/sh
when=+1
for word in "$@"; do
  case "$word" in
    now) when=+0 ;;
    +*) when=$word ;;
    -c) kill "$(cat /run/shutdown.pid)"; exit ;;
  esac
done
if [ "$when" = +0 ]; then touch /run/poweroff-asked; exit; fi
setsid sh -c "sleep $(( ${when#+} * 60 )); touch /run/poweroff-asked" >/dev/null 2>&1 &
echo $! > /run/shutdown.pid
"""
_POWEROFF = "#!/bin/sh\ntouch /run/poweroff-asked\n"
# Only timers: `systemd-run --on-active=SECONDSs ... COMMAND`.
_SYSTEMD_RUN = """#!/bin/sh
while :; do
  case "$1" in
    --on-active=*) delay=${1#--on-active=} ;;
    --*) ;;
    *) break ;;
  esac
  shift
done
(sleep "${delay%s}"; exec "$@") </dev/null >/dev/null 2>&1 &
"""
_CLOUD_INIT = """#!/bin/sh
# Only `cloud-init status --wait`.
while [ ! -e /run/cloud-init/result.json ]; do sleep 0.2; done
echo "status: done"
"""


class Machine:
    """One machine. Started and ended beside the API, which does not wait for it.

    Args:
        folder: its own.
        address: where its SSH is reached.
        keys: of the project that were named at creation.
        user_data: as it was sent.
        ssh_refused_for: seconds from its boot until sshd answers.
        metadata: what it can ask about itself; HETZNER_METADATA says where, for the address that
            the real one has cannot be served here.
    """

    def __init__(
        self,
        folder: Path,
        address: tuple[str, int],
        keys: Sequence[str],
        user_data: str,
        ssh_refused_for: float,
        metadata: Metadata,
    ) -> None:
        self._config = _cloud_config(user_data)
        self._script = user_data if user_data.startswith("#!") else ""
        self._refused_for = ssh_refused_for
        given = self._config.get("ssh_keys", {})
        self.rented = Rented(
            folder,
            env={"HETZNER_METADATA": f"{metadata.url}/hetzner/v1"},
            keys=[*keys, *self._config.get("ssh_authorized_keys", ())],
            host_key=given.get("ed25519_private"),
            programs={
                "shutdown": _SHUTDOWN,
                "poweroff": _POWEROFF,
                "systemd-run": _SYSTEMD_RUN,
                "cloud-init": _CLOUD_INIT,
            },
            address=address,
        )
        self.packages: list[str] = list(self._config.get("packages", ()))  # noted, not installed
        self._metadata = metadata
        metadata.__enter__()
        self._ended = threading.Event()
        self._boot: threading.Thread | None = None

    def start(self) -> None:
        """Power on, for the first time or again."""
        first = self._boot is None
        self._ended.clear()
        (self.rented.folder / _ASKED).unlink(missing_ok=True)
        self._boot = threading.Thread(target=self._booting, args=(first,), daemon=True)
        self._boot.start()

    def end(self) -> None:
        """Cut the power. The disk stays until `remove`."""
        self._ended.set()
        if self._boot is not None:
            self._boot.join(_STEP_SECONDS)
        self.rented.kill()

    def remove(self) -> None:
        """Power off, and wipe the disk."""
        self.end()
        self.rented.remove()
        self._metadata.close()

    @property
    def asked_to_stop(self) -> bool:
        """Whether something there has switched it off."""
        return not self._ended.is_set() and (self.rented.folder / _ASKED).exists()

    # ------------------------------------------------------------------ cloud-init

    def _booting(self, first: bool) -> None:
        self.rented.boot()
        with suppress(AssertionError, OSError):  # ended in the middle of its boot
            self._init_stage(first)
            self._ended.wait(self._refused_for)
            self._unless_ended()
            self.rented.start_sshd()
            if first:
                self._final_stage()

    def _init_stage(self, first: bool) -> None:
        """What runs before sshd; only bootcmd does at every boot."""
        for command in self._config.get("bootcmd", ()):
            self._run(command)
        for file in self._config.get("write_files", ()) if first else ():
            self._write(file)

    def _final_stage(self) -> None:
        for command in self._config.get("runcmd", ()):
            self._run(command)
        if self._script:
            self._run(["sh", "-c", self._script])
        self._run(["sh", "-c", "mkdir -p /run/cloud-init; touch /run/cloud-init/result.json"])

    def _write(self, file: dict[str, Any]) -> None:
        path, content = shlex.quote(file["path"]), base64.b64encode(file["content"].encode())
        mode = str(file.get("permissions", "0644"))
        self._run(
            f"mkdir -p $(dirname {path}); echo {content.decode()} | base64 -d > {path}; "
            f"chmod {mode} {path}"
        )

    def _run(self, command: Sequence[str] | str) -> None:
        self._unless_ended()
        process = self.rented.start(command)
        until(lambda: process.poll() is not None or self._ended.is_set(), _STEP_SECONDS)

    def _unless_ended(self) -> None:
        if self._ended.is_set():
            raise OSError("the machine was ended")


def _cloud_config(user_data: str) -> dict[str, Any]:
    if not user_data.startswith("#cloud-config"):
        return {}
    config = yaml.safe_load(user_data)
    return config if isinstance(config, dict) else {}
