"""Whether everything that gpuctl relies on is in order: home, ledger, guards, clock, providers."""

from __future__ import annotations

import getpass
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gpuctl.errors import GpuctlError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.guarding import watchdog_of
from gpuctl.quantities import format_gb
from providers.base import AuthFailed, Finding, ProviderError
from providers.registry import names

_TIGHT_DISK_GB = 1.0
_LINGERING = Path("/var/lib/systemd/linger")
_BUILT_AFTER = datetime(2026, 1, 1, tzinfo=UTC)
_CLOCK_SLACK = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the answer."""

    name: str
    ok: bool
    detail: str
    provider: str | None = None
    credentials: bool = False  # a provider's key is what this is about


def check_all(fleet: Fleet, named: Sequence[str]) -> list[Check]:
    """Check this computer, and every provider that is named or has credentials.

    Raises:
        UsageError: nobody has one of the names.
    """
    asked = list(dict.fromkeys(named)) or list(names())
    if named:
        for name in asked:
            fleet.provider(name)  # a wrong name is the asker's mistake
    with ThreadPoolExecutor(max_workers=max(len(asked), 1)) as pool:
        answers = list(pool.map(lambda name: check_provider(fleet, name, bool(named)), asked))
    return [*check_home(fleet), *(check for answer in answers for check in answer)]


def check_home(fleet: Fleet) -> list[Check]:
    """Check what is on this computer."""
    return [_disk(fleet), _owner(fleet), _ledger(fleet), _watchdog(fleet), _python(), _clock(fleet)]


def check_provider(fleet: Fleet, name: str, named: bool) -> list[Check]:
    """Ask one provider. Without credentials it is skipped with a word, unless it was named."""
    try:
        provider = fleet.provider(name)
        if not provider.configured():
            detail = "no credentials found; it is skipped everywhere but in `gpuctl quote`"
            return [Check("key", not named, detail, name, credentials=True)]
        findings = provider.check()
    except AuthFailed as error:
        return [Check("key", False, str(error), name, credentials=True)]
    except ProviderError as error:
        return [Check("answer", False, f"{error.kind}: {error}", name)]
    except GpuctlError as error:
        return [Check("settings", False, error.message, name)]
    return [_of_finding(finding, name) for finding in findings]


def _of_finding(finding: Finding, provider: str) -> Check:
    return Check(
        finding.name, finding.ok, finding.detail, provider, credentials=finding.name == "key"
    )


def _disk(fleet: Fleet) -> Check:
    free = shutil.disk_usage(fleet.home.path).free / 1e9
    return Check(
        "home", free >= _TIGHT_DISK_GB, f"{fleet.home.path}, {format_gb(round(free, 2))} free"
    )


def _owner(fleet: Fleet) -> Check:
    return Check("owner", True, f"{fleet.home.owner}; set GPUCTL_OWNER to it where a reaper runs")


def _ledger(fleet: Fleet) -> Check:
    problems = fleet.ledger.check()
    rows = fleet.ledger.machines(open_only=True)
    told = "; ".join(problems) or f"whole; {len(rows)} machines are open in it"
    return Check("ledger", not problems, told)


def _watchdog(fleet: Fleet) -> Check:
    keeper = watchdog_of(fleet.home)
    if keeper is not None:
        return Check("watchdog", True, f"process {keeper.pid} guards this home{_until_log_out()}")
    waiting = fleet.ledger.machines(open_only=True)
    if waiting:
        return Check(
            "watchdog",
            False,
            f"not running, and {len(waiting)} machines are open; `gpuctl reap` does its work once",
        )
    return Check("watchdog", True, "not running; nothing is rented, so nothing needs it")


def _until_log_out() -> str:
    """Say whether systemd ends what we started when this user logs out; "" when it does not."""
    try:
        session = Path("/proc/self/cgroup").read_text()
        lingers = (_LINGERING / getpass.getuser()).exists()
    except (OSError, KeyError):
        return ""
    if lingers or "/user@" not in session:
        return ""
    return "; it ends when you log out, unless you run `loginctl enable-linger`"


def _python() -> Check:
    return Check("python", True, f"{sys.version.split()[0]} at {sys.executable}")


def _clock(fleet: Fleet) -> Check:
    """Leases are moments: a clock that is far off would end machines early or late."""
    now = fleet.clock.now()
    if now < _BUILT_AFTER:
        return Check("clock", False, f"it says {now:%Y-%m-%d %H:%M} UTC, which is in the past")
    ahead = [r.intended_at for r in fleet.ledger.machines() if r.intended_at > now + _CLOCK_SLACK]
    if ahead:
        detail = f"it says {now:%Y-%m-%d %H:%M} UTC, and the ledger has a later entry: {max(ahead)}"
        return Check("clock", False, detail)
    return Check("clock", True, f"{now:%Y-%m-%d %H:%M:%S} UTC")
