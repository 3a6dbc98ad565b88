"""The crash matrix, from the shell: `make faults`, `make faults-full`.

python -m tests.faults --seed 7                    every point once, paired by the seed
python -m tests.faults --full --shard 2/8          an eighth of everything; goes on where it was
python -m tests.faults --only KEY                  one case again, by its name
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path

from tests.faults.guarantee import write
from tests.faults.plan import Recording, product_of, record, sample, share
from tests.faults.play import COMMANDS, Case, Verdict, play
from tests.faults.sites import PROVIDERS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".make" / "faults"


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder of one case; kept where something went wrong."""
    path = Path(tempfile.mkdtemp(prefix="faults-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _play(case: Case) -> dict[str, object]:
    try:
        with _folder() as folder:
            verdict = play(case, folder)
    except Exception:
        verdict = Verdict(case.key, problems=[traceback.format_exc()[-3000:]])
    return {"case": asdict(case), "verdict": asdict(verdict)}


def _record(provider: str, command: str) -> Recording:
    """The points of a command, recorded again when the source has changed."""
    kept = RESULTS / f"points-{provider}-{command}.json"
    sources = [file for top in ("gpuctl", "providers") for file in (ROOT / top).rglob("*.py")]
    if kept.exists() and kept.stat().st_mtime > max(file.stat().st_mtime for file in sources):
        said = json.loads(kept.read_text())
        return Recording(provider, command, tuple(said["points"]), tuple(said["strikes"]))
    with _folder() as folder:
        made = record(provider, command, folder)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asdict(made), indent=1))
    return made


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _recordings(providers: Sequence[str], commands: Sequence[str], jobs: int) -> list[Recording]:
    with _pool(min(jobs, 3)) as pool:
        made = [pool.submit(_record, *pair) for pair in product(providers, commands)]
        return [one.result() for one in made]


def _known(path: Path) -> dict[str, dict[str, object]]:
    """What was played before, by the names of the cases."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["verdict"]["case"]: row for row in rows}


def _carry_out(cases: Sequence[Case], path: Path, jobs: int, seconds: float) -> bool:
    """Play what has not been played; return whether everything was, and is good."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _known(path)
    waiting = [case for case in cases if case.key not in done]
    deadline = time.monotonic() + seconds
    print(f"{len(waiting)} cases, {len(cases) - len(waiting)} known, {jobs} at a time", flush=True)
    late = 0
    with path.open("a") as file, _pool(jobs) as pool:
        playing = {pool.submit(_play, case): case for case in waiting}
        for number, future in enumerate(as_completed(playing), 1):
            if future.cancelled():
                late += 1
                continue
            row = future.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            _tell(number, len(waiting), row)
            if time.monotonic() > deadline:
                for other in playing:
                    other.cancel()
    done = _known(path)
    bad = [case.key for case in cases if case.key in done and not _good(done[case.key])]
    for key in bad:
        print(f"BROKEN {key}\n  .venv/bin/python -m tests.faults --only '{key}'")
    if late:
        print(f"{late} cases were not played: the time was over; repeat to go on", flush=True)
    return not bad and not late


def _good(row: dict[str, object]) -> bool:
    return Verdict(**row["verdict"]).good  # type: ignore[arg-type]


def _tell(number: int, of: int, row: dict[str, object]) -> None:
    verdict = Verdict(**row["verdict"])  # type: ignore[arg-type]
    word = "ok" if verdict.good else "BROKEN"
    case = Case(**row["case"])  # type: ignore[arg-type]
    word += " (not reached)" if case.dies and not verdict.reached else ""
    print(f"{number}/{of} {word} {verdict.case} {verdict.seconds} s", flush=True)
    if not verdict.good:
        print(json.dumps(row["verdict"], indent=1), flush=True)


def _only(key: str) -> bool:
    parts = key.split("/", 4)
    provider, command = parts[:2]
    rest = key.removeprefix(f"{provider}/{command}/")
    for one in _recordings([provider], [command], 1):
        cases = [case for seed in range(40) for case in sample([one], seed)]
        for case in [*cases, *product_of([one], 0)]:
            if case.key == key:
                row = _play(case)
                _tell(1, 1, row)
                return _good(row)
    print(f"there is no case {rest} of {provider} {command}")
    return False


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000))
    parser.add_argument("--full", action="store_true", help="everything, not a sample")
    parser.add_argument("--shard", default="1/1", help="i/n: one of n shares")
    parser.add_argument("--provider", action="append", choices=PROVIDERS)
    parser.add_argument("--command", action="append", choices=COMMANDS)
    parser.add_argument("--jobs", type=int, default=4 * (os.cpu_count() or 1))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", help="one case, by its name")
    parser.add_argument("--points", action="store_true", help="only list the points")
    parser.add_argument("--write", action="store_true", help="write docs/guarantee.md")
    return parser.parse_args()


def main() -> None:
    """Play what the options say; exit 1 when a promise was broken."""
    options = _options()
    if options.only:
        sys.exit(0 if _only(options.only) else 1)
    # The product is the same whatever the seed pairs: it goes on where it was.
    seed = 0 if options.full else options.seed
    providers, commands = options.provider or PROVIDERS, options.command or COMMANDS
    recordings = _recordings(providers, commands, options.jobs)
    if options.points:
        for one in recordings:
            print(*(f"{one.provider}/{one.command}/{point}" for point in one.points), sep="\n")
        return
    cases = product_of(recordings, seed) if options.full else sample(recordings, seed)
    cases = share(cases, *map(int, options.shard.split("/")))
    random.Random(seed).shuffle(cases)  # what is cut short has seen something of everything
    path = RESULTS / ("full.jsonl" if options.full else f"seed-{seed}.jsonl")
    print(f"seed {seed}: repeat with `make faults SEED={seed}`; results in {path}", flush=True)
    good = _carry_out(cases, path, options.jobs, options.minutes * 60)
    if options.write:
        known = _known(path)
        rows = [known[case.key] for case in cases if case.key in known]
        write(ROOT / "docs" / "guarantee.md", rows, seed, len(cases))
    sys.exit(0 if good else 1)
