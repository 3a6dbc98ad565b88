"""One case of the crash matrix, played: a command dies at a point, one ending does its work alone.

The verdict is asked of the cloud's own books and of the system, never of gpuctl.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from gpuctl.ledger import Ledger
from providers.base import SystemClock
from tests.faults.sites import Site, site
from tests.faults.strikes import SLOW_SECONDS
from tests.waiting import until

COMMANDS = ("provision", "run", "terminate")
ENDINGS = ("watchdog", "machine", "reap")
LEASE = 8.0
PATIENT_LEASE = 60.0  # where nobody dies
_TERMINATED_LEASE = 16.0  # of a machine that waits for its `terminate`
_HARD_END = 24.0  # from the intent on; only where the machine's boot timer is on trial
_LIFTED_AFTER = 8.0
_COMMAND_SECONDS = 60.0
_STUCK_SECONDS = 12.0  # for commands that cannot come to an end
_ENDING_SECONDS = 75.0
_STUCK = ("never ready", "host vanished")
_KILLED_LATE = 124

JOB = """
name: count
{more}
run: |
  for i in 1 2 3; do
    echo "step $i"
    echo $i > "$GPUCTL_CHECKPOINT_DIR/.s"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.2
  done
  mkdir -p out
  echo done > out/result.txt
