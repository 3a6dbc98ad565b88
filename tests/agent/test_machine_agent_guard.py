"""The guard: the machine is ended exactly when it should be, and again until it is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gpuctl.agent import machine_agent
from gpuctl.agent.machine_agent import Folder, Guard, Lease, new_lease, read_lease, write_lease
from tests.agent.bench import Bench
from tests.waiting import until


def ending(bench: Bench) -> dict[str, object]:
    """An end of the machine that only writes down that it was asked for."""
    return {"argv": ["sh", "-c", 'echo end >> "$1"', "sh", str(bench.root / "ended")]}


def ends(bench: Bench) -> int:
    path = bench.root / "ended"
    return path.read_text().count("end") if path.exists() else 0


class TestLeaseEnd:
    def test_the_machine_is_ended_when_the_lease_is_over_and_again(
        self, every_bench: Bench
    ) -> None:
        armed = time.time()
        state = every_bench.arm(lease_seconds=1, end=ending(every_bench))
        assert state["state"] == "armed"
        assert state["alive"] is True
        assert state["lease_until"] == pytest.approx(armed + 1, abs=0.9)
        assert until(lambda: ends(every_bench) >= 1, 10)
        assert time.time() >= armed + 1
        assert until(lambda: ends(every_bench) >= 3, 10), "until the machine is gone"
        assert every_bench.verb("status")["guard"]["state"] == "ending"

    def test_a_renewed_lease_is_kept(self, every_bench: Bench) -> None:
        every_bench.arm(lease_seconds=2, end=ending(every_bench))
        for _ in range(6):
            said = every_bench.verb("renew", "2")
            assert said["lease_until"] == pytest.approx(time.time() + 2, abs=1.5)
            threading.Event().wait(0.5)
        assert ends(every_bench) == 0
        assert until(lambda: ends(every_bench) >= 1, 10)

    def test_nothing_can_be_renewed_once_it_is_over(self, bench: Bench) -> None:
        bench.arm(lease_seconds=0, end=ending(bench))
        assert until(lambda: ends(bench) >= 1, 10)
        assert bench.refused("renew", "60")["kind"] == "LeaseEnded"
        orders = {"lease_seconds": 60, "hard_end": time.time() + 600, "end": ending(bench)}
        assert bench.refused("arm", stdin=orders)["kind"] == "LeaseEnded"

    def test_never_past_the_hard_end(self, bench: Bench) -> None:
        hard_end = time.time() + 2
        state = bench.arm(lease_seconds=600, hard_end=hard_end, end=ending(bench))
        assert state["lease_until"] == pytest.approx(hard_end, abs=0.1)
        assert bench.verb("renew", "600")["lease_until"] == pytest.approx(hard_end, abs=0.1)
        assert until(lambda: ends(bench) >= 1, 10)
        assert time.time() >= hard_end - 0.1

    def test_the_hard_end_comes_nearer_and_never_moves_away(self, bench: Bench) -> None:
        first = time.time() + 300
        assert bench.arm(hard_end=first)["hard_end"] == first
        assert bench.arm(hard_end=first + 500)["hard_end"] == first
        assert bench.arm(hard_end=first - 100)["hard_end"] == first - 100

    def test_a_process_is_signalled_until_it_is_gone(self, every_bench: Bench) -> None:
        pid_file = every_bench.root / "pid"
        # It takes the second SIGTERM to end it.
        program = f"""
import os, signal, sys, time
seen = []
def term(*_):
    seen.append(1)
    if len(seen) == 2: sys.exit()
