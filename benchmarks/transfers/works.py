"""The workloads: files that are made anew for each benchmark."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
WORKS = ["bytes", "small", "resync", "delta", "jsonl", "code"]


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

    def later(path: Path) -> None:
        """Rsync looks at whole seconds only."""
        os.utime(path, (time.time() + 10, time.time() + 10))

    def many() -> Work:
        for number in range(10_000 // scale):
            write(folder / "small" / f"d{number % 100}" / f"f{number}", 4096)
        return Work(folder / "small")

    def resync() -> Work:
        work = many()
        subprocess.run(["cp", "-a", str(work.source), str(folder / "before")], check=True)
        for number in range(0, 10_000 // scale, 100):
            write(work.source / f"d{number % 100}" / f"f{number}", 4096)
            later(work.source / f"d{number % 100}" / f"f{number}")
        return Work(work.source, folder / "before")

    def delta() -> Work:
        size = 512 * MIB // scale // slow
        write(folder / "delta" / "checkpoint", size)
        subprocess.run(["cp", "-a", str(folder / "delta"), str(folder / "before")], check=True)
        chance = random.Random(1)
        with (folder / "delta" / "checkpoint").open("r+b") as out:
            for _ in range(size // 20 // MIB or 1):
                out.seek(chance.randrange(size - MIB))
                out.write(os.urandom(MIB))
        later(folder / "delta" / "checkpoint")
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

    def code() -> Work:
        """10 MB in 300 files: Python sources again and again, as long as they are needed."""
        sources = sorted((Path(__file__).parents[2] / "gpuctl").rglob("*.py"))
        text = b"".join(path.read_bytes() for path in sources)
        chance = random.Random(1)
        for number in range(300):
            path = folder / "code" / f"p{number % 20}" / f"m{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            at, size = chance.randrange(len(text) // 2), chance.randrange(2_000, 64_000)
            path.write_bytes(text[at : at + size])
        return Work(folder / "code")

    made = (incompressible, many, resync, delta, jsonl, code)
    return dict(zip(WORKS, made, strict=True))
