"""Uploads by gpuctl against scp, rsync and tar, on one sshd, in turns, in one run.

    python benchmarks/transfer.py [--quick] [--rounds N] [--link near far slow] [--work NAME ...]

Peers run with their defaults and once more with AES-GCM; the better one counts. Everybody starts
without a connection. Links: near is loopback, far 50 ms at 1 Gbit/s, slow 100 ms at 100 Mbit/s,
the last two through a shaping relay in a process of its own. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpuctl.remote.keys import key_file, public_key
from gpuctl.remote.ssh import SshConnection
from providers.base import SshAccess
from tests.remote.sshd import Sshd

MIB = 1 << 20
LINKS = {"near": (0.0, None), "far": (0.05, 125e6), "slow": (0.1, 12.5e6)}
GOALS = {  # at most so many times the best peer
    "near": dict.fromkeys(["bytes", "small", "resync", "delta", "jsonl"], 1.05),
    "far": {"bytes": 0.4, "small": 1.0, "resync": 0.65, "delta": 0.9, "jsonl": 0.8},
    "slow": dict.fromkeys(["bytes", "small", "resync", "delta", "jsonl"], 1.0),
}
GCM = "aes128-gcm@openssh.com"
MEMORY_LIMIT = 150e6


@dataclass
class Work:
    """What is moved: ``before`` is there already, ``source`` is what it should become."""

    source: Path
    before: Path | None = None


def make_works(folder: Path, quick: bool, link: str) -> dict[str, Callable[[], Work]]:
    """Name -> what makes the files of a workload."""
    scale = 16 if quick else 1
    slow = 16 if link == "slow" and not quick else 1

    def write(path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            for at in range(0, size, MIB):
                out.write(os.urandom(min(MIB, size - at)))

    def many() -> Work:
        for number in range(10_000 // scale):
            write(folder / "small" / f"d{number % 100}" / f"f{number}", 4096)
        return Work(folder / "small")

    def resync() -> Work:
        work = many()
        shutil.copytree(work.source, folder / "before")
        for number in range(0, 10_000 // scale, 100):
            write(work.source / f"d{number % 100}" / f"f{number}", 4096)
        return Work(work.source, folder / "before")

    def delta() -> Work:
        size = 512 * MIB // scale // slow
        write(folder / "delta" / "checkpoint", size)
        shutil.copytree(folder / "delta", folder / "before")
        chance = random.Random(1)
        with (folder / "delta" / "checkpoint").open("r+b") as out:
            for _ in range(size // 20 // MIB or 1):
                out.seek(chance.randrange(size - MIB))
                out.write(os.urandom(MIB))
        return Work(folder / "delta", folder / "before")

    def incompressible() -> Work:
        write(folder / "bytes" / "data", 1024 * MIB // scale // slow)
        return Work(folder / "bytes")

    def jsonl() -> Work:
        chance, size = random.Random(1), 300 * MIB // scale // slow
        words = [f"{chance.randrange(1 << 40):x}" for _ in range(5000)]
        (folder / "jsonl").mkdir()
        with (folder / "jsonl" / "data.jsonl").open("w") as out:
            while out.tell() < size:
                lines = [
                    json.dumps({"id": n, "text": " ".join(chance.choices(words, k=40))})
                    for n in range(1000)
                ]
                out.write("\n".join(lines) + "\n")
        return Work(folder / "jsonl")

    return {
        "bytes": incompressible,
        "small": many,
        "resync": resync,
        "delta": delta,
        "jsonl": jsonl,
    }


@dataclass
class Way:
    """Where the sshd is reached, and with which key."""

    port: int
    home: Path
    user: str

    def ssh(self, *more: str) -> list[str]:
        """Options of the system's tools, the port left out."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        chosen = [f"-o{option}" for option in (*options, "IdentitiesOnly=yes", *more)]
        return ["-i", str(key_file(self.home)), *chosen]


