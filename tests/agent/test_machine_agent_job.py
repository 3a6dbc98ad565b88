"""The supervisor: phases, ends, stops, notices, what is left behind, what survives."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.bench import Bench
from tests.waiting import until

CATCHING = """
import os, pathlib, signal, sys, time
ckpt = pathlib.Path(os.environ["CK"])
def save(*_):
    time.sleep(0.2)
    (ckpt / "last").write_text("saved by the handler")
    sys.exit({code})
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(600)
"""


class TestPhases:
    def test_all_in_order(self, every_bench: Bench) -> None:
        state = every_bench.submit(
            "echo run in $PWD with $A and $S",
            preflight="echo preflight",
            setup="echo setup",
            env={"A": "b"},
            secrets={"S": "t"},
        )
        assert state["protocol"] == 1
        assert state["run"] == "demo-1a2b3c"
        state = every_bench.ended()
        assert every_bench.log("out") == (
            f"preflight\nsetup\nrun in {every_bench.work} with b and t\n"
        )
        assert (state["outcome"], state["exit_code"], state["signal"]) == ("completed", 0, None)
        assert state["failed_phase"] is None
        assert state["started_at"] <= state["job_started_at"] <= state["ended_at"]
        assert (every_bench.dir / "job-started").exists()

    @pytest.mark.parametrize("phase", ["preflight", "setup"])
    def test_one_that_fails_ends_the_job(self, bench: Bench, phase: str) -> None:
        bench.submit("echo never", **{phase: "echo trouble >&2; exit 3"})
        state = bench.ended()
        assert (state["outcome"], state["failed_phase"], state["exit_code"]) == ("failed", phase, 3)
        assert phase in state["reason"]
        assert "never" not in bench.log()
        assert not (bench.dir / "job-started").exists()

    @pytest.mark.parametrize(
        ("command", "code", "number"),
        [
            ("exit 1", 1, None),
            ("set -e; false; echo no", 1, None),
            ("kill -SEGV $$", None, 11),
            ("bash -c 'kill -9 $$'; exit $?", 137, None),
            ("nonsense-that-is-no-command", 127, None),
        ],
    )
    def test_ways_to_fail(
        self, bench: Bench, command: str, code: int | None, number: int | None
    ) -> None:
        bench.submit(command)
        state = bench.ended()
        assert (state["outcome"], state["failed_phase"]) == ("failed", "run")
        assert (state["exit_code"], state["signal"]) == (code, number)
        assert state["reason"]

    def test_a_folder_that_is_not_there(self, bench: Bench) -> None:
        bench.submit("true", workdir=str(bench.root / "nowhere"), checkpoint_dir=None)
        state = bench.ended()
        assert (state["outcome"], state["failed_phase"]) == ("failed", "run")
        assert "nowhere" in state["reason"]

    def test_a_daemon_of_the_setup_lives_until_the_job_has_ended(self, bench: Bench) -> None:
        bench.submit(
            "sleep 0.3; kill -0 $(cat pid) && echo alive",
            setup="setsid sleep 600 >/dev/null 2>&1 & echo $! > pid",
        )
        assert bench.ended()["outcome"] == "completed"
        assert bench.log("out") == "alive\n"
        pid = int((bench.work / "pid").read_text())
        assert not Path(f"/proc/{pid}").exists()

    @pytest.mark.parametrize(
        ("change", "key"),
        [
            ({"attempt": 0}, "attempt"),
            ({"workdir": "relative"}, "workdir"),
            ({"setup": ["true"]}, "setup"),
            ({"env": {"A": 1}}, "env"),
            ({"secrets": {"A=B": "x"}}, "secrets"),
            ({"poll_seconds": 0}, "poll_seconds"),
            ({"notice": [{"aws": "file:///etc/passwd"}]}, "notice"),
            ({"outputs": ["out"]}, "outputs"),
            ({"store": {"kind": "tape"}}, "tape"),
        ],
    )
    def test_a_job_that_is_malformed(
        self, bench: Bench, change: dict[str, object], key: str
    ) -> None:
        error = bench.refused("submit", stdin=bench.job("true", **change))
        assert error["kind"] in ("BadJob", "BadGrant")
        assert key in error["message"]
        assert bench.verb("status")["job"] is None


class TestSubmit:
    def test_twice_starts_one_job(self, every_bench: Bench) -> None:
        first = every_bench.submit("echo once; sleep 0.5")
        second = every_bench.submit("echo twice")
        assert first["pid"] == second["pid"]
        every_bench.ended()
        assert every_bench.submit("echo thrice")["phase"] == "ended"
        assert every_bench.log("out") == "once\n"

    def test_at_once_from_several_callers(self, bench: Bench) -> None:
        answers: list[dict[str, object]] = []
        callers = [
            threading.Thread(target=lambda: answers.append(bench.submit("echo x >> ran; sleep 1")))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len({answer["pid"] for answer in answers}) == 1
        bench.ended()
        assert (bench.work / "ran").read_text() == "x\n"

    def test_it_outlives_its_caller_and_hangup(self, bench: Bench) -> None:
        bench.submit("sleep 1; echo survived")
        os.kill(bench.state()["pid"], signal.SIGHUP)
        assert bench.ended()["outcome"] == "completed"
        assert bench.log("out") == "survived\n"


class TestWhatIsLeftBehind:
    def test_a_daemonised_grandchild_is_ended(self, every_bench: Bench) -> None:
        every_bench.submit(
            "(setsid sh -c 'trap \"\" HUP; (sleep 601 & echo $! > pid; wait) &') </dev/null &"
            " sleep 0.5; exit 0"
        )
        state = every_bench.ended()
        assert state["outcome"] == "completed"
        assert not Path(f"/proc/{(every_bench.work / 'pid').read_text().strip()}").exists()
        assert every_bench.processes() == []

    def test_one_that_ignores_sigterm_is_killed(self, bench: Bench) -> None:
        bench.submit("setsid sh -c 'trap \"\" TERM; sleep 602' & sleep 0.3", term_grace_seconds=0.5)
        assert bench.ended()["outcome"] == "completed"
        assert bench.processes() == []

    def test_a_child_may_save_its_work_after_its_shell_died(self, bench: Bench) -> None:
        # bash dies of the SIGTERM at once; what it runs must still get its grace.
        (bench.work / "job.py").write_text(CATCHING.format(code=143))
        bench.submit("python3 job.py; echo unreachable")
        bench.said("ready")
        bench.verb("stop", "--why", "cancelled", "--grace", "5")
        assert bench.ended()["outcome"] == "cancelled"
        assert bench.named() == {"last": b"saved by the handler"}


class TestStop:
    @pytest.mark.parametrize("why", ["cancelled", "capped", "interrupted", "lease"])
    def test_the_handlers_last_checkpoint_is_shipped(self, bench: Bench, why: str) -> None:
        bench.submit_python(CATCHING.format(code=143))
        bench.said("ready")
        bench.verb("stop", "--why", why, "--grace", "5")
        state = bench.ended()
        assert (state["outcome"], state["exit_code"]) == (why, 143)
        assert bench.named() == {"last": b"saved by the handler"}

    def test_one_that_does_not_listen_is_killed_after_its_grace(self, every_bench: Bench) -> None:
        every_bench.submit("trap '' TERM; echo ready; while :; do sleep 0.1; done")
        every_bench.said("ready")
        began = time.monotonic()
        every_bench.verb("stop", "--why", "cancelled", "--grace", "0.7")
        state = every_bench.ended()
        assert time.monotonic() - began >= 0.6
        assert (state["outcome"], state["signal"]) == ("cancelled", 9)

    def test_exit_0_after_a_sigterm_is_not_done(self, bench: Bench) -> None:
        bench.submit_python(CATCHING.format(code=0))
        bench.said("ready")
        bench.verb("stop", "--why", "cancelled", "--grace", "5")
        assert bench.ended()["outcome"] == "cancelled"

    def test_the_cap_counts_from_the_submit(self, bench: Bench) -> None:
        bench.submit("echo never", setup="sleep 600", stop_after_seconds=0.5)
        state = bench.ended()
        assert state["outcome"] == "capped"
        assert "0.5 s" in state["reason"]
        assert state["failed_phase"] is None
        assert state["ended_at"] - state["started_at"] < 4

    def test_before_a_job_and_after_it(self, bench: Bench) -> None:
        stop = ("stop", "--why", "cancelled", "--grace", "1")
        assert bench.refused(*stop)["kind"] == "NoJob"
        bench.submit("true")
        bench.ended()
        assert bench.verb(*stop)["outcome"] == "completed"
        assert bench.refused("grant", stdin=bench.job("")["store"])["kind"] == "Ended"

    def test_wrong_use(self, bench: Bench) -> None:
        error = bench.refused("stop", "--why", "cancelled", "--grace", "nan")
        assert error["kind"] == "Usage"


class TestNotice:
    @pytest.mark.parametrize(
        "content", ["", "anything", '{"deadline": "soon"}', "[[[", '{"at": 1}']
    )
    def test_a_file_of_any_kind(self, bench: Bench, content: str) -> None:
        notice = bench.root / "notice"
        bench.submit_python(CATCHING.format(code=143), notice=[{"file": str(notice)}])
        bench.said("ready")
        notice.write_text(content)
        state = bench.ended()
        assert state["outcome"] == "interrupted"
        assert (state["notice"]["source"], state["notice"]["deadline"]) == ("file", None)
        assert bench.named() == {"last": b"saved by the handler"}

    def test_everything_is_shipped_before_the_deadline(self, every_bench: Bench) -> None:
        notice = every_bench.root / "notice"
        # Settling would take longer than the notice lasts.
        every_bench.submit_python(
            CATCHING.format(code=143), notice=[{"file": str(notice)}], settle_seconds=30
        )
        every_bench.said("ready")
        deadline = time.time() + 4
        notice.write_text(json.dumps({"at": time.time(), "deadline": deadline}))
        state = every_bench.ended()
        assert state["ended_at"] < deadline
        assert state["notice"]["deadline"] == deadline
        assert every_bench.named() == {"last": b"saved by the handler"}

    def test_a_job_that_does_not_listen_leaves_time_to_ship(self, bench: Bench) -> None:
        notice = bench.root / "notice"
        bench.submit(
            "echo good > $CK/.x; mv $CK/.x $CK/good; trap '' TERM; echo ready;"
            " while :; do sleep 0.1; done",
            notice=[{"file": str(notice)}],
        )
        bench.said("ready")
        deadline = time.time() + 2
        notice.write_text(json.dumps({"deadline": deadline}))
        state = bench.ended()
        assert (state["outcome"], state["signal"]) == ("interrupted", 9)
        assert state["ended_at"] < deadline + 0.5
        assert bench.named() == {"good": b"good\n"}

    def test_sigterm_to_the_supervisor(self, every_bench: Bench) -> None:
        every_bench.submit_python(CATCHING.format(code=143))
        every_bench.said("ready")
        os.kill(every_bench.state()["pid"], signal.SIGTERM)
        state = every_bench.ended()
        assert (state["outcome"], state["notice"]["source"]) == ("interrupted", "sigterm")
        assert every_bench.named() == {"last": b"saved by the handler"}

    def test_a_job_that_saw_it_first(self, bench: Bench) -> None:
        notice = bench.root / "notice"
        bench.submit(f"echo x > {notice}; exit 1", notice=[{"file": str(notice)}], poll_seconds=10)
        assert bench.ended()["outcome"] == "interrupted"

    def test_aws(self, bench: Bench, metadata: Metadata) -> None:
        bench.submit_python(CATCHING.format(code=143), notice=[{"aws": metadata.root}])
        bench.said("ready")
        metadata.announced = True
        state = bench.ended()
        assert (state["outcome"], state["notice"]["source"]) == ("interrupted", "aws")
        assert state["notice"]["deadline"] == pytest.approx(metadata.deadline, abs=1)
        assert metadata.refused_without_token == 0

    def test_a_metadata_service_that_is_not_there_changes_nothing(self, bench: Bench) -> None:
        bench.submit("echo fine; sleep 0.3", notice=[{"aws": "http://127.0.0.1:9"}])
        assert bench.ended()["outcome"] == "completed"


class Metadata:
    """EC2's metadata service, IMDSv2 only."""

    def __init__(self) -> None:
        self.deadline = time.time() + 60
        self.announced = False
        self.refused_without_token = 0
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                assert self.path == "/latest/api/token"
                assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
                self.reply(200, b"token-1")

            def do_GET(self) -> None:
                if self.headers["X-aws-ec2-metadata-token"] != "token-1":
                    service.refused_without_token += 1
                    self.reply(401, b"")
                elif service.announced and self.path.endswith("/meta-data/spot/instance-action"):
                    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(service.deadline))
                    self.reply(200, json.dumps({"action": "terminate", "time": moment}).encode())
                else:
                    self.reply(404, b"")

            def reply(self, code: int, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()
    yield service
    service.server.shutdown()
    service.server.server_close()


class TestDeath:
    def test_of_the_supervisor(self, every_bench: Bench) -> None:
        every_bench.submit("sleep 600")
        os.kill(every_bench.state()["pid"], signal.SIGKILL)
        assert until(lambda: every_bench.state().get("supervisor_lost"), 5)
        state = every_bench.state()
        assert (state["phase"], state["outcome"]) == ("ended", "failed")
        assert state["reason"] == "supervisor died"
        assert every_bench.quick_state()["phase"] != "ended", "status changes nothing"

    def test_a_pid_that_somebody_else_has_now_does_not_count(self, bench: Bench) -> None:
        bench.submit("sleep 600")
        pid = bench.state()["pid"]
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: bench.state().get("supervisor_lost"), 5)
        state = bench.quick_state()
        state["pid"] = os.getpid()
        (bench.dir / "state.json").write_text(json.dumps(state))
        assert bench.state()["supervisor_lost"] is True

    def test_a_state_that_is_damaged_is_said_to_be(self, bench: Bench) -> None:
        bench.submit("true")
        bench.ended()
        (bench.dir / "state.json").write_bytes(b"\0\0\0")
        assert bench.refused("status")["kind"] == "Damaged"

    def test_a_supervisor_that_cannot_start_says_why(self, bench: Bench) -> None:
        (bench.work / "ckpt").write_text("in the way")
        error = bench.refused("submit", stdin=bench.job("true"))
        assert error["kind"] == "Supervisor"
        assert "ckpt" in error["message"]


