"""Trees to move, and what is compared afterwards."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

MIB = 1 << 20


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def small_files(root: Path, count: int = 300) -> None:
    for number in range(count):
        folder = root / f"d{number % 7}" / f"e{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number}").write_bytes(content(number, 4096))


def mixed(root: Path) -> None:
    """Modes, times, links, odd names, empty and sparse files, and one that goes in parts."""
    root.mkdir(parents=True, exist_ok=True)
    small_files(root, 40)
    (root / "empty").touch()
    (root / "spaces and 'quotes' \n").write_bytes(b"odd")
    Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff")).write_bytes(b"bytes")
    (root / "-rf").write_text("looks like an option")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "large").write_bytes(content(1, 9 * MIB + 17))
    os.utime(root / "large", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(3 * MIB)
        sparse.write(b"end")
        sparse.truncate(12 * MIB)
    (root / "link").symlink_to("run.sh")
    (root / "up").mkdir()
    (root / "up" / "link").symlink_to("../large")
    (root / "closed").mkdir()
    (root / "closed" / "file").write_text("in a folder that nobody may write to")
    (root / "closed").chmod(0o555)


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything of a tree that a transfer must keep."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(state.st_mode):
            found[name] = ("link", str(path.readlink()))
        elif stat.S_ISDIR(state.st_mode):
            found[name] = ("dir", stat.S_IMODE(state.st_mode))
        else:
            mode = stat.S_IMODE(state.st_mode)
            found[name] = ("file", mode, state.st_mtime_ns, path.read_bytes())
    return found