signal.signal(signal.SIGTERM, term)
open({str(pid_file)!r}, "w").write(str(os.getpid()))
while True: time.sleep(0.01)
"""
        machine = subprocess.Popen(["python3", "-c", program])
        try:
            assert until(lambda: pid_file.exists() and pid_file.read_text(), 10)
            every_bench.arm(lease_seconds=0.3, end={"signal_pid": machine.pid})
            assert machine.wait(10) == 0
            assert until(lambda: every_bench.guard()["state"] == "ended", 10)
        finally:
            machine.kill()
            machine.wait()

    def test_an_end_that_fails_is_tried_again_and_told(self, bench: Bench) -> None:
        bench.arm(lease_seconds=0, end={"argv": ["/nonexistent/end"]})
        assert until(lambda: bench.guard().get("end_tries", 0) >= 2, 10)
        assert "could not be started" in str(bench.guard()["end_error"])
        assert bench.verb("status")["guard"]["alive"] is True

    def test_a_machine_that_cannot_end_itself(self, bench: Bench) -> None:
        bench.submit("sleep 600")
        bench.arm(lease_seconds=0.2, end={})
        assert bench.ended()["outcome"] == "lease"
        assert until(lambda: bench.guard()["state"] == "ended", 10)


class TestJob:
    def test_it_is_stopped_and_shipped_before_the_machine_ends(self, every_bench: Bench) -> None:
        every_bench.submit(
            "trap 'echo saved > $CK/last; exit 143' TERM; echo ready; while :; do sleep 0.1; done"
        )
        every_bench.said("ready")
        every_bench.arm(lease_seconds=0.5, end=ending(every_bench))
        state = every_bench.ended()
        assert (state["outcome"], state["exit_code"]) == ("lease", 143)
        assert every_bench.named() == {"last": b"saved\n"}
        assert until(lambda: ends(every_bench) >= 1, 10)
        assert (every_bench.root / "ended").stat().st_mtime >= state["ended_at"] - 0.1

    def test_a_store_that_is_down_does_not_keep_the_machine(self, bench: Bench) -> None:
        (bench.root / "store").write_text("a file in the way")
        bench.submit("trap '' TERM; echo x > $CK/e1; sleep 600", sync_seconds=600)
        bench.arm(lease_seconds=0.5, end=ending(bench), sync_grace_seconds=1.5)
        assert until(lambda: ends(bench) >= 1, 10)
        lease_until = bench.verb("status")["guard"]["lease_until"]
        assert (bench.root / "ended").stat().st_mtime < lease_until + 5

    def test_finish_lets_a_job_come_to_its_end(self, every_bench: Bench) -> None:
        every_bench.submit("while [ ! -e go ]; do sleep 0.05; done; echo done > $CK/last")
        every_bench.arm(lease_seconds=0.5, end=ending(every_bench), on_lease_end="finish")
        assert until(lambda: every_bench.guard()["state"] == "finishing", 10)
        assert every_bench.verb("status")["job"]["phase"] == "running"
        assert ends(every_bench) == 0
        (every_bench.work / "go").touch()
        assert every_bench.ended()["outcome"] == "completed"
        assert every_bench.named() == {"last": b"done\n"}
        assert until(lambda: ends(every_bench) >= 1, 10)

    def test_finish_can_be_renewed_while_the_job_goes_on(self, bench: Bench) -> None:
        bench.submit("sleep 600")
        bench.arm(lease_seconds=0.3, end=ending(bench), on_lease_end="finish")
        assert until(lambda: bench.guard()["state"] == "finishing", 10)
        bench.verb("renew", "60")
        assert until(lambda: bench.guard()["state"] == "armed", 10)

    def test_finish_without_a_job_is_over_at_once(self, bench: Bench) -> None:
        bench.arm(lease_seconds=0.3, end=ending(bench), on_lease_end="finish")
        assert until(lambda: ends(bench) >= 1, 10)

    def test_finish_ends_at_the_hard_end(self, bench: Bench) -> None:
        bench.submit("sleep 600")
        hard_end = time.time() + 1.5
        bench.arm(lease_seconds=0.3, hard_end=hard_end, end=ending(bench), on_lease_end="finish")
        assert until(lambda: ends(bench) >= 1, 10)
        assert bench.ended()["outcome"] == "lease"

    def test_finish_does_not_wait_for_a_supervisor_that_died(self, bench: Bench) -> None:
        bench.submit("sleep 600")
        bench.arm(lease_seconds=0.5, end=ending(bench), on_lease_end="finish")
        os.kill(bench.state()["pid"], signal.SIGKILL)
        assert until(lambda: ends(bench) >= 1, 10)

    def test_finish_does_not_trust_a_supervisor_that_overran_its_cap(self, bench: Bench) -> None:
        bench.submit("sleep 600", stop_after_seconds=3, term_grace_seconds=0.5)
        pid = bench.state()["pid"]
        os.kill(pid, signal.SIGSTOP)
        bench.arm(
            lease_seconds=0.3, end=ending(bench), on_lease_end="finish", sync_grace_seconds=0.5
        )
        try:
            assert until(lambda: ends(bench) >= 1, 10)
        finally:
            os.kill(pid, signal.SIGCONT)


class TestLife:
    def test_it_shrugs_off_signals(self, every_bench: Bench) -> None:
        pid = every_bench.arm(end=ending(every_bench))["pid"]
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        every_bench.verb("renew", "0.3")
        assert until(lambda: ends(every_bench) >= 1, 10)
        assert every_bench.guard()["pid"] == pid

    def test_a_bug_in_it_does_not_keep_the_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        guard = Guard(
            Folder(str(tmp_path)),
            {"end": {}, "on_lease_end": "end", "sync_grace_seconds": 1, "order": "x"},
        )
        write_lease(Folder(str(tmp_path)), new_lease(0, time.time() + 600))
        assert guard._over()

        def bug() -> bool:
            raise KeyError("canary")

        assert guard._safely(bug) is True, "the lease that is remembered counts"
        assert "KeyError" in str(guard._facts["error"])
        assert "canary" not in str(guard._facts["error"])

    def test_arming_again_hands_the_new_values_to_the_same_guard(self, bench: Bench) -> None:
        first = bench.arm(lease_seconds=60, end={"argv": ["false"]})
        second = bench.arm(lease_seconds=1, end=ending(bench), on_lease_end="finish")
        assert second["pid"] == first["pid"]
        assert second["on_lease_end"] == "finish"
        assert second["lease_until"] < first["lease_until"]
        assert until(lambda: ends(bench) >= 1, 10)

    def test_arming_after_it_was_killed_starts_another(self, bench: Bench) -> None:
        first = bench.arm()
        os.kill(first["pid"], signal.SIGKILL)
        assert until(lambda: not bench.verb("status")["guard"]["alive"], 5)
        assert bench.refused("renew", "60")["kind"] == "GuardDied"
        second = bench.arm(end=ending(bench))
        assert second["pid"] != first["pid"]
        bench.verb("renew", "0")
        assert until(lambda: ends(bench) >= 1, 10)

    def test_a_lease_file_that_is_damaged_or_gone_ends_nothing_early(self, bench: Bench) -> None:
        bench.arm(lease_seconds=2.5, end=ending(bench))
        threading.Event().wait(0.3)
        (bench.dir / "lease.json").write_bytes(b"\0garbage")
        assert not until(lambda: ends(bench), 1)
        (bench.dir / "lease.json").unlink()
        assert until(lambda: ends(bench) >= 1, 10)

    def test_a_machine_whose_folder_was_removed_is_ended_all_the_same(self, bench: Bench) -> None:
        bench.arm(lease_seconds=1, end=ending(bench))
        threading.Event().wait(0.3)
        bench.dir.rename(bench.root / "moved away")
        assert until(lambda: ends(bench) >= 1, 10)

    @pytest.mark.parametrize(
        "change",
        [
            {"lease_seconds": "soon"},
            {"lease_seconds": -1},
            {"hard_end": None},
            {"end": {"argv": "rm -rf /"}},
            {"end": {"argv": ["true"], "signal_pid": 1}},
            {"end": {"signal_pid": 0}},
            {"on_lease_end": "never"},
        ],
    )
    def test_orders_that_are_malformed(self, bench: Bench, change: dict[str, object]) -> None:
        orders = {"lease_seconds": 60, "hard_end": time.time() + 600, "end": {"argv": ["true"]}}
        assert bench.refused("arm", stdin={**orders, **change})["kind"] == "Usage"
        assert bench.verb("status")["guard"] is None

    def test_how_the_machine_is_ended_is_not_on_the_disk(self, bench: Bench) -> None:
        bench.arm(end={"argv": ["sh", "-c", "true", "canary-key"]})
        bench.arm(end={"argv": ["sh", "-c", "true", "canary-key"]})
        for path in bench.dir.iterdir():
            if path.is_file():
                assert b"canary-key" not in path.read_bytes()


class TestLeaseFile:
    def test_it_is_written_in_place_when_the_disk_is_full(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = Folder(str(tmp_path))
        write_lease(folder, new_lease(60, time.time() + 600))

        def full(path: str, content: bytes, durable: bool = False) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(machine_agent, "write_atomically", full)
        later = new_lease(120, time.time() + 600)
        write_lease(folder, later)
        assert read_lease(folder) == later

    def test_a_reboot_makes_the_boot_clock_meaningless(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = Folder(str(tmp_path))
        write_lease(folder, new_lease(60, time.time() + 600))
        monkeypatch.setattr(machine_agent, "boot_id", lambda: "another boot")
        lease = read_lease(folder)
        assert lease is not None
        assert (lease.boot_until, lease.hard_boot_end) == (None, None)
        assert lease.left()[0] == pytest.approx(60, abs=2)

    def test_clocks_that_jump(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lease = Lease(until=1060, boot_until=560, hard_end=1600, hard_boot_end=1100)
        clocks = {"wall": 1000.0, "boot": 500.0}
        monkeypatch.setattr(time, "time", lambda: clocks["wall"])
        monkeypatch.setattr(machine_agent, "boottime", lambda: clocks["boot"])
        assert lease.left() == (60, 600)
        for jump in (-86400, 3600, 20 * 365 * 86400):
            clocks["wall"] += jump
            assert lease.left() == (60, 600), "neither longer nor cut"
        clocks["boot"] += 61
        assert lease.left()[0] < 0
        renewed = lease.renewed(10_000)
        assert renewed.left() == (539, 539), "the hard end holds by the clock that tells"

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"lease_until": "x"}'])
    def test_damage_is_said(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "lease.json").write_text(content)
        with pytest.raises(machine_agent.AgentError):
            read_lease(Folder(str(tmp_path)))

    def test_the_hard_end_is_as_far_away_as_the_caller_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A machine's own clock may be wrong by hours when it has just booted."""
        clocks = {"wall": 1000.0, "boot": 500.0}
        monkeypatch.setattr(time, "time", lambda: clocks["wall"])
        monkeypatch.setattr(machine_agent, "boottime", lambda: clocks["boot"])
        lease = new_lease(600, hard_end=1000 - 3600 + 900, hard_seconds=900)
        assert lease.left() == (600, 900)
        nearer = new_lease(600, 10_000, hard_seconds=300, before=lease)
        assert nearer.left() == (300, 300)
        assert new_lease(600, 10_000, hard_seconds=800, before=nearer).left() == (300, 300)


