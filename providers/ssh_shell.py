"""Asking a host of the `ssh` provider: the system's ssh runs a program there, which answers.

The system's own ssh is used because only it understands all of the user's configuration: jumps,
proxies, agents, certificates. Calls to one host share a connection for a short while.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from providers import processes, ssh_host
from providers.base import Ambiguous, AuthFailed, InvalidRequest, SshAccess
from providers.ssh_hosts import HostEntry

_CONNECT_SECONDS = 10
_SHARED_SECONDS = 20  # how long a connection without work is kept
_SOCKET_PATH_MAX = 100  # of a control socket; systems allow 104 or 108
_PASSED_ON = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TERM"),
    *("SSH_AUTH_SOCK", "XDG_RUNTIME_DIR", "KRB5CCNAME"),
)
_ANSWER_MAX_BYTES = 1 << 20
_FROM_SSH = 255  # its own exit code when it, and not the command, failed
# What ssh says when it came to no session, so that nothing can have happened there.
_NO_SESSION = re.compile(
    r"ssh: |Permission denied|kex_exchange_identification|banner exchange|"
    r"Host key verification failed|Bad configuration|Connection refused|not allowed|"
    r"Too many authentication failures|Could not resolve"
)


class NoAnswer(Ambiguous):
    """The host gave no answer. ``begun`` tells whether it may have done what it was asked."""

    def __init__(self, message: str, *, begun: bool) -> None:
        super().__init__(message)
        self.begun = begun


class HostRefused(Ambiguous):
    """The host answered that it will not or cannot do it. ``reason`` is its own word for why."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Resolved:
    """What ssh makes of a host's name."""

    host: str
    port: int
    user: str
    identities: tuple[str, ...]
    proxy: tuple[str, ...]
    alias: str  # under which its keys are known
    known_hosts: tuple[str, ...]


