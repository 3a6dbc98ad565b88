"""The real machine behind an emulated instance, and the part of cloud-init that it knows."""

from __future__ import annotations

import math
import shlex
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from providers.base import Clock
from tests.clouds.aws_cloud.metadata import Metadata
from tests.clouds.rented import Card, Rented
from tests.waiting import until

_OURS = ("/root/", "/run/", "/var/tmp/")  # folders of the machine's own; others are this computer's
_CARDS = {
    "T4": ("Tesla T4", 15360, "7.5"),
    "A10G": ("NVIDIA A10G", 22888, "8.6"),
    "L4": ("NVIDIA L4", 22888, "8.9"),
    "L40S": ("NVIDIA L40S", 45776, "8.9"),
    "A100": ("NVIDIA A100-SXM4-40GB", 40960, "8.0"),
    "H100": ("NVIDIA H100 80GB HBM3", 81559, "9.0"),
}
_POWEROFF = "#!/bin/sh\ntouch /run/powered-off\nkill -TERM 1\n"
_PROGRAMS = {
    "poweroff": _POWEROFF,
    "shutdown": '#!/bin/sh\ncase "$*" in *-c*) exit 0;; *now*|*-P*) exec poweroff;; esac\n',
    "systemctl": '#!/bin/sh\ncase "$*" in *poweroff*) exec poweroff;; esac\n',
    "halt": "#!/bin/sh\n# The CPU halts, and the instance stays running and billing.\n",
    "systemd-run": """#!/bin/sh
delay=0
while :; do
  case "$1" in
    --on-active=*) delay=${1#--on-active=}; delay=${delay%s}; shift ;;
    --*) shift ;;
    *) break ;;
  esac
done
(sleep "$delay"; exec "$@") >/dev/null 2>&1 &
""",
}


class AwsMachine:
    """One machine: booted, set up by its user data, killed.

    Args:
        folder: empty, its own.
        address: where its sshd is found.
        gpu: DescribeInstanceTypes' name of its GPU, and how many; None for none.
        ssh_seconds: from running to an sshd that answers.

    Attributes:
        off: set when it has switched itself off.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        address: tuple[str, int],
        gpu: tuple[str, int] | None,
        user_data: bytes,
        ssh_seconds: float = 0,
    ) -> None:
        self.address = address
        self.off = threading.Event()
        self.metadata = Metadata(clock)
        self.metadata.user_data = user_data
        self.failed: BaseException | None = None
        self._said = cloud_config(user_data)
        self._ssh_seconds = ssh_seconds
        self._killed = threading.Event()
        keys = self._said.get("ssh_authorized_keys", []) if _root_may_log_in(self._said) else []
        self.rented = Rented(
            folder,
            env={"AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.url},
            card=_card(gpu),
            keys=keys,
            host_key=self._said.get("ssh_keys", {}).get("ed25519_private"),
            programs=_PROGRAMS,
            address=address,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Let it boot, on its own time."""
        self.metadata.__enter__()
        self._thread.start()

    def kill(self) -> None:
        """End everything there; its disk stays until `remove`."""
        if self._killed.is_set():
            return
        self._killed.set()
        if self._thread.ident is not None:
            if self._thread is not threading.current_thread():
                self._thread.join(30)
            self.rented.kill()
            self.metadata.close()

    def _run(self) -> None:
        try:
            self.rented.boot()
            for command in self._said.get("bootcmd", []):
                self.rented.start(_shell(command)).wait(60)
            self._write_files()
            if self._ended_within(self._ssh_seconds):
                return
            self.rented.start_sshd()
            for command in self._said.get("runcmd", []):
                self.rented.start(_shell(command))
            self._ended_within(math.inf)
        except BaseException as error:
            self.failed = error
            raise

    def _ended_within(self, seconds: float) -> bool:
        """Whether it switches itself off, or is killed, in so long."""
        last = time.monotonic() + seconds
        while self.rented.alive and not (self.rented.folder / "run/powered-off").exists():
            left = last - time.monotonic()
            if left <= 0:
                return False
            if self._killed.wait(min(left, 0.1)):
                return True
        self.off.set()
        return True

    def _write_files(self) -> None:
        for file in self._said.get("write_files", []):
            if not str(file["path"]).startswith(_OURS):
                continue  # it would land on this computer
            name = shlex.quote(str(file["path"]))
            mode = shlex.quote(str(file.get("permissions", "0644")))
            text = shlex.quote(str(file.get("content", "")))
            line = f"mkdir -p $(dirname {name}) && printf %s {text} > {name} && chmod {mode} {name}"
            self.rented.start(line).wait(10)


def cloud_config(user_data: bytes) -> dict[str, Any]:
    """Read user data as cloud-init does: what is not a #cloud-config changes nothing."""
    text = user_data.decode(errors="replace")
    if not text.startswith("#cloud-config"):
        return {}
    said = yaml.safe_load(text)
    return said if isinstance(said, dict) else {}


def wait_until_up(machine: AwsMachine, seconds: float = 20) -> None:
    """Wait until its sshd runs."""
    assert until(lambda: (machine.rented.folder / "log").exists(), seconds), machine.failed


def _root_may_log_in(said: Mapping[str, Any]) -> bool:
    return said.get("disable_root") is False


def _shell(command: Any) -> str:
    return command if isinstance(command, str) else shlex.join(map(str, command))


def _card(gpu: tuple[str, int] | None) -> Card | None:
    if gpu is None:
        return None
    product, memory, capability = _CARDS.get(gpu[0], (f"NVIDIA {gpu[0]}", 24576, "8.9"))
    return Card(product, memory, gpu[1], compute_capability=capability)
