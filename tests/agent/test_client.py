"""The controller's side, through a connection to a folder on this computer."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.agent.client import AgentClient, AgentRefused, find_python, guard_orders
from gpuctl.agent.messages import Beat, Job, LogLine, StateUpdate
from gpuctl.errors import RemoteError
from gpuctl.remote.connection import Completed
from gpuctl.remote.local import LocalConnection
from gpuctl.store.manifest import CorruptManifest
from providers.base import LocalAccess
from tests.agent.bench import AGENT, SECONDS, Bench
from tests.waiting import until


@pytest.fixture
def connection(bench: Bench) -> LocalConnection:
    env = {"PATH": os.environ["PATH"], "HOME": str(bench.root), "BENCH": bench.marks}
    return LocalConnection(LocalAccess(root=str(bench.root), enter=(), env=env), machine="m-1")


@pytest.fixture
def agent(bench: Bench, connection: LocalConnection) -> AgentClient:
    bench.dir.mkdir(mode=0o700)
    shutil.copy(AGENT, bench.dir)
    return AgentClient(connection, sys.executable, str(bench.dir), machine="m-1")


def in_an_hour() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def job(bench: Bench, command: str, **changes: Any) -> Job:
    document = {**bench.job(command), **changes}
    document["outputs"] = [output["from"] for output in document.pop("outputs", [])]
    return Job(**document)


class TestWhole:
    def test_from_arming_to_the_end(self, bench: Bench, agent: AgentClient) -> None:
        probe = agent.probe(str(bench.root))
        assert probe.cpus >= 1
        assert probe.ram_gb > 0.1
        assert probe.disk_free_gb > 0
        guard = agent.arm(guard_orders(lease_seconds=60, hard_end=in_an_hour(), end_argv=("true",)))
        assert (guard.state, guard.alive) == ("armed", True)
        assert agent.renew(120) == pytest.approx(time.time() + 120, abs=5)
        assert agent.status().job is None
        command = "echo hello; echo 1 > $CK/epoch-1; echo r > result; sleep 0.5"
        state = agent.submit(job(bench, command, outputs=[{"from": "result"}]))
        assert (state.run, state.attempt) == ("demo-1a2b3c", 1)
        seen = list(agent.watch(0))
        last = seen[-1]
        assert isinstance(last, StateUpdate)
        assert last.job is not None
        assert (last.job.phase, last.job.outcome, last.job.exit_code) == ("ended", "completed", 0)
        (checkpoint,) = last.job.checkpoints
        assert (checkpoint.name, checkpoint.step, checkpoint.shipped) == ("epoch-1", 1, True)
        assert checkpoint.at.tzinfo is not None
        (output,) = last.job.outputs
        assert (output.source, output.shipped, output.missing) == ("result", True, False)
        out = "".join(p.data for p in seen if isinstance(p, LogLine) and p.stream == "out")
        assert out == "hello\n"
        assert any(isinstance(piece, Beat) for piece in seen)
        assert last.guard is not None
        assert last.guard.alive

    def test_stop_and_grant(self, bench: Bench, agent: AgentClient) -> None:
        (bench.root / "store").write_text("a file in the way")
        agent.submit(job(bench, "echo 1 > $CK/.e; mv $CK/.e $CK/e1; sleep 600"))
        assert until(lambda: bench.quick_state()["sync"]["error"], SECONDS)
        bench.store = bench.root / "other" / "demo-1a2b3c"
        agent.grant({"kind": "folder", "path": str(bench.store)})
        bench.shipped("e1")
        agent.stop("cancelled", 5)
        assert bench.ended()["outcome"] == "cancelled"

    def test_restore(self, bench: Bench, agent: AgentClient) -> None:
        agent.submit(job(bench, "echo 1 > $CK/epoch-1"))
        bench.ended()
        (manifest,) = bench.manifests()
        dest = bench.root / "restored"
        source = {"folder": str(bench.store)}
        agent.restore(manifest, str(dest), source)
        assert dest.read_text() == "1\n"
        for blob in bench.store.glob("blobs/*/*"):
            blob.write_bytes(b"2\n")
        with pytest.raises(CorruptManifest):
            agent.restore(manifest, str(bench.root / "other"), source)

    def test_refusals_carry_their_reason(self, bench: Bench, agent: AgentClient) -> None:
        with pytest.raises(AgentRefused) as caught:
            agent.renew(60)
        assert caught.value.reason == "NotArmed"
        assert caught.value.machine == "m-1"
        with pytest.raises(AgentRefused) as caught:
            agent.stop("cancelled", 1)
        assert caught.value.reason == "NoJob"

    def test_a_job_does_not_show_its_secrets(self, bench: Bench) -> None:
        shown = repr(job(bench, "true", secrets={"T": "canary-1"}, store={"x": "canary-2"}))
        assert "canary" not in shown


class TestWatch:
    def test_reconnecting_with_offsets_loses_and_repeats_nothing(
        self, bench: Bench, agent: AgentClient
    ) -> None:
        agent.submit(
            job(bench, "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done")
        )
        offset, text, rounds = 0, "", 0
        while True:
            rounds += 1
            ended = False
            for number, piece in enumerate(agent.watch(offset)):
                if isinstance(piece, LogLine):
                    offset = piece.next
                    text += piece.data if piece.stream == "out" else ""
                elif isinstance(piece, StateUpdate) and piece.job is not None:
                    ended = piece.job.phase == "ended"
                if number == 7:
                    break  # the line is cut
            if ended:
                break
        assert rounds > 2
        assert text == "".join(f"line {number}\n" for number in range(300))

    def test_every_reader_gets_everything_also_after_the_end(
        self, bench: Bench, agent: AgentClient
    ) -> None:
        agent.submit(job(bench, "seq 400000"))
        bench.ended()
        others = AgentClient(agent._connection, sys.executable, str(bench.dir))
        for reader in (agent, others):
            pieces = [p for p in reader.watch(0) if isinstance(p, LogLine) and p.stream == "out"]
            text = "".join(piece.data for piece in pieces)
            assert text == "".join(f"{number}\n" for number in range(1, 400_001))

    def test_it_is_closed_from_another_thread(self, bench: Bench, agent: AgentClient) -> None:
        agent.submit(job(bench, "echo ready; sleep 600"))
        ready, over = threading.Event(), threading.Event()

        def read() -> None:
            for piece in agent.watch(0):
                if isinstance(piece, LogLine) and "ready" in piece.data:
                    ready.set()
            over.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        assert ready.wait(SECONDS)
        agent.close_watch()
        assert over.wait(SECONDS)
        assert agent.status().job is not None
        agent.close_watch()  # again, and with nothing to close

    def test_a_stream_that_breaks_off_is_an_error(self, bench: Bench, agent: AgentClient) -> None:
        agent.submit(job(bench, "echo ready; sleep 600"))
        watch = agent.watch(0)
        next(watch)
        (pid,) = [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if b"watch\0" + str(bench.dir).encode() in _cmdline(folder)
        ]
        os.kill(pid, 9)
        with pytest.raises(RemoteError, match="broke off"):
            list(watch)

    def test_a_supervisor_that_died_ends_the_watch(self, bench: Bench, agent: AgentClient) -> None:
        agent.submit(job(bench, "echo ready; sleep 600"))
        bench.said("ready")
        os.kill(bench.quick_state()["pid"], 9)
        last = list(agent.watch(0))[-1]
        assert isinstance(last, StateUpdate)
        assert last.job is not None
        assert last.job.supervisor_lost

    def test_a_bad_offset_is_a_sentence(self, bench: Bench, agent: AgentClient) -> None:
        agent.submit(job(bench, "echo hello"))
        bench.ended()
        with pytest.raises(AgentRefused, match="the log ends at"):
            list(agent.watch(1_000_000))


def _cmdline(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


class FakeProcess:
    def __init__(self, lines: Sequence[bytes]) -> None:
        self._lines = lines
        self.killed = False

    def lines(self) -> Iterator[bytes]:
        yield from self._lines

    def kill(self) -> None:
        self.killed = True


class FakeConnection:
    """Answers whatever it is given to answer."""

    home = "/home/x"

    def __init__(self, stdout: bytes = b"", *, stderr: bytes = b"", code: int = 0) -> None:
        self.answer = Completed(code, stdout, stderr)
        self.process = FakeProcess(stdout.split(b"\n"))

    def run(self, command: object, *, stdin: bytes = b"", timeout: float) -> Completed:
        return self.answer

    def open(self, command: Sequence[str]) -> FakeProcess:
        return self.process


def talking(*answer: Any, **more: Any) -> AgentClient:
    return AgentClient(FakeConnection(*answer, **more), "python3", "/dir")  # type: ignore[arg-type]


class TestAnswers:
    STATE = b'{"protocol":1,"run":"r","attempt":1,"phase":"running"'

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"garbage",
            b"[]",
            b'{"lease_until": NaN}',
            b'{"lease_until": true}',
            b'{"lease_until": "soon"}',
            b"{}",
            b"[" * 100_000,
            b"\xff\xfe",
        ],
    )
    def test_garbage_is_a_sentence(self, answer: bytes) -> None:
        with pytest.raises(RemoteError) as caught:
            talking(answer).renew(60)
        assert "Traceback" not in caught.value.message
        assert len(caught.value.message) < 300

    @given(st.binary(max_size=300))
    @settings(max_examples=200)
    def test_any_bytes_are_an_answer_or_an_error(self, answer: bytes) -> None:
        for call in (lambda a: a.renew(1), lambda a: a.status(), lambda a: list(a.watch(0))):
            try:
                call(talking(answer))
            except RemoteError:
                continue

    def test_unknown_keys_are_ignored_and_missing_ones_tolerated(self) -> None:
        said = b'{"protocol":2,"guard":null,"job":' + self.STATE + b',"new":{"x":1}}}'
        state = talking(said).status()
        assert state.job is not None
        assert state.job.checkpoints == ()
        assert state.job.sync.ok

    def test_a_shell_that_talks_first(self) -> None:
        assert talking(b'Welcome to Ubuntu!\n{"lease_until": 5.0}\n').renew(1) == 5

    def test_what_the_machine_says_cannot_play_with_the_terminal(self) -> None:
        error = b'{"error":{"kind":"X","message":"\\u001b]0;pwned\\u0007\\u001b[2Jgone"}}'
        with pytest.raises(AgentRefused) as caught:
            talking(error, code=1).renew(1)
        assert caught.value.message == "gone"

    def test_an_agent_that_crashed(self) -> None:
        with pytest.raises(RemoteError, match="SyntaxError"):
            talking(b"", stderr=b"  File x\nSyntaxError: invalid syntax\n", code=1).status()

    def test_kinds_of_lines_that_a_newer_agent_sends_are_passed_over(self) -> None:
        lines = [b'{"type":"weather"}', b'{"type":"state","job":' + self.STATE + b"}}"]
        watch = talking(b"\n".join(lines)).watch(0)
        assert isinstance(next(watch), StateUpdate)


class TestBegin:
    ORDERS: ClassVar = {"lease_seconds": 60, "end_argv": ("true",)}

    def test_everything_in_one_command(self, bench: Bench, connection: LocalConnection) -> None:
        calls: list[object] = []
        run = connection.run
        connection.run = lambda *a, **k: calls.append(a) or run(*a, **k)  # type: ignore
        agent, facts = AgentClient.begin(
            connection,
            str(bench.dir),
            str(bench.root),
            guard_orders(**self.ORDERS, hard_end=in_an_hour()),
            machine="m-1",
        )
        assert len(calls) == 1
        assert facts.cpus >= 1
        assert Path(agent.python).is_absolute()
        status = agent.status()
        assert status.guard is not None
        assert (status.guard.state, status.guard.alive) == ("armed", True)
        assert stat.S_IMODE(bench.dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((bench.dir / "machine_agent.py").stat().st_mode) == 0o600
        assert (bench.dir / "machine_agent.py").read_bytes() == AGENT.read_bytes()

    def test_a_python_that_does_not_do_is_passed_over(self, bench: Bench, tmp_path: Path) -> None:
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "python3").write_text("#!/bin/sh\nexit 127\n")  # as pyenv's are without a version
        (tools / "python3").chmod(0o755)
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "BENCH": bench.marks}
        connection = LocalConnection(LocalAccess(root=str(bench.root), enter=(), env=env))
        agent, _ = AgentClient.begin(
            connection,
            str(bench.dir),
            str(bench.root),
            guard_orders(**self.ORDERS, hard_end=in_an_hour()),
        )
        assert not agent.python.startswith(str(tools))

    def test_no_python(self, bench: Bench, tmp_path: Path) -> None:
        found = FakeConnection(b"", code=97)
        orders = guard_orders(**self.ORDERS, hard_end=in_an_hour())
        with pytest.raises(RemoteError, match="python3 of version") as caught:
            AgentClient.begin(found, "/x", "/", orders, machine="m-1")  # type: ignore[arg-type]
        assert caught.value.machine == "m-1"

    def test_a_folder_that_cannot_be_made(self, bench: Bench, connection: LocalConnection) -> None:
        (bench.root / "file").write_text("")
        orders = guard_orders(**self.ORDERS, hard_end=in_an_hour())
        with pytest.raises(AgentRefused, match="file") as caught:
            AgentClient.begin(connection, str(bench.root / "file/agent"), "/", orders)
        assert caught.value.reason == "Disk"

    def test_the_agent_says_no(self, bench: Bench, connection: LocalConnection) -> None:
        orders = {**guard_orders(**self.ORDERS, hard_end=in_an_hour()), "lease_seconds": "x"}
        with pytest.raises(AgentRefused, match="lease_seconds"):
            AgentClient.begin(connection, str(bench.dir), "/", orders)


class TestFindPython:
    def test_on_this_computer(self, connection: LocalConnection) -> None:
        python = find_python(connection)
        assert Path(python).is_absolute()
        done = connection.run([python, "-c", "print(1)"], timeout=10)
        assert done.stdout == b"1\n"

    def test_none(self, tmp_path: Path) -> None:
        found = FakeConnection(b"sh: 1: python3: not found\n", code=1)
        with pytest.raises(RemoteError) as caught:
            find_python(found, machine="m-1")  # type: ignore[arg-type]
        assert "python3" in caught.value.message
        assert caught.value.next
        assert caught.value.machine == "m-1"

    def test_one_that_is_too_old_is_passed_over(self, bench: Bench, tmp_path: Path) -> None:
        old = sorted(Path("~/.pyenv/versions").expanduser().glob("3.[67].*/bin/python3"))
        if not old:
            pytest.skip("there is no python3.6 or 3.7 on this computer")
        path = f"{old[0].parent}:{os.environ['PATH']}"
        env = {"PATH": path, "HOME": str(tmp_path)}
        connection = LocalConnection(LocalAccess(root=str(tmp_path), enter=(), env=env))
        assert find_python(connection) != str(old[0])