def test_secrets_reach_the_job_and_nothing_else(every_bench: Bench) -> None:
    canary = "canary-5c1d9f7e"
    every_bench.arm()
    every_bench.submit(
        'test "$TOKEN" = canary-$REST && echo matches; sleep 1',
        secrets={"TOKEN": canary},
        env={"REST": canary.removeprefix("canary-"), "CK": str(every_bench.checkpoints)},
    )
    every_bench.said("matches")
    every_bench.verb("status")
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert canary.encode() not in cmdline.read_bytes()
        except OSError:  # it has ended
            continue
    every_bench.ended()
    for path in every_bench.root.rglob("*"):
        if path.is_file() and path.name != "guard.orders":
            assert canary.encode() not in path.read_bytes(), path


def test_samples(bench: Bench) -> None:
    bench.submit("sleep 1.2")
    bench.ended()
    sample = bench.state()["sample"]
    assert sample["disk_free_gb"] > 0
    assert 0 <= sample["cpu_percent"] <= 100
    assert sample["ram_gb"] > 0
    assert isinstance(sample["gpus"], list)


def test_an_idle_supervisor_costs_almost_nothing(bench: Bench) -> None:
    bench.arm()
    bench.submit("sleep 600", poll_seconds=0.2)
    bench.said("attempt 1")
    pids = [bench.state()["pid"], bench.guard()["pid"]]

    def cpu_seconds() -> float:
        ticks = 0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    threading.Event().wait(1)  # its start is not idling
    before = cpu_seconds()
    threading.Event().wait(3)
    assert cpu_seconds() - before <= 0.15, "5 % of one core"