def test_a_job_is_believed_by_the_clock_that_nobody_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = {"end": {}, "on_lease_end": "finish", "sync_grace_seconds": 5, "order": "x"}
    guard = Guard(Folder(str(tmp_path)), orders)
    clocks = {"wall": 1000.0, "boot": 500.0}
    job = {"phase": "running", "stop_at": 1100.0, "stop_boot_at": 600.0, "term_grace_seconds": 30}
    monkeypatch.setattr(time, "time", lambda: clocks["wall"])
    monkeypatch.setattr(machine_agent, "boottime", lambda: clocks["boot"])
    monkeypatch.setattr(machine_agent, "job_state", lambda _folder: job)
    for jump in (0, 3600, -7200):
        clocks["wall"] += jump
        assert guard._job_lives()
    clocks["boot"] = 600 + 30 + 5 + 1
    assert not guard._job_lives()
    del job["stop_boot_at"]  # of an older supervisor
    assert guard._job_lives() is (clocks["wall"] < 1135)


class TestReboot:
    """What a boot leaves: the files, and no process."""

    def killed(self, bench: Bench) -> None:
        os.kill(bench.guard()["pid"], signal.SIGKILL)
        assert until(lambda: not bench.verb("status")["guard"]["alive"], 5)

    def test_the_lease_that_is_on_the_disk_is_guarded_again(self, every_bench: Bench) -> None:
        every_bench.arm(lease_seconds=2.5, end=ending(every_bench))
        until_then = every_bench.verb("status")["guard"]["lease_until"]
        self.killed(every_bench)
        state = every_bench.verb("rearm", stdin={"end": ending(every_bench)})
        assert state["alive"] is True
        assert state["lease_until"] == until_then
        assert until(lambda: ends(every_bench) >= 1, 10)
        assert time.time() >= until_then - 0.1

    def test_a_lease_that_ran_out_meanwhile_ends_the_machine_at_once(self, bench: Bench) -> None:
        bench.arm(lease_seconds=0.6)
        self.killed(bench)
        assert until(lambda: bench.verb("status")["guard"]["lease_left"] < 0, 5)
        bench.verb("rearm", stdin={"end": ending(bench)})
        assert until(lambda: ends(bench) >= 1, 10)

    def test_an_end_that_had_begun_goes_on(self, bench: Bench) -> None:
        """Also when it began before the lease was over: nobody had used the machine, say."""
        bench.arm(lease_seconds=600)
        self.killed(bench)
        folder = Folder(str(bench.dir))
        lease = read_lease(folder)
        assert lease is not None
        write_lease(folder, lease._replace(ended=True))
        bench.verb("rearm", stdin={"end": ending(bench)})
        assert until(lambda: ends(bench) >= 1, 10)

    @pytest.mark.slow
    def test_what_it_was_told_besides_is_kept(self, bench: Bench) -> None:
        bench.arm(on_lease_end="finish", sync_grace_seconds=7, idle_seconds=900)
        self.killed(bench)
        state = bench.verb("rearm", stdin={"end": ending(bench)})
        assert (state["on_lease_end"], state["sync_grace_seconds"]) == ("finish", 7)
        assert state["idle_seconds"] == 900

    @pytest.mark.slow
    @pytest.mark.parametrize("content", ["", "[]", '{"on_lease_end": "never"}'])
    def test_damaged_notes_do_not_leave_it_unguarded(self, bench: Bench, content: str) -> None:
        bench.arm(lease_seconds=600)
        self.killed(bench)
        (bench.dir / "guard.json").write_text(content)
        assert bench.verb("rearm", stdin={"end": ending(bench)})["alive"] is True
        bench.verb("renew", "0")
        assert until(lambda: ends(bench) >= 1, 10)

    @pytest.mark.slow
    def test_a_damaged_lease_ends_the_machine(self, bench: Bench) -> None:
        bench.arm(lease_seconds=600)
        self.killed(bench)
        (bench.dir / "lease.json").write_text("")
        bench.verb("rearm", stdin={"end": ending(bench)})
        assert until(lambda: ends(bench) >= 1, 10)

    def test_it_makes_nothing_longer_and_disarms_nothing(self, bench: Bench) -> None:
        armed = bench.arm(lease_seconds=600, end=ending(bench))
        for _ in range(3):
            bench.verb("status")
            state = bench.verb("rearm", stdin={"end": {}})
            assert state["pid"] == armed["pid"], "the one that lives is left alone"
            assert state["lease_until"] == armed["lease_until"]
        bench.verb("renew", "0")
        assert until(lambda: ends(bench) >= 1, 10), "and still knows how to end the machine"

    def test_without_a_lease_there_is_nothing_to_guard(self, bench: Bench) -> None:
        bench.dir.mkdir()
        assert bench.refused("rearm", stdin={"end": {}})["kind"] == "NotArmed"


def test_renewing_before_arming(bench: Bench) -> None:
    bench.dir.mkdir()
    assert bench.refused("renew", "60")["kind"] == "NotArmed"


@pytest.mark.parametrize("seconds", ["nan", "-1", "inf", "soon"])
def test_renewing_by_nonsense(bench: Bench, seconds: str) -> None:
    bench.arm()
    done = subprocess.run(
        bench.argv("renew", str(bench.dir), seconds), capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert json.loads((bench.dir / "lease.json").read_bytes())["ended"] is False