outputs: [{{from: out, to: ./artifacts}}]
"""


_Process = subprocess.Popen[str]


@dataclass(frozen=True, order=True)
class Case:
    """What dies where, who is left, and what goes wrong besides.

    Attributes:
        point: of the recording ("api:RunInstances#1"); empty: nothing dies, something goes wrong.
        side: before or after it.
        ending: who is left.
        strike: of the cloud (see `strikes`); empty for none.
        action: what happens at the point: kill, loss (of every process of gpuctl at once, as by
            `kill -9 -1`), stop (for longer than the lease) or full (a disk without room below the
            ledger).
        clock: seconds that the clock of the command is wrong by.
    """

    provider: str
    command: str
    point: str
    side: str
    ending: str
    strike: str = ""
    action: str = "kill"
    clock: int = 0

    @property
    def dies(self) -> bool:
        """Whether the command is meant to die at the point."""
        return bool(self.point) and self.action in ("kill", "loss")

    @property
    def key(self) -> str:
        """Its name, by which it is played again alone."""
        more = [self.strike, "" if self.action == "kill" else self.action]
        more += [f"clock {self.clock:+d}" if self.clock else ""]
        parts = [self.provider, self.command, self.point, self.side, self.ending, *more]
        return "/".join(part for part in parts if part)


@dataclass
class Verdict:
    """What the books said.

    Attributes:
        reached: whether the command died at the point; else it came to its own end before.
        rented: machines ever, for the one need.
        leaked: what still billed when the ending should have been done.
        stopped: what was there then and costs nothing: the best that a stop-only key can do.
        seconds: from the death until nothing billed.
        problems: everything else that should not be.
    """

    case: str
    reached: bool = False
    rented: int = 0
    doubled: bool = False
    leaked: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    seconds: float | None = None
    took: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not (self.leaked or self.doubled or self.problems)


def play(case: Case, folder: Path) -> Verdict:
    """Play one case in an empty folder."""
    began = time.monotonic()
    verdict = Verdict(case.key)
    with site(case.provider, folder) as where, _disk(case, where):
        name = provisioned(where, action=case.action) if case.command == "terminate" else ""
        lift = where.strikes[case.strike]() if case.strike else lambda: None
        later = threading.Timer(_LIFTED_AFTER, lift)
        alone = case.strike == "key revoked" and not case.point
        if not alone:
            later.start()
        try:
            process = begin(where, case, name)
            code, said = _died(process, case)
            if alone:  # until the command has come to its end with it
                later.start()
            verdict.reached = code == -signal.SIGKILL and case.dies
            _check_words(case, code, said, verdict)
            died = time.monotonic()
            _end(where, case, verdict)
            verdict.seconds = _zero(where, case, died, verdict)
            _count(where, case, verdict)
        finally:
            later.cancel()
            lift()
        _make_room(where)
        _settle_up(where, verdict)
    verdict.took = round(time.monotonic() - began, 1)
    return verdict


# -------------------------------------------------------------------------------- the command


def begin(
    where: Site,
    case: Case,
    name: str = "",
    *,
    lease: float = LEASE,
    record: Path | None = None,
) -> _Process:
    """Start the command of a case; it dies where the case says."""
    made = where.rehearsal
    settings = {"REHEARSE_AT": f"{case.point} {case.side} {case.action}" if case.point else ""}
    settings["REHEARSE_CLOCK"] = str(case.clock)
    if record is not None:
        settings["REHEARSE_RECORD"] = str(record)
    made.settings.update(settings)
    try:
        return made.start(*_arguments(where, case, name, lease))
    finally:
        for setting in settings:
            del made.settings[setting]


def _arguments(where: Site, case: Case, name: str, lease: float) -> list[str | Path]:
    chosen = ("--provider", where.provider, "--yes", "--lease", f"{lease:g}s", "--json")
    short = case.ending == "machine" and where.timers.boot
    small = case.action == "full" and case.provider == "local"  # its disk is that of the home
    if case.command == "provision":
        hours = f"{_HARD_END / 3600:.5f}" if short else "1"
        disk = ("--disk", "0.05") if small else ()
        return ["provision", *where.wanted, *disk, "--max-hours", hours, *chosen]
    if case.command == "run":
        more = "resources: {gpu: RTX-4090}\n" if where.wanted else ""
        more += "resources: {disk: 50MB}\n" if small else ""
        more += f"budget: {{max_duration: {_HARD_END:g}s}}\n" if short else ""
        return ["run", where.rehearsal.write_spec(JOB.format(more=more)), *chosen]
    return ["terminate", name, "--yes", "--json"]


def provisioned(where: Site, lease: float = _TERMINATED_LEASE, action: str = "kill") -> str:
    """A machine, rented without trouble; its name."""
    case = Case(where.provider, "provision", "", "", "", action=action)
    arguments = [one for one in _arguments(where, case, "", lease) if one != "--json"]
    code, document, err = where.rehearsal.gpuctl(*arguments, seconds=90)
    assert code == 0, err
    return str(document["machine"]["name"])


def _died(process: _Process, case: Case) -> tuple[int, str]:
    """Wait for the end of a command; one that hangs on is killed like the others."""
    seconds = _STUCK_SECONDS if case.strike in _STUCK else _COMMAND_SECONDS
    if case.action == "stop":
        stopped = until(lambda: process.poll() is not None or _is_stopped(process.pid), seconds)
        if stopped and process.poll() is None:
            threading.Event().wait(2 * LEASE + 4)
            process.send_signal(signal.SIGCONT)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate(timeout=10)
        return _KILLED_LATE, out + err
    return process.returncode, out + err


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _check_words(case: Case, code: int, said: str, verdict: Verdict) -> None:
    """What a command that came to its own end said and exited with."""
    if "Traceback" in said or "This is a bug" in said:
        verdict.problems.append(f"it broke: {said[-2000:]}")
    revoked = case.strike == "key revoked" and not case.point
    if revoked and case.command == "terminate" and (code != 6 or "credentials" not in said):
        verdict.problems.append(f"with a revoked key it exits with {code} and says {said[-500:]}")


# -------------------------------------------------------------------------------- the endings


def _end(where: Site, case: Case, verdict: Verdict) -> None:
    """Let the ending do its work; what was on its way to the cloud arrives meanwhile."""
    late = threading.Event()
    arriving = threading.Timer(SLOW_SECONDS + 1 if case.side == "during" else 0, late.set)
    arriving.start()
    if case.ending != "reap":
        late.wait()
    _ended(where, case, verdict)
    late.wait()


def _ended(where: Site, case: Case, verdict: Verdict) -> None:
    made = where.rehearsal
    if case.ending == "watchdog":
        until(lambda: not where.billing(), _ENDING_SECONDS, every=0.1)
        return
    made.kill_watchdog()
    if case.ending == "machine":
        until(lambda: not _costs(where, case), _ENDING_SECONDS, every=0.1)
        return
    patient = case.strike or case.action in ("stop", "full")
    deadline = time.monotonic() + (_ENDING_SECONDS if patient else 0)
    while True:
        code, document, err = made.gpuctl("reap", seconds=120)
        if code == 0 or time.monotonic() > deadline:
            break
        if code not in (4, 6):
            verdict.problems.append(f"reap exits with {code}: {err[-500:]}")
            break
    if code != 0:
        verdict.problems.append(f"reap exits with {code}: {document} {err[-500:]}")


def _costs(where: Site, case: Case) -> list[str]:
    """What bills; what a timer that can only stop has stopped counts when it costs something."""
    stops = case.ending == "machine" and where.timers.stops
    return sorted(one for one, price in where.billing().items() if price or not stops)


def _zero(where: Site, case: Case, died: float, verdict: Verdict) -> float | None:
    left = where.billing()
    verdict.leaked = _costs(where, case)
    verdict.stopped = sorted(one for one in left if one not in verdict.leaked)
    return None if verdict.leaked else round(time.monotonic() - died, 1)


def _count(where: Site, case: Case, verdict: Verdict) -> None:
    verdict.rented, most = where.rented()
    plain = not case.strike and case.action in ("kill", "loss")
    verdict.doubled = most > 1 or (plain and verdict.rented > 1)


def _settle_up(where: Site, verdict: Verdict) -> None:
    """Afterwards `reap` closes what is open in the books of gpuctl, and `audit` agrees."""
    made = where.rehearsal
    if _open(where) or not made.nothing_is_left():
        code, document, err = made.gpuctl("reap", seconds=120)
        if code != 0:
            verdict.problems.append(f"the last reap exits with {code}: {document} {err[-800:]}")
    code, document, err = made.gpuctl("audit", seconds=60)
    if code != 0 or document["billing"] or document["unaccounted"]:
        verdict.problems.append(f"audit exits with {code}: {document} {err[-500:]}")
    if left := where.billing():
        verdict.problems.append(f"after all: {sorted(left)}")
    if not until(made.nothing_is_left, 10):
        verdict.problems.append(f"left: {made.machine_folders()} {made.machine_processes()}")
    if rows := _open(where):
        verdict.problems.append(f"open in the ledger: {rows}")


def _open(where: Site) -> list[str]:
    with Ledger.open(where.rehearsal.home / "ledger.db", clock=SystemClock()) as ledger:
        return [row.name for row in ledger.machines(open_only=True)]


# -------------------------------------------------------------------------------- a full disk


@contextmanager
def _disk(case: Case, where: Site) -> Iterator[None]:
    """A small disk of its own for the home, where that is on trial; needs root."""
    if case.action != "full":
        yield
        return
    home = where.rehearsal.home
    home.mkdir(mode=0o700, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m,mode=0700", "tmpfs", str(home)]
    kept = {p.relative_to(home): p.read_bytes() for p in home.rglob("*") if p.is_file()}
    subprocess.run(mount, check=True, capture_output=True)
    for path, content in kept.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(content)
        (home / path).chmod(0o600)
    try:
        yield
    finally:
        where.rehearsal.kill_watchdog()
        subprocess.run(["umount", "-l", str(home)], check=True)


def _make_room(where: Site) -> None:
    (where.rehearsal.home / "ballast").unlink(missing_ok=True)
