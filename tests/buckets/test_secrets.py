"""No key of this computer's reaches a machine, and no address is left on it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from gpuctl.buckets import bring, send
from providers.processes import carriers
from tests.buckets.conftest import MakeTrip, at, files
from tests.store.endpoints import SECRET, settings

KEY_ID = settings("")["AWS_ACCESS_KEY_ID"]


def told_by_the_system(root: Path) -> bytes:
    """Command lines and environments of everything that runs on the machine."""
    found = b""
    for pid in carriers({"MARK": str(root)}):
        for name in ("cmdline", "environ"):
            found += (Path("/proc") / str(pid) / name).read_bytes()
    return found


def test_in_and_out(trip: MakeTrip, s3: Any, bucket: str, root: Path, said: list[str]) -> None:
    s3.put_object(Bucket=bucket, Key="p/a", Body=os.urandom(2 << 20))
    seen: list[bytes] = []

    def look(done: int, total: int) -> None:
        seen.append(told_by_the_system(root) + b"".join(files(root).values()))

    bring(trip(rate=3e6, progress=look), at(bucket, "p"), "data")
    send(trip(rate=3e6, progress=look), "data", at(bucket, "q"))
    assert sum(b"python3" in one for one in seen) > 2
    everything = b"".join(seen) + b"".join(files(root).values()) + "".join(said).encode()
    assert not re.search(f"{SECRET}|{KEY_ID}|X-Amz".encode(), everything)
