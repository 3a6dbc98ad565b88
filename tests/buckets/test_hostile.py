"""A machine whose end of the conversation lies, babbles or says nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gpuctl.buckets import bring, send, talking
from gpuctl.errors import RemoteError, StoreError
from gpuctl.remote.local import LocalConnection
from providers.base import LocalAccess
from tests.buckets.conftest import NAME, MakeTrip, at, keys
from tests.waiting import until


class Liar(LocalConnection):
    """Says what it was told to say, and notes what it hears."""

    def __init__(self, root: Path, says: Sequence[object]) -> None:
        super().__init__(LocalAccess(str(root), (), {"PATH": os.environ["PATH"]}), machine=NAME)
        self.says, self.heard = says, b""

    def open(self, command: Sequence[str]) -> Any:
        return self

    def send(self, data: bytes) -> None:
        self.heard += data

    def close_stdin(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float) -> int:
        return 0

    def lines(self) -> Iterator[bytes]:
        for said in self.says:
            yield said if isinstance(said, bytes) else json.dumps(said).encode()


HELLO = {"t": "hello", "python": "3.11"}


@pytest.mark.parametrize(
    "says",
    [
        [b"Welcome to Ubuntu"],
        [[1, 2]],
        [{"t": 5}],
        [HELLO, {"t": "want", "files": [7]}],
        [HELLO, {"t": "want", "files": "all"}],
        [HELLO, {"t": "want", "files": [[0]]}],
        [HELLO, {"t": "want", "files": [0]}, {"t": "done", "i": 3}],
        [HELLO, {"t": "want", "files": [0]}, {"t": "url", "i": "0", "part": 0}],
    ],
)
def test_nonsense_while_bringing(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, says: list[object]
) -> None:
    s3.put_object(Bucket=bucket, Key="p/a", Body=b"x")
    with pytest.raises(RemoteError, match="cannot be believed") as raised:
        bring(trip(connection=Liar(root, says)), at(bucket, "p"), "data")
    assert raised.value.machine == NAME


def listed(*files: object) -> list[object]:
    return [HELLO, {"t": "kind", "kind": "dir"}, {"t": "files", "files": files}, {"t": "listed"}]


@pytest.mark.parametrize(
    "says",
    [
        listed(["a", -1]),
        listed(["a", 10**15]),
        listed(["a"]),
        listed("a"),
        [*listed(["a", 1]), {"t": "done", "i": 5}],
        [*listed(["a", 1]), {"t": "url", "i": 0, "part": 1}],
        [*listed(["a", 200 << 20]), {"t": "done", "i": 0, "etags": ["x"]}],
    ],
)
def test_nonsense_while_sending(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, says: list[object]
) -> None:
    with pytest.raises(RemoteError, match="cannot be believed"):
        send(trip(connection=Liar(root, says)), "out", at(bucket, "p"))
    assert keys(s3, bucket) == {}


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "", "a//b"])
def test_it_cannot_name_a_key_elsewhere(trip: MakeTrip, bucket: str, root: Path, path: str) -> None:
    liar = Liar(root, listed([path, 1]))
    with pytest.raises(StoreError, match="can be no key in S3"):
        send(trip(connection=liar), "out", at(bucket, "p"))
    assert b"X-Amz" not in liar.heard


def test_what_it_claims_to_have_sent_is_looked_for(trip: MakeTrip, bucket: str, root: Path) -> None:
    liar = Liar(root, [*listed(["a", 1]), {"t": "done", "i": 0, "etags": []}])
    with pytest.raises(StoreError, match="p/a is not there as it was sent"):
        send(trip(connection=liar), "out", at(bucket, "p"))


def test_what_it_says_cannot_touch_a_terminal(trip: MakeTrip, bucket: str, root: Path) -> None:
    says = [HELLO, {"t": "fail", "kind": "disk", "message": "\x1b[2J", "path": "\x1b]0;x\x07"}]
    with pytest.raises(RemoteError) as raised:
        send(trip(connection=Liar(root, says)), "out", at(bucket, "p"))
    assert raised.value.message.isprintable()


@pytest.mark.slow
def test_one_that_says_nothing_is_not_waited_for(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(talking, "_SILENT_SECONDS", 0.3)
    monkeypatch.setattr("gpuctl.buckets.bringing.BREAKS", 1)
    tools = tmp_path / "bin"
    tools.mkdir()
    fake = tools / "python3"
    fake.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    fake.chmod(0o755)
    s3.put_object(Bucket=bucket, Key="p/a", Body=b"x")
    env = {"PATH": str(tools), "MARK": str(root)}
    silent = LocalConnection(LocalAccess(str(root), (), env), machine=NAME)
    with pytest.raises(RemoteError, match="broke off"):
        bring(trip(connection=silent), at(bucket, "p"), "data")
    assert until(lambda: not (root / "data").exists(), 1)
