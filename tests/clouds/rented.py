"""The machine behind a rented one: real processes, a real sshd, in namespaces of their own.

It has its own process numbers, its own /root, /var/tmp and /run, its own host key, a fake
`nvidia-smi` of the right model, and the environment that its cloud would give it. Files elsewhere
are those of this computer. Its sshd is reached through a relay, so that the network between can
be frozen, cut and healed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.remote.relay import Relay
from tests.remote.sshd import SSHD, free_port
from tests.waiting import until

_INIT = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"  # bash reaps orphans
_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_SECONDS = 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def why_not() -> str | None:
    """What keeps this computer from having such machines; None when nothing does."""
    if SSHD is None:
        return "no sshd binary: install openssh-server"
    if os.geteuid() != 0:
        return "machines in namespaces of their own need root"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True)
    return None if tried.returncode == 0 else f"no namespaces: {tried.stderr.decode().strip()}"


needs_machines = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@dataclass(frozen=True)
class Card:
    """The GPUs of a machine, as nvidia-smi tells them."""

    product: str  # "NVIDIA GeForce RTX 4090"
    memory_mib: int
    count: int = 1
    driver: str = "570.124.06"
    compute_capability: str = "8.9"


@dataclass
class Rented:
    """One machine. Nothing runs before `boot`.

    Attributes:
        folder: empty, its own.
        env: what its cloud puts into the environment of everything there.
        card: its GPUs; None for none.
        keys: lines of /root/.ssh/authorized_keys.
        host_key: a private host key that was handed over; made when None.
        programs: name -> script, first in PATH: a cloud's own commands, such as `shutdown`.
        address: where its SSH is found: an address of this computer, and a port (0 for any).
        login_env: what an SSH login sees of ``env``; None for all of it.
    """

    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    card: Card | None = None
    keys: Sequence[str] = ()
    host_key: str | None = None
    programs: Mapping[str, str] = field(default_factory=dict)
    address: tuple[str, int] = ("127.0.0.1", 0)
    login_env: Mapping[str, str] | None = None
    _init: subprocess.Popen[bytes] | None = None
    _sshd_port: int = 0
    _relay: Relay | None = None

    # ------------------------------------------------------------------ life

    def boot(self) -> None:
        """Start it: processes can run there; nobody answers on its SSH port yet."""
        for name in ("root/.ssh", "var-tmp", "run/sshd", "bin"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)  # killed ones may boot again
        (self.folder / "run/up").unlink(missing_ok=True)
        (self.folder / "root").chmod(0o700)
        (self.folder / "root/.ssh").chmod(0o700)
        (self.folder / "root/.ssh/authorized_keys").write_text("".join(f"{k}\n" for k in self.keys))
        self._write_programs()
        binds = " && ".join(
            f"mount --bind {shlex.quote(str(self.folder / name))} {place}"
            for name, place in {"root": "/root", "var-tmp": "/var/tmp", "run": "/run"}.items()
        )
        init = f"{binds} && touch /run/up && cd /root && {_INIT}"
        self._init = subprocess.Popen(
            [*_UNSHARE, "bash", "-c", init],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert until((self.folder / "run/up").exists, _SECONDS), "the machine did not come up"
        self._sshd_port = free_port()
        self._relay = Relay(self._sshd_port, address=self.address)

    def start_sshd(self) -> None:
        """Answer on the SSH port."""
        key = self.folder / "host_key"
        if self.host_key is not None:
            key.write_text(self.host_key)
            key.chmod(0o600)
        elif not key.exists():
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
            subprocess.run(argv, check=True, timeout=_SECONDS)
        seen = self._given(self.env if self.login_env is None else self.login_env)
        lines = [
            f"Port {self._sshd_port}",
            "ListenAddress 127.0.0.1",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "UseDNS no",
            "Subsystem sftp internal-sftp",
            "SetEnv " + " ".join(shlex.quote(f"{k}={v}") for k, v in seen.items()),
        ]
        config = self.folder / "sshd_config"
        config.write_text("\n".join([*lines, ""]))
        self.start([str(SSHD), "-f", str(config), "-h", str(key), "-E", str(self.folder / "log")])

    def start(self, command: Sequence[str] | str) -> subprocess.Popen[bytes]:
        """Run something there as its cloud would: as root, with the cloud's environment."""
        argv = ["bash", "-c", command] if isinstance(command, str) else list(command)
        with (self.folder / "boot.log").open("ab") as log:
            return subprocess.Popen(
                [*self._entering, *argv],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End everything there at once."""
        if self._init is not None:
            first = self._first
            with suppress(ProcessLookupError):
                os.killpg(self._init.pid, signal.SIGKILL)
            self._init.wait(_SECONDS)
            # The kernel kills the rest with its pid 1, and lets that go when all are dead.
            assert until(lambda: _is_dead(first), _SECONDS), "the machine does not die"
            self._init = None
        if self._relay is not None:
            self._relay.close()
            self._relay = None

    def remove(self) -> None:
        """End it, and remove its disk."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------ looking

    @property
    def port(self) -> int:
        """Where its SSH is found on 127.0.0.1."""
        assert self._relay is not None, "it has not been booted"
        return self._relay.port

    @property
    def public_host_key(self) -> str:
        """Its host key, as it shows it."""
        argv = ["ssh-keygen", "-y", "-f", str(self.folder / "host_key")]
        return subprocess.run(
            argv, check=True, capture_output=True, timeout=_SECONDS
        ).stdout.decode()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._init is not None and self._init.poll() is None

    def processes(self) -> list[str]:
        """The commands that run there, without its first process."""
        argv = [*self._entering, "ps", "-A", "-o", "pid=,args="]
        said = subprocess.run(argv, check=True, capture_output=True, timeout=_SECONDS).stdout
        rows = [line.split(None, 1) for line in said.decode().splitlines()]
        return [command for pid, command in rows if pid != "1" and not command.startswith("ps ")]

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of what its cloud starts there."""
        return self._given(self.env)

    def _given(self, env: Mapping[str, str]) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{_PATH}"
        # What pip installs goes into the machine's own /root, not into this computer.
        own = {"PATH": path, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8", "PIP_USER": "1"}
        return {**own, **env}

    # ------------------------------------------------------------------ the network

    def partition(self) -> None:
        """Let nothing through any more; connections stay open and silent."""
        assert self._relay is not None
        self._relay.freeze()

    def heal(self) -> None:
        """Let everything through again."""
        assert self._relay is not None
        self._relay.thaw()

    # ------------------------------------------------------------------ inside

    @property
    def _entering(self) -> list[str]:
        assert self._first is not None, "it does not run"
        return ["nsenter", "--target", self._first, "--mount", "--pid", "--wd=/root", "--"]

    @property
    def _first(self) -> str | None:
        """Its pid 1, by the number that it has here; None when there is none."""
        assert self._init is not None, "it does not run"
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        with suppress(OSError):
            return next(iter(children.read_text().split()), None)
        return None

    def _write_programs(self) -> None:
        programs = dict(self.programs)
        if self.card is not None:
            programs.setdefault("nvidia-smi", _nvidia_smi(self.card))
        for name, script in programs.items():
            file = self.folder / "bin" / name
            file.write_text(script)
            file.chmod(0o755)


def _is_dead(pid: str | None) -> bool:
    """Whether a process is gone, or waits for its parent to take notice."""
    try:
        return (
            pid is None
            or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        )
    except OSError:
        return True


def _nvidia_smi(card: Card) -> str:
    """A fake that answers the queries that are asked of it, and the plain table."""
    facts = {
        "name": card.product,
        "memory.total": f"{card.memory_mib}",
        "memory.used": "3",
        "driver_version": card.driver,
        "compute_cap": card.compute_capability,
        "utilization.gpu": "0",
        "uuid": "GPU-$i",
        "index": "$i",
        "count": str(card.count),
    }
    known = "\n".join(f'      {name}) value="{value}" ;;' for name, value in facts.items())
    return f"""#!/bin/sh
query=
for word in "$@"; do
  case "$word" in --query-gpu=*) query=${{word#--query-gpu=}} ;; esac
done
if [ -z "$query" ]; then
  echo "| NVIDIA-SMI {card.driver}   Driver Version: {card.driver}   CUDA Version: 12.8 |"
  exit 0
fi
i=0
while [ $i -lt {card.count} ]; do
  line=
  for field in $(echo "$query" | tr , ' '); do
    case "$field" in
{known}
      *) value="[N/A]" ;;
    esac
    line="${{line:+$line, }}$value"
  done
  echo "$line"
  i=$((i + 1))
done
"""
