"""Transfers by gpuctl against scp, rsync, tar and rclone, on one sshd, in turns, in one run.

    python benchmarks/transfer.py [--quick] [--rounds N] [--link near far slow] [--work NAME ...]
                                  [--peer NAME ...] [--down] [--folder PLACE] [--touch GB]

    python benchmarks/transfer.py --link far --work jsonl --peer 'rsync -az' --rounds 2

Links: near is loopback, far 50 ms at 1 Gbit/s, slow 100 ms at 100 Mbit/s, the last two through
a shaping relay in a process of its own. Peers run as people type them and once more with
AES-GCM; the better one counts, and of several rounds the best. gpuctl keeps one connection open
and shares it, so its figure starts from a connection that is open; beside it stands the figure
with the login included. CPU is user and system time of the process and its children, gpuctl's
with Python's own start, imports and the login; it is held against scp as people type it. Run it on
a quiet machine; on a virtual one whose host gives it memory only when it is first used, with
--touch, else who comes first pays for that.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.transfers.peers import Way, peers
from benchmarks.transfers.works import WORKS, Work, make_works
from gpuctl.remote.keys import public_key
from tests.remote.sshd import Sshd

LINKS = {"near": (0.0, None), "far": (0.05, 125e6), "slow": (0.1, 12.5e6)}
GOALS = {  # at most so many times the best peer
    "near": dict.fromkeys(WORKS, 1.05),
    "far": {"bytes": 0.4, "small": 1.0, "resync": 0.65, "delta": 0.9, "jsonl": 0.8, "code": 1.0},
    "slow": dict.fromkeys(WORKS, 1.0),
}
GOAL_AGAINST = {("far", "small"): ("rsync -a", 0.7)}  # besides, against one of them
GOAL_SECONDS = {("far", "code"): 0.6}
MEMORY_LIMIT = 150.0  # MB
CPU_LIMIT = 2.0  # times scp's
PATIENCE = 20.0, 5.0  # a peer is stopped after so many seconds and so many times the best so far


@dataclass
class Taken:
    """What one transfer took."""

    seconds: float
    cpu: float = 0.0
    stopped: bool = False  # it would have taken longer
    connected: float = 0.0  # seconds with the login included
    memory: float = 0.0  # MB


def run_peer(argv: list[str], patience: float) -> Taken:
    """Run one, for ``patience`` seconds at most."""
    began, deadline = time.perf_counter(), time.monotonic() + patience
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True)
    usage, stopped = None, False
    while usage is None:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            usage = used
            process.returncode = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline and not stopped:
            stopped = True
            os.killpg(process.pid, 9)
        else:
            time.sleep(0.002)
    taken = time.perf_counter() - began
    if process.returncode and not stopped:
        raise SystemExit(f"{argv[0]} failed with {process.returncode}")
    return Taken(taken, usage.ru_utime + usage.ru_stime, stopped)


def run_ours(way: Way, work: Work, target: Path, down: bool) -> Taken:
    """One transfer in a process of its own."""
    ours = ["down" if down else "up", str(way.port), str(way.home), way.user]
    program = [sys.executable, str(Path(__file__).parent / "transfers" / "ours.py"), *ours]
    argv = [*program, str(work.source), str(target)]
    # In a session of its own, as the peers: the kernel shares the processor out by session.
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, start_new_session=True)
    seconds, connected, cpu, memory = map(float, done.stdout.split())
    return Taken(seconds, cpu, connected=connected, memory=memory)


@contextmanager
def network(port: int, link: str) -> Iterator[int]:
    """The port at which the sshd is found behind that link."""
    round_trip, bandwidth = LINKS[link]
    if not round_trip:
        yield port
        return
    code = (
        "import sys; from tests.remote.relay import Relay; "
        f"r = Relay({port}, round_trip={round_trip}, bandwidth={bandwidth}); "
        "print(r.port, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    try:
        assert process.stdout
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def fresh(work: Work, target: Path) -> Path:
    """A new place in the state before a transfer.

    Trees of many files are not removed before the end: for minutes after it, ext4 looks at each
    of their inodes again whenever it makes a file.
    """
    if target.exists() and sum(1 for _ in target.rglob("*")) < 10:
        shutil.rmtree(target)
    place = target.with_name(f"target-{time.monotonic_ns()}")
    if work.before:
        subprocess.run(["cp", "-a", str(work.before), str(place)], check=True)
    os.sync()
    return place


def same(work: Work, target: Path) -> bool:
    """Whether the content arrived."""
    for path in work.source.rglob("*"):
        if path.is_file():
            there = target / path.relative_to(work.source)
            if not there.is_file() or not filecmp.cmp(path, there, shallow=False):
                return False
    return True


def measure(way: Way, work: Work, folder: Path, asked: argparse.Namespace) -> dict[str, Taken]:
    """The best of some rounds by name; what arrived is compared."""
    best: dict[str, Taken] = {}
    target = folder / "target"
    for _ in range(asked.rounds):
        for name in peers(way, work, target, down=asked.down):
            if (asked.peer and name not in asked.peer) or (name in best and best[name].stopped):
                continue
            target = fresh(work, target)
            argv = peers(way, work, target, down=asked.down)[name]
            least, times = PATIENCE
            fastest = min((taken.seconds for taken in best.values()), default=least * 30)
            keep(best, name, run_peer(argv, least + times * fastest))
            if not best[name].stopped and not same(work, target):
                raise SystemExit(f"{work.source.name}: {name} did not do it")
        target = fresh(work, target)
        keep(best, "gpuctl", run_ours(way, work, target, asked.down))
        if not same(work, target):
            raise SystemExit(f"{work.source.name}: what arrived is not what was sent")
    return best


def keep(best: dict[str, Taken], name: str, taken: Taken) -> None:
    """Keep the quicker one."""
    if name not in best or taken.seconds < best[name].seconds:
        best[name] = taken


def report(link: str, name: str, best: dict[str, Taken]) -> bool:
    """Print one workload; whether the goals were met."""
    others = dict(sorted(best.items(), key=lambda item: item[1].seconds))
    mine = others.pop("gpuctl")
    head = f"{link:5}{name:7} gpuctl {mine.seconds:6.2f} s, with login {mine.connected:6.2f} s"
    print(f"{head}, CPU {mine.cpu:.2f} s, {mine.memory:.0f} MB", flush=True)
    judged: list[tuple[str, float, float]] = []
    if others:
        first = next(iter(others))
        judged.append((first, mine.seconds / others[first].seconds, GOALS[link][name]))
        print(f"      with login {mine.connected / others[first].seconds:.2f} x {first}")
    rival, goal = GOAL_AGAINST.get((link, name), ("", 0.0))
    against = [other for other in (rival, f"{rival} gcm") if other in others]
    if against:
        quickest = min(against, key=lambda other: others[other].seconds)
        judged.append((quickest, mine.seconds / others[quickest].seconds, goal))
    if (link, name) in GOAL_SECONDS:
        judged.append(("second", mine.seconds, GOAL_SECONDS[link, name]))
    if "scp" in others and not others["scp"].stopped and name != "code":
        judged.append(("scp's CPU", mine.cpu / others["scp"].cpu, CPU_LIMIT))
    judged.append(("MB", mine.memory, MEMORY_LIMIT))
    for what, ratio, goal in judged:
        print(f"      {ratio:.2f} x {what}, goal {goal:.2f}: {'ok' if ratio <= goal else 'MISSED'}")
    for other, taken in others.items():
        sign = ">" if taken.stopped else " "
        print(f"      {other:14}{sign}{taken.seconds:6.2f} s, CPU {taken.cpu:.2f} s", flush=True)
    absent = [tool for tool in ("scp", "rsync", "rclone") if not shutil.which(tool)]
    if absent:
        print(f"      not installed: {', '.join(absent)}")
    return all(ratio <= goal for _, ratio, goal in judged)


def main() -> None:
    """Measure in turns, so that a busy moment hits everybody."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--link", nargs="+", choices=LINKS, default=list(LINKS))
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--peer", nargs="+", help="only these, as in the report; 'none' for none")
    parser.add_argument("--down", action="store_true", help="downloads, against the same goals")
    parser.add_argument("--folder", type=Path, help="where the files are made")
    parser.add_argument("--touch", type=int, default=0, help="GB of memory to use once first")
    asked = parser.parse_args()
    touch = "b = [b'x' * (1 << 30) for _ in range(int(__import__('sys').argv[1]))]"
    subprocess.run([sys.executable, "-c", touch, str(asked.touch)], check=True)
    met = True
    with tempfile.TemporaryDirectory(prefix="gpuctl-bench-", dir=asked.folder) as folder:
        base = Path(folder)
        home = base / "home"
        (base / "sshd").mkdir()
        home.mkdir(mode=0o700)
        server = Sshd(base / "sshd", authorized=[public_key(home)])
        server.start()
        try:
            for link in asked.link:
                with network(server.port, link) as port:
                    way = Way(port, home, server.access.user)
                    for name in asked.work:
                        data = base / f"{link}-{name}"
                        data.mkdir()
                        work = make_works(data, asked.quick, link)[name]()
                        met &= report(link, name, measure(way, work, data, asked))
                        if name not in ("small", "resync", "code"):
                            shutil.rmtree(data)
        finally:
            server.stop()
    sys.exit(not met)


if __name__ == "__main__":
    main()
