"""Freezes and restarts in the middle: of a command, of a stream, of a transfer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gpuctl.errors import RemoteError
from gpuctl.remote.ssh import SshConnection
from gpuctl.remote.ssh_login import Patience
from tests.remote.conftest import BRIEF, Connect
from tests.remote.relay import Relay
from tests.remote.sshd import Sshd
from tests.waiting import until

MIB = 1 << 20
SIZE = 6 * MIB
BEATS = ["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.15; done"]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


@pytest.fixture
def narrow(relay: Relay) -> Relay:
    """A link on which the transfer of these tests takes a second or two."""
    relay.bandwidth = 8 * MIB
    return relay


class Moving:
    """A file that is under way, up or down."""

    def __init__(
        self, connection: SshConnection, pool: ThreadPoolExecutor, folder: Path, way: str
    ) -> None:
        self.origin, self.goal = folder / "origin", folder / "goal"
        self.origin.write_bytes(os.urandom(SIZE))
        self.done: Future[object]
        if way == "up":
            self.done = pool.submit(connection.put, self.origin, str(self.goal))
        else:
            self.done = pool.submit(connection.get, str(self.origin), self.goal)

    def arrived(self) -> bool:
        return self.goal.read_bytes() == self.origin.read_bytes()


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def under_way(relay: Relay, size: int) -> bool:
    """Whether so many bytes came through in the end."""
    return until(lambda: relay.moved > size, 20)


# ---------------------------------------------------------------------- freezes


def test_a_stream_survives_a_short_freeze(relay: Relay, connect: Connect) -> None:
    lines = connect(relay).open(BEATS).lines()
    assert next(lines) == b"1"
    relay.freeze()
    wait(0.8)
    relay.thaw()
    assert list(lines) == [b"%d" % number for number in range(2, 9)]
    assert relay.connections == 1


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_transfer_survives_a_short_freeze(
    narrow: Relay, connect: Connect, pool: ThreadPoolExecutor, tmp_path: Path, way: str
) -> None:
    moving = Moving(connect(narrow), pool, tmp_path, way)
    assert under_way(narrow, 2 * MIB)
    narrow.freeze()
    wait(0.8)
    assert not moving.done.done()
    before = narrow.connections
    narrow.thaw()
    moving.done.result(30)
    assert moving.arrived()
    assert narrow.connections == before


@pytest.mark.slow
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_transfer_goes_on_after_a_freeze_that_broke_the_link(
    narrow: Relay, connect: Connect, pool: ThreadPoolExecutor, tmp_path: Path, way: str
) -> None:
    connection = connect(narrow)
    moving = Moving(connection, pool, tmp_path, way)
    assert under_way(narrow, 3 * MIB)
    narrow.freeze()
    assert until(lambda: not connection.connected, 10)
    narrow.cut()  # what was held is lost, as on a real network
    narrow.thaw()
    begun = narrow.moved
    moving.done.result(60)
    assert moving.arrived()
    assert narrow.moved - begun < SIZE  # what had arrived was not sent again


@pytest.mark.slow
def test_a_transfer_ends_when_the_freeze_does_not(
    narrow: Relay, connect: Connect, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    hasty = replace(BRIEF, connect=0.5, login=0.5, reconnect=0.5, idle=1, silent=1)
    moving = Moving(connect(narrow, patience=hasty), pool, tmp_path, "up")
    assert under_way(narrow, 3 * MIB)
    narrow.freeze()
    with pytest.raises(RemoteError):
        moving.done.result(60)
    assert not moving.goal.exists()


def test_a_command_breaks_cleanly_after_a_long_freeze(
    relay: Relay, connect: Connect, pool: ThreadPoolExecutor
) -> None:
    connection = connect(relay)
    connection.run(["true"], timeout=20)
    running = pool.submit(connection.run, "sleep 20", timeout=30)
    wait(0.3)
    relay.freeze()
    begun = time.monotonic()
    with pytest.raises(RemoteError, match=r"broke while a command ran there: nothing came"):
        running.result(20)
    assert BRIEF.silent - 0.5 < time.monotonic() - begun < BRIEF.silent + 3
    relay.cut()
    relay.thaw()
    assert connection.run(["echo", "again"], timeout=20).stdout == b"again\n"


@pytest.mark.slow
def test_thirty_real_seconds_are_survived_by_everything(
    relay: Relay, connect: Connect, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    relay.bandwidth = 8 * MIB
    connection = connect(relay, patience=Patience())
    running = pool.submit(connection.run, "sleep 35; echo whole", timeout=90)
    lines = pool.submit(
        lambda: list(connection.open(["sh", "-c", "echo 1; sleep 35; echo 2"]).lines())
    )
    moving = Moving(connection, pool, tmp_path, "up")
    assert under_way(relay, 3 * MIB)
    before = relay.connections
    relay.freeze()
    wait(30)
    relay.thaw()
    moving.done.result(60)
    assert moving.arrived()
    assert running.result(60).stdout == b"whole\n"
    assert lines.result(60) == [b"1", b"2"]
    assert relay.connections == before


# ---------------------------------------------------------------------- restarts


@pytest.mark.parametrize("way", ["up", "down"])
def test_sshd_is_restarted_in_the_middle_of_a_transfer(
    sshd: Sshd, narrow: Relay, connect: Connect, pool: ThreadPoolExecutor, tmp_path: Path, way: str
) -> None:
    moving = Moving(connect(narrow), pool, tmp_path, way)
    assert under_way(narrow, 3 * MIB)
    sshd.stop()
    begun = narrow.moved
    sshd.start()
    moving.done.result(60)
    assert moving.arrived()
    assert narrow.moved - begun < SIZE
    assert sshd.log.count("Server listening") >= 2


def test_sshd_is_restarted_under_a_stream(sshd: Sshd, connect: Connect) -> None:
    connection = connect()
    lines = connection.open(BEATS).lines()
    assert next(lines) == b"1"
    sshd.stop()
    with pytest.raises(RemoteError, match="was lost"):
        list(lines)
    sshd.start()
    assert next(connection.open(BEATS).lines()) == b"1"


def test_a_command_that_stops_reading_is_given_up(connect: Connect) -> None:
    connection = connect(patience=replace(BRIEF, idle=1))
    process = connection.open(["sleep", "66"])
    begun = time.monotonic()
    with pytest.raises(RemoteError, match="took no input for 1 s"):
        process.send(bytes(64 * MIB))
    assert time.monotonic() - begun < 4
    process.kill()
    with pytest.raises(RemoteError, match="did not end within 1 s and was killed"):
        connection.run(["sleep", "67"], stdin=bytes(64 * MIB), timeout=1)
    assert connection.run(["echo", "well"], timeout=20).stdout == b"well\n"
