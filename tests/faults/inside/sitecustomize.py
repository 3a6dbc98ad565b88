"""Runs inside every gpuctl of the crash matrix, before gpuctl does: it lists or dies at its steps.

Python imports a module of this name when it starts. Nothing in gpuctl is changed or stands aside:
three seams are wrapped when their modules are imported, the call of an API, a step on a machine,
and a commit of the ledger. Settings, all taken out of the environment before anybody else sees it:

    REHEARSE_RECORD   a file that gets a line for each point that was reached
    REHEARSE_AT       "name#n side action": what happens there; side is before, after, or during (a
                      moment after it began); action is kill (-9), loss (the watchdog of
                      GPUCTL_HOME is killed in the same moment), stop (SIGSTOP) or full
                      (GPUCTL_HOME's disk has no more room)
    REHEARSE_CLOCK    seconds that this process's clock is wrong by

REHEARSE_HURRY stays and reaches the watchdog too: waits that are right for a cloud are shortened.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import json
import os
import re
import signal
import sys
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path

_AT = os.environ.pop("REHEARSE_AT", "")
_RECORD = os.environ.pop("REHEARSE_RECORD", "")
_CLOCK = float(os.environ.pop("REHEARSE_CLOCK", "0"))
_HURRY = "REHEARSE_HURRY" in os.environ
_SETTLE_SECONDS, _SHOWN_SECONDS, _POLL_SECONDS = 1.0, 2.0, 0.3
_DURING_SECONDS = 0.5

_lock = threading.Lock()
_counted: Counter[str] = Counter()
_inside = threading.local()


class Step:
    """One point: what is done between `before` and `after`.

    Args:
        within: it counts inside another point too.
    """

    def __init__(self, name: str, *, within: bool = False) -> None:
        self.name = name
        self.within = within

    def __enter__(self) -> None:
        depth = getattr(_inside, "depth", 0)
        _inside.depth = depth + 1
        if depth and not self.within:
            self.name = ""
            return
        with _lock:
            _counted[self.name] += 1
            self.name = f"{self.name}#{_counted[self.name]}"
            if _RECORD:
                with Path(_RECORD).open("a", encoding="utf-8") as file:
                    file.write(self.name + "\n")
        self._die("before")
        if f"{self.name} during" == _AT.rpartition(" ")[0]:
            timer = threading.Timer(_DURING_SECONDS, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()

    def __exit__(self, *_: object) -> None:
        _inside.depth -= 1
        if self.name:
            self._die("after")

    def _die(self, side: str) -> None:
        if f"{self.name} {side}" != _AT.rpartition(" ")[0]:
            return
        action = _AT.rpartition(" ")[2]
        if action == "full":
            _fill(Path(os.environ["GPUCTL_HOME"]) / "ballast")
        else:
            if action == "loss":
                _kill_watchdog(Path(os.environ["GPUCTL_HOME"]) / "watchdog.lock")
            os.kill(os.getpid(), signal.SIGSTOP if action == "stop" else signal.SIGKILL)


def _kill_watchdog(lock: Path) -> None:
    # None was started yet, or its successor is about to write its name: that is a case, too.
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(json.loads(lock.read_text())["pid"]), signal.SIGKILL)


def _fill(path: Path) -> None:
    """Leave no room on a disk."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"0" * size) == size:
                    pass


