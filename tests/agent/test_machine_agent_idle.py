"""A machine that nobody uses ends itself, when that was asked for."""

from __future__ import annotations

import json
import os
import pty
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuctl.agent import machine_agent
from gpuctl.agent.machine_agent import Idleness, InUse, somebody_is_logged_in
from tests.agent.bench import AGENT
from tests.clouds.rented import Card, Rented, needs_machines
from tests.waiting import until


class TestIdleness:
    def test_it_is_over_after_so_long_without_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now, used = [1000.0], [False]
        monkeypatch.setattr(machine_agent, "ticks", lambda: now[0])
        idleness = Idleness(60, lambda: used[0])
        looks = []
        for second in range(200):
            now[0] = 1000.0 + second
            used[0] = second < 50
            looks.append(idleness.is_over())
        assert looks.index(True) in range(100, 112)
        assert not any(looks[:100])

    def test_what_cannot_be_seen_counts_as_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr(machine_agent, "ticks", lambda: now[0])

        def broken() -> bool:
            raise OSError("no /proc today")

        idleness = Idleness(10, broken)
        for second in range(100):
            now[0] = 1000.0 + second
            assert not idleness.is_over()


class TestInUse:
    @pytest.mark.parametrize(("percent", "used"), [("0", False), ("3", False), ("80", True)])
    def test_a_gpu_decides_where_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch, percent: str, used: bool
    ) -> None:
        monkeypatch.setattr(machine_agent, "somebody_is_logged_in", lambda: False)
        monkeypatch.setattr(machine_agent, "query_gpus", lambda *_: [["0"], [percent]])
        assert InUse()() is used

    def test_processors_decide_where_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now, spent = [1000.0], [{7: 100.0}]
        monkeypatch.setattr(machine_agent, "ticks", lambda: now[0])
        monkeypatch.setattr(machine_agent, "processor_seconds", lambda: spent[0])
        monkeypatch.setattr(machine_agent, "somebody_is_logged_in", lambda: False)
        monkeypatch.setattr(machine_agent, "query_gpus", lambda *_: [])
        in_use = InUse()
        now[0], spent[0] = 1010.0, {7: 100.5, 8: 0.1}
        assert in_use() is False  # 0.6 s in 10 s
        now[0], spent[0] = 1020.0, {7: 105.0}
        assert in_use() is True

    def test_an_open_terminal_is_a_login(self) -> None:
        child, terminal = pty.fork()
        if child == 0:
            os.execvp("sleep", ["sleep", "60"])  # noqa: S606
        try:
            assert until(somebody_is_logged_in, 5)
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
            os.close(terminal)


@needs_machines
class TestOnAMachine:
    @pytest.fixture
    def rented(self, tmp_path: Path) -> Iterator[Rented]:
        machine = Rented(tmp_path / "machine", card=Card("Tesla T4", 15360))
        machine.boot()
        yield machine
        machine.remove()

    def arm(self, rented: Rented, idle: float) -> None:
        orders = {
            "lease_seconds": 600,
            "hard_end": time.time() + 600,
            "end": {"argv": ["touch", "/root/ended"]},
            "on_lease_end": "end",
            "sync_grace_seconds": 1,
            "idle_seconds": idle,
        }
        (rented.folder / "root" / "agent.py").write_bytes(AGENT.read_bytes())
        said = shlex.quote(json.dumps(orders))
        command = f"echo {said} | /usr/bin/python3 -I /root/agent.py arm /root/.agent"
        assert rented.start(command).wait(20) == 0, (rented.folder / "boot.log").read_text()

    def ended(self, rented: Rented) -> bool:
        return (rented.folder / "root" / "ended").exists()

    def test_it_ends_when_nobody_uses_it(self, rented: Rented) -> None:
        self.arm(rented, 1.0)
        assert until(lambda: self.ended(rented), 15)
        guard = json.loads((rented.folder / "root/.agent/guard.json").read_text())
        assert guard["idle"] is True

    def test_a_login_keeps_it(self, rented: Rented) -> None:
        session = rented.start("script -qc 'sleep 4' /dev/null")
        self.arm(rented, 1.0)
        session.wait(20)
        assert not self.ended(rented)
        assert until(lambda: self.ended(rented), 15)