def peers(way: Way, work: Work, target: Path) -> dict[str, list[str]]:
    """Name -> argv of everybody else."""
    source, place = f"{work.source}/", f"{way.user}@127.0.0.1"
    found: dict[str, list[str]] = {}
    for cipher in ("", GCM):
        options = way.ssh(*([f"Ciphers={cipher}"] if cipher else []))
        name = " gcm" if cipher else ""
        shell = " ".join(["ssh", "-p", str(way.port), *options])
        if shutil.which("rsync"):
            for flags in ("-a", "-az"):
                argv = ["rsync", flags, "-e", shell, source, f"{place}:{target}/"]
                found[f"rsync {flags}{name}"] = argv
        if work.before:
            continue  # the others would send everything
        scp = ["scp", "-q", "-r", "-P", str(way.port), *options, str(work.source)]
        found[f"scp{name}"] = [*scp, f"{place}:{target}"]
        unpack = f"mkdir -p {target} && tar -xf - -C {target}"
        pipe = f"tar -cf - -C {source} . | {shell} {place} '{unpack}'"
        found[f"tar{name}"] = ["sh", "-c", pipe]
    if shutil.which("rclone") and not work.before:
        remote = f":sftp,host=127.0.0.1,port={way.port},user={way.user},key_file="
        argv = ["rclone", "copy", source, f"{remote}{key_file(way.home)}:{target}"]
        found["rclone sftp"] = argv
    return found


def ours(way: Way, work: Work, target: Path) -> tuple[float, float, float]:
    """Seconds of one upload in a process of its own; its CPU seconds and bytes of memory."""
    program = [sys.executable, __file__, "--one", str(way.port), str(way.home), way.user]
    began = time.perf_counter()
    done = subprocess.run(
        [*program, str(work.source), str(target)], check=True, stdout=subprocess.PIPE
    )
    whole = time.perf_counter() - began
    taken, cpu, memory = map(float, done.stdout.split())
    return min(whole, taken), cpu, memory


def one(port: str, home: str, user: str, source: str, target: str) -> None:
    """Connect and upload; prints seconds (without Python's own start), CPU seconds, memory."""
    began = time.perf_counter()
    access = SshAccess("127.0.0.1", int(port), user)
    connection = SshConnection(access, home=Path(home), machine=f"bench-{port}")
    connection.put(Path(source), target)
    taken = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    print(taken, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)
    connection.close()


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


def fresh(work: Work, target: Path) -> None:
    """Put the target into the state before a transfer."""
    shutil.rmtree(target, ignore_errors=True)
    if work.before:
        subprocess.run(["cp", "-a", str(work.before), str(target)], check=True)
    os.sync()


def same(work: Work, target: Path) -> bool:
    """Whether the content arrived."""
    for path in work.source.rglob("*"):
        if path.is_file():
            there = target / path.relative_to(work.source)
            if not there.is_file() or not filecmp.cmp(path, there, shallow=False):
                return False
    return True


def measure(way: Way, work: Work, target: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds by name; what arrived is compared."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, argv in peers(way, work, target).items():
            fresh(work, target)
            began = time.perf_counter()
            subprocess.run(argv, check=True, stderr=subprocess.DEVNULL, timeout=600)
            times.setdefault(name, []).append(time.perf_counter() - began)
        fresh(work, target)
        taken, cpu, memory = ours(way, work, target)
        times.setdefault("gpuctl", []).append(taken)
        times.setdefault("gpuctl CPU", []).append(cpu)
        times.setdefault("gpuctl MB", []).append(memory / 1e6)
        if not same(work, target):
            raise SystemExit(f"{work.source.name}: what arrived is not what was sent")
    return times


def report(link: str, name: str, times: dict[str, list[float]]) -> bool:
    """Print one workload; whether the goal was met."""
    medians = {who: statistics.median(taken) for who, taken in times.items()}
    mine, memory = medians.pop("gpuctl"), medians.pop("gpuctl MB")
    cpu = medians.pop("gpuctl CPU")
    best = min(medians, key=lambda who: medians[who])
    ratio, goal = mine / medians[best], GOALS[link][name]
    met = ratio <= goal and memory * 1e6 <= MEMORY_LIMIT
    others = "  ".join(f"{who} {taken:.2f}" for who, taken in sorted(medians.items()))
    print(
        f"{link:5}{name:8} gpuctl {mine:6.2f} s (CPU {cpu:.1f} s, {memory:.0f} MB)   "
        f"{ratio:4.2f} x {best}, goal {goal:.2f}: {'ok' if met else 'MISSED'}\n      {others}",
        flush=True,
    )
    return met


def main() -> None:
    """Measure in turns, so that a busy moment hits everybody."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--link", nargs="+", choices=LINKS, default=list(LINKS))
    parser.add_argument("--work", nargs="+", choices=GOALS["near"], default=list(GOALS["near"]))
    asked = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory(prefix="gpuctl-bench-") as folder:
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
                        data = base / "data"
                        data.mkdir()
                        work = make_works(data, asked.quick, link)[name]()
                        times = measure(way, work, base / "target", asked.rounds)
                        met &= report(link, name, times)
                        shutil.rmtree(data)
        finally:
            server.stop()
    sys.exit(not met)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        main()