def _wrap(owner, method, name, *, within: bool = False) -> None:
    """Make a point of a method; ``name`` is its name, or makes one of its arguments."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def stepping(*given, **named):
        with Step(name if isinstance(name, str) else name(*given, **named), within=within):
            return original(*given, **named)

    setattr(owner, method, stepping)


# ---------------------------------------------------------------------------- the API


def _api(_pool, method, url, body=None, headers=None, **_more) -> str:
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    if found := re.match(r"(?:.*&)?Action=(\w+)", text):
        return f"api:{found[1]}"
    for name, value in dict(headers or {}).items():
        if name.lower() == "x-amz-target":
            value = value.decode() if isinstance(value, bytes) else value
            return f"api:{value.rpartition('.')[2]}"
    path = url.partition("?")[0].split("://")[-1]
    path = path[path.find("/") :] if "://" in url else path
    return f"api:{method} {'/'.join(_general(part) for part in path.strip('/').split('/'))}"


def _general(part: str) -> str:
    known = re.fullmatch(r"v\d|[a-z_-]+", part) and not part.startswith("gpuctl-")
    return part if known else "*"


def _http(module) -> None:
    _wrap(module.HTTPConnectionPool, "urlopen", _api)


# ---------------------------------------------------------------------------- the machine


def _gist(command) -> str:
    """What a command is about, in a word."""
    words = [command] if isinstance(command, str) else list(command)
    for word in words[1:]:
        if re.fullmatch(r"[a-z]{3,12}", word):
            return word
    first = words[0].split() if words else []
    return Path(first[0]).name[:20] if first else "shell"


def _machine(*methods: str):
    def hook(module) -> None:
        owner = getattr(module, "SshConnection", None) or module.LocalConnection
        for method in methods:
            named = method in ("run", "open", "open_channel")
            name = (
                (lambda _self, command, *_, _m=method, **__: f"ssh:{_m} {_gist(command)}")
                if named
                else f"ssh:{method}"
            )
            _wrap(owner, method, name)

    return hook


def _links(module) -> None:
    _wrap(module.SshLinks, "_log_in", "ssh:login", within=True)


def _host(module) -> None:
    _wrap(module.Shell, "ask", lambda _self, order, **_: f"ssh:host {order['do']}")


# ---------------------------------------------------------------------------- the local provider


def _local(module) -> None:
    module._LEFTOVER_SECONDS, module._BOOTING_SECONDS = 1, 3
    for verb in ("offers", "create", "get", "list", "destroy", "leftovers", "remove", "billed"):
        _wrap(module.LocalProvider, verb, f"api:{verb}")


def _account(module) -> None:
    for verb in ("add", "end"):
        _wrap(module.Account, verb, f"local:{verb}", within=True)


def _python(module) -> None:
    _wrap(module, "build", "local:build", within=True)


def _under_way(module) -> None:
    module.CREATE_SECONDS = 10.0


def _claims(module) -> None:
    module._MAKING_SECONDS = 5


# ---------------------------------------------------------------------------- the ledger


def _ledger(_module) -> None:
    import sqlite3

    class Watched(sqlite3.Connection):
        kinds: tuple[str, ...] = ()

        def execute(self, statement, *values):
            if statement.startswith("BEGIN"):
                self.kinds = ()
            elif statement.startswith("INSERT INTO events"):
                kind, facts = values[0][2], values[0][5]
                state = re.search(r'"state": ?"(\w+)"', facts) if kind == "run_state" else None
                self.kinds += (f"{kind} {state[1]}" if state else kind,)
            elif statement == "COMMIT":
                with Step("ledger:" + ("+".join(self.kinds) or "make"), within=True):
                    return super().execute(statement, *values)
            return super().execute(statement, *values)

    sqlite3.connect = functools.partial(sqlite3.connect, factory=Watched)


def _guarding(module) -> None:
    _wrap(module, "_start", "guard:watchdog")


# ---------------------------------------------------------------------------- time


def _base(module) -> None:
    if _CLOCK:
        original = module.SystemClock.now
        module.SystemClock.now = lambda self: original(self) + timedelta(seconds=_CLOCK)


def _quicker(name: str, **constants: float):
    """Shorten what a provider takes for settled, and how often it is asked."""

    def hook(module) -> None:
        from dataclasses import replace

        for constant, value in constants.items():
            setattr(module, constant, value)
        owner = getattr(module, name)
        slow = owner.capabilities.fget
        owner.capabilities = property(
            lambda self: replace(
                slow(self),
                settle_seconds=_SETTLE_SECONDS,
                shown_seconds=min(slow(self).shown_seconds, _SHOWN_SECONDS),
                poll_seconds=_POLL_SECONDS,
            )
        )

    return hook


_POINTS = {
    "urllib3.connectionpool": _http,
    "gpuctl.remote.ssh": _machine("run", "open", "open_channel", "sftp"),
    "gpuctl.remote.local": _machine("run", "open", "put", "get", "write"),
    "gpuctl.remote.ssh_links": _links,
    "providers.ssh_shell": _host,
    "providers.local": _local,
    "providers.local_account": _account,
    "providers.local_python": _python,
    "gpuctl.ledger.opening": _ledger,
    "gpuctl.fleet.guarding": _guarding,
}
_TIMES = {
    "providers.base": _base,
    "providers.ssh_claims": _claims,
    "gpuctl.fleet.under_way": _under_way,
    "providers.aws": _quicker("AwsProvider", SETTLE_SECONDS=_SETTLE_SECONDS),
    "providers.hetzner": _quicker("HetznerProvider"),
    "providers.runpod": _quicker("RunpodProvider"),
    "providers.vastai": _quicker("VastProvider", PACE_FACTOR=0.0),
}


class _Finder(importlib.abc.MetaPathFinder):
    """Lets a hook see a module right after it was executed."""

    def __init__(self, hooks) -> None:
        self.hooks = hooks

    def find_spec(self, name, path, target=None):
        if name not in self.hooks:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute, hook = spec.loader.exec_module, self.hooks[name]

        def executed(module) -> None:
            execute(module)
            hook(module)

        spec.loader.exec_module = executed
        return spec


if _HURRY:
    sys.meta_path.insert(0, _Finder(_POINTS | _TIMES))