class Shell:
    """The way to one host.

    Args:
        entry: the host.
        home: GPUCTL_HOME: its key is offered too, and new host keys are kept there.
        environ: the caller's environment.
    """

    def __init__(self, entry: HostEntry, home: Path, environ: Mapping[str, str]) -> None:
        self._entry = entry
        self._home = home
        self._environ = {name: environ[name] for name in _PASSED_ON if name in environ}
        self._config = _config_file(environ)
        self._keys: tuple[str, ...] = ()

    def ask(self, order: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        """Have the host do one operation of `ssh_host` and return its answer.

        Raises:
            AuthFailed: it does not let us in, or is not the host that it was.
            NoAnswer: it does not answer, or not with an answer.
            HostRefused: it says no.
        """
        # -S: without the packages that nobody needs here, Python starts in half the time.
        flags = "-I" if order["do"] == "claim" else "-I -S"
        done = self._run(program(order), flags, timeout)
        lines = [line for line in done.stdout.splitlines() if line.startswith(b"{")]
        try:
            # A shell's start-up files may have said something before.
            said = json.loads(lines[-1][:_ANSWER_MAX_BYTES]) if lines else None
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise self._no_answer(done)
        if isinstance(error := said.get("error"), dict):
            why = _printable(str(error.get("message")))[:500].rstrip(".")
            raise HostRefused(f"{self._entry.name}: {why}.", str(error.get("kind")))
        return said

    @cached_property
    def resolved(self) -> Resolved:
        """What ssh makes of the host's name; asks nobody.

        Raises:
            InvalidRequest: ssh does not understand it.
        """
        done = self._local(["ssh", "-G", *self._destination()])
        if done.returncode:
            raise InvalidRequest(
                f"ssh does not understand the host {self._entry.name}: {_last_line(done.stderr)}."
            )
        found = read_resolved(done.stdout.decode(errors="replace"), self._jump())
        if self._entry.known_hosts is None:
            return found
        pinned = str(Path(self._entry.known_hosts).expanduser())
        return replace(found, alias=self._entry.name, known_hosts=(pinned,))

    def identities(self) -> tuple[str, ...]:
        """The private keys that may open it, where they exist."""
        own = self._home / "ssh" / "id_ed25519"
        return tuple(
            str(file)
            for name in (str(own), *self.resolved.identities)
            if (file := Path(name).expanduser()).is_file()
        )

    def access(self) -> SshAccess:
        """How our own connections reach the host; asks nobody."""
        at = self.resolved
        return SshAccess(
            at.host,
            at.port,
            at.user,
            host_keys=self._host_keys(),
            identities=self.identities(),
            proxy=at.proxy,
        )

    def _host_keys(self) -> tuple[str, ...]:
        """The host's keys as they are known by now; after an answer there is one at least."""
        if self._keys:
            return self._keys
        found: dict[str, None] = {}
        for file in self._key_files():
            if not Path(file).expanduser().is_file():
                continue
            argv = ["ssh-keygen", "-F", self.resolved.alias, "-f", str(Path(file).expanduser())]
            for line in self._local(argv).stdout.decode(errors="replace").splitlines():
                words = line.split()
                if len(words) >= 3 and not line.startswith(("#", "@")):
                    found[f"{words[1]} {words[2]}"] = None
        self._keys = tuple(found)
        return self._keys

    # ------------------------------------------------------------------ inside

    def _key_files(self) -> tuple[str, ...]:
        """Where host keys are looked for; a new one goes into the first."""
        if self._entry.known_hosts is not None:
            return self.resolved.known_hosts
        return (str(self._known_hosts), *self.resolved.known_hosts)

    @property
    def _known_hosts(self) -> Path:
        return self._home / "known_hosts" / "ssh-hosts"

    def _destination(self) -> list[str]:
        entry = self._entry
        argv = ["-F", self._config] if self._config else []
        argv += ["-p", str(entry.port)] if entry.port else []
        argv += ["-l", entry.user] if entry.user else []
        argv += ["-i", str(Path(entry.key).expanduser())] if entry.key else []
        return [*argv, entry.host or entry.name]

    def _jump(self) -> list[str]:
        """The argv with which a jump host is asked to pass a connection on."""
        known = f"UserKnownHostsFile={self._known_hosts} ~/.ssh/known_hosts"
        argv = ["ssh", *(["-F", self._config] if self._config else []), "-o", "BatchMode=yes"]
        return [*argv, "-o", "StrictHostKeyChecking=accept-new", "-o", known]

    def _options(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(_CONNECT_SECONDS),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": " ".join(f'"{file}"' for file in self._key_files()),
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
            "PermitLocalCommand": "no",
            "LogLevel": "ERROR",
            **self._sharing(),
        }
        if self._entry.known_hosts is not None:
            options |= {
                "HostKeyAlias": self._entry.name,
                "GlobalKnownHostsFile": "/dev/null",
                "StrictHostKeyChecking": "yes",
            }
        argv = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return [*argv, *(word for file in self.identities() for word in ("-i", file))]

    def _sharing(self) -> dict[str, str]:
        folder = Path(f"/tmp/gpuctl-ssh-{os.getuid()}")  # noqa: S108 - looked at below
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        if state.st_uid != os.getuid() or state.st_mode & 0o077 or folder.is_symlink():
            return {"ControlPath": "none"}  # somebody else made it
        home = hashlib.sha256(os.fsencode(self._home)).hexdigest()[:8]
        return {
            "ControlMaster": "auto",
            "ControlPath": f"{folder}/{home}-%C",
            "ControlPersist": str(_SHARED_SECONDS),
        }

    def _run(self, program: str, flags: str, timeout: float) -> subprocess.CompletedProcess[bytes]:
        self._known_hosts.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        python = self._entry.python
        # The shell there expands a leading ~/ only when it is not quoted.
        python = f"~/{shlex.quote(python[2:])}" if python[:2] == "~/" else shlex.quote(python)
        argv = ["ssh", "-T", *self._options(), *self._destination(), f"{python} {flags} -"]
        try:
            done = subprocess.run(
                argv,
                input=program.encode(),
                capture_output=True,
                env=self._environ,
                timeout=timeout,
                check=False,
                start_new_session=True,  # Ctrl-C is ours to answer
            )
        except subprocess.TimeoutExpired as error:
            raise NoAnswer(
                f"The host {self._entry.name} did not answer within {timeout:g} s.", begun=True
            ) from error
        except FileNotFoundError as error:
            raise InvalidRequest(_NO_SSH) from error
        if done.returncode == _FROM_SSH:
            raise self._failed(done.stderr.decode(errors="replace"))
        return done

    def _failed(self, said: str) -> NoAnswer | AuthFailed:
        name, why = self._entry.name, _last_line(said.encode())
        if "IDENTIFICATION HAS CHANGED" in said or "Host key verification failed" in said:
            return AuthFailed(
                f"What answers as {name} is not the host that it was: its host key has changed. "
                f"If you replaced it, remove its line from {self._known_hosts} and your own "
                "known_hosts."
            )
        if "Permission denied" in said or "Too many authentication failures" in said:
            return AuthFailed(
                f"The host {name} does not let us in: {why}. `ssh {name}` must work without a "
                "question, with your key or agent, or with the key ssh/id_ed25519.pub of this "
                "GPUCTL_HOME."
            )
        begun = not _NO_SESSION.search(said)
        return NoAnswer(f"The host {name} does not answer: {why}.", begun=begun)

    def _no_answer(self, done: subprocess.CompletedProcess[bytes]) -> NoAnswer:
        name = self._entry.name
        if done.returncode in (126, 127):
            return NoAnswer(
                f"The host {name} has no {self._entry.python} ({_last_line(done.stderr)}); gpuctl "
                "needs a Python 3.8 or newer there. `python:` in the hosts file names another.",
                begun=False,
            )
        return NoAnswer(
            f"The host {name} answered nonsense (exit code {done.returncode}): "
            f"{_last_line(done.stderr)}.",
            begun=True,
        )

    def _local(self, argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                argv, capture_output=True, env=self._environ, timeout=30, check=False
            )
        except FileNotFoundError as error:
            raise InvalidRequest(_NO_SSH) from error


def _config_file(environ: Mapping[str, str]) -> str | None:
    """The configuration that is not the one that ssh finds by itself; None for that one.

    ssh takes the home folder from the system's list of users, everything else here from HOME.
    """
    if given := environ.get("GPUCTL_SSH_CONFIG"):
        return str(Path(given).expanduser())
    home = environ.get("HOME")
    if not home or Path(home) == Path(pwd.getpwuid(os.getuid()).pw_dir):
        return None
    file = Path(home) / ".ssh" / "config"
    return str(file) if file.is_file() else None


_NO_SSH = "There is no ssh on this computer. Install OpenSSH's client; the ssh provider uses it."


def program(order: Mapping[str, Any]) -> str:
    """Return the program that has a host do one operation: `ssh_host` and what it imports."""
    files = [Path(str(module.__file__)) for module in (processes, ssh_host)]
    modules = [(file.stem, file.read_text("utf-8")) for file in files]
    return (
        "import json, sys, types\n"
        f"for name, source in {modules!r}:\n"
        "    sys.modules[name] = module = types.ModuleType(name)\n"
        "    exec(compile(source, name + '.py', 'exec'), module.__dict__)\n"
        f"sys.modules['ssh_host'].main(json.loads({json.dumps(order)!r}))\n"
    )


def read_resolved(said: str, jump: Sequence[str]) -> Resolved:
    """Read what ``ssh -G`` printed.

    Args:
        said: lines of a keyword and its value.
        jump: argv of an ssh to which ``-W`` and a jump host are added.
    """
    values: dict[str, list[str]] = {}
    for line in said.splitlines():
        keyword, _, value = line.partition(" ")
        values.setdefault(keyword.lower(), []).append(value.strip())

    def first(keyword: str) -> str:
        found = values.get(keyword, [""])[0]
        return "" if found in ("none", "") else found

    host, port, user = first("hostname"), int(first("port") or 22), first("user")
    known = host if port == 22 else f"[{host}]:{port}"
    return Resolved(
        host=host,
        port=port,
        user=user or pwd.getpwuid(os.getuid()).pw_name,
        identities=tuple(values.get("identityfile", ())),
        proxy=_proxy(first("proxyjump"), first("proxycommand"), host, port, user, jump),
        alias=first("hostkeyalias") or known,
        known_hosts=tuple(first("userknownhostsfile").split()),
    )


def _proxy(
    jumps: str, command: str, host: str, port: int, user: str, jump: Sequence[str]
) -> tuple[str, ...]:
    if jumps:
        *before, last = jumps.split(",")
        through = ["-J", ",".join(before)] if before else []
        return (*jump, *through, "-W", f"[{host}]:{port}", _destination_of(last))
    if command:
        tokens = {"%h": host, "%p": str(port), "%r": user, "%%": "%"}
        expanded = re.sub("%[hpr%]", lambda found: tokens[found[0]], command)
        return ("sh", "-c", f"exec {expanded}")
    return ()


def _destination_of(jump: str) -> str:
    return jump if jump.startswith("ssh://") else f"ssh://{jump}"


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    text = lines[-1] if lines else "it said nothing"
    return _printable(text)[:300].rstrip(".")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
