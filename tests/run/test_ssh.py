"""Whole jobs over real SSH: on hosts of one's own, the store a folder here."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from providers.processes import carriers
from providers.ssh_host import MARKER
from tests.clouds.ssh_hosts import Hosts
from tests.faults.over_ssh import SshRehearsal, over_ssh
from tests.faults.rehearsal import STEPS, TRAIN
from tests.remote.sshd import needs_sshd
from tests.run.whole_run import Ended, nothing_bills, result, run
from tests.waiting import until

pytestmark = needs_sshd


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """One host."""
    made = Hosts(tmp_path)
    made.add("one")
    yield made
    for server in made.servers.values():
        server.stop()


@pytest.fixture
def rehearsal(hosts: Hosts) -> Iterator[SshRehearsal]:
    """A home that knows the host."""
    made = over_ssh(hosts)
    yield made
    for name in hosts.books().values():
        made.gpuctl("terminate", name, "--yes")
    made.kill_watchdog()


def nothing_is_left(rehearsal: SshRehearsal) -> None:
    """Ask the hosts, the system and `audit`."""
    nothing_bills(rehearsal)
    relayed = rehearsal.home / "scratch"
    assert not relayed.exists() or list(relayed.iterdir()) == []


LONG = 60
LONGER = TRAIN.format(steps=LONG)


def test_a_whole_job(rehearsal: SshRehearsal, hosts: Hosts) -> None:
    ended = run(rehearsal)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert result(rehearsal) == f"{STEPS} from attempt 1"
    steps = [one["step"] for one in ended.run["checkpoints"]]
    assert max(steps) == STEPS
    [machine] = [attempt["machine"] for attempt in ended.run["attempts"]]
    assert machine["ssh"]["port"] == hosts.servers["one"].port
    assert Path(machine["ssh"]["key_file"]).is_file()
    [ready] = [event for event in rehearsal.events() if event.kind == "ready"]
    assert {"boot", "tcp", "banner", "login", "answer"} <= set(ready.facts["steps"])
    assert not list((rehearsal.home / "known_hosts").glob("gpuctl-*"))
    nothing_is_left(rehearsal)


@pytest.mark.slow
def test_a_machine_that_is_lost_goes_on_from_what_was_relayed(
    rehearsal: SshRehearsal, hosts: Hosts
) -> None:
    """The claim and all processes vanish, as when somebody ends them by hand on the host."""
    path = rehearsal.write_spec(LONGER)
    process = rehearsal.start("run", path, "--provider", "ssh", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 60)
    [name] = hosts.books().values()
    hosts.provider().destroy(f"one/{name}")
    out, err = process.communicate(timeout=90)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (0, ["lost", "completed"]), err
    assert result(rehearsal) == f"{LONG} from attempt 2"
    assert "restored checkpoint step-" in err
    nothing_is_left(rehearsal)


def test_a_broken_link_costs_nothing(rehearsal: SshRehearsal, hosts: Hosts) -> None:
    """Every session is cut and the server away for a moment: nothing lost, nothing twice."""
    path = rehearsal.write_spec(LONGER)
    process = rehearsal.start("run", path, "--provider", "ssh", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 60)
    hosts.servers["one"].stop()
    hosts.servers["one"].start()
    out, err = process.communicate(timeout=90)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), err
    printed = [line for line in err.splitlines() if line.startswith("step ")]
    assert printed == [f"step {number}" for number in range(1, LONG + 1)]
    logs = rehearsal.start("logs", rehearsal.run_id(), "--json")
    told = [json.loads(line) for line in logs.communicate(timeout=30)[0].splitlines()]
    kept = "".join(piece["text"] for piece in told if piece["stream"] == "out").splitlines()
    assert kept == printed
    nothing_is_left(rehearsal)


@pytest.mark.slow
def test_resume_after_kill_picks_the_job_up(rehearsal: SshRehearsal, hosts: Hosts) -> None:
    path = rehearsal.write_spec()
    process = rehearsal.start("run", path, "--provider", "ssh", "--yes", "--json")
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    code, document, err = rehearsal.gpuctl("resume", rehearsal.run_id())
    ended = Ended(code, document, err)
    assert (code, ended.outcomes) == (0, ["completed"]), err
    assert result(rehearsal) == f"{STEPS} from attempt 1"
    assert max(one["step"] for one in ended.run["checkpoints"]) == STEPS
    nothing_is_left(rehearsal)


@pytest.mark.slow
def test_when_everything_here_dies_the_host_ends_the_machine(
    rehearsal: SshRehearsal, hosts: Hosts
) -> None:
    path = rehearsal.write_spec("run: sleep 600\n")
    process = rehearsal.start("run", path, "--provider", "ssh", "--yes", "--lease", "12s", "--json")
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    [name] = hosts.books().values()
    assert until(lambda: hosts.books() == {}, 40)
    assert until(lambda: carriers({MARKER: name}) == set(), 10)
    assert list(hosts.base("one").iterdir()) == []
    code, _, err = rehearsal.gpuctl("reap")
    assert code == 0, err
    nothing_is_left(rehearsal)


def test_no_secret_reaches_disk_or_process_list(rehearsal: SshRehearsal, hosts: Hosts) -> None:
    """Canaries: a secret of the job, and an account key that the job has no business with."""
    secret, account = "canary-1f0c7d-secret", "canary-9b2e4a-account"
    rehearsal.settings.update(
        HF_TOKEN=secret, RUNPOD_API_KEY=account, AWS_SECRET_ACCESS_KEY=account
    )
    spec = (
        "secrets: [HF_TOKEN]\n"
        "run: |\n"
        "  echo the secret has ${#HF_TOKEN} characters\n"
        "  touch running; sleep 3\n"
    )
    path = rehearsal.write_spec(spec)
    process = rehearsal.start("run", path, "--provider", "ssh", "--yes", "--json")
    assert until(lambda: list(hosts.folder.glob("one/machines/*/root/work/running")), 60)
    [name] = hosts.books().values()
    for pid in carriers({MARKER: name}):
        try:
            told = Path(f"/proc/{pid}/environ").read_bytes()
            argv = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        assert account.encode() not in told + argv
        assert secret.encode() not in argv
    where = _files_with((secret, account), hosts.base("one"))
    where += _files_with((secret, account), hosts.servers["one"].folder)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"the secret has {len(secret)} characters" in err
    assert where == []
    assert _files_with((secret, account), rehearsal.home) == []
    assert secret not in out + err.replace("***", "")
    del rehearsal.settings["RUNPOD_API_KEY"]  # with it `audit` would ask RunPod
    nothing_is_left(rehearsal)


def _files_with(words: tuple[str, ...], folder: Path) -> list[str]:
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                content = (Path(place) / name).read_bytes()
            except OSError:
                continue  # a socket, or gone
            found += [f"{place}/{name}" for word in words if word.encode() in content]
    return found


@pytest.mark.slow
def test_a_store_that_only_this_computer_reaches(rehearsal: SshRehearsal, hosts: Hosts) -> None:
    """A failed job's checkpoints are relayed too, and resume starts from them."""
    spec = (
        "run: |\n"
        '  from="$GPUCTL_RESUME_FROM"\n'
        '  if [ -n "$from" ]; then cat "$from/a" "$from/b/c"; exit 0; fi\n'
        '  mkdir -p "$GPUCTL_CHECKPOINT_DIR/.x/b"; echo first > "$GPUCTL_CHECKPOINT_DIR/.x/a"\n'
        '  echo second > "$GPUCTL_CHECKPOINT_DIR/.x/b/c"\n'
        '  mv "$GPUCTL_CHECKPOINT_DIR/.x" "$GPUCTL_CHECKPOINT_DIR/ck-1"; exit 7\n'
    )
    ended = run(rehearsal, spec)
    assert (ended.code, ended.outcomes) == (1, ["failed"]), ended.err
    assert [one["name"] for one in ended.run["checkpoints"]] == ["ck-1"]
    code, document, err = rehearsal.gpuctl("resume", rehearsal.run_id())
    assert (code, document["run"]["state"]) == (0, "succeeded"), err
    assert "first\nsecond" in err
    nothing_is_left(rehearsal)


def test_a_host_that_somebody_has_is_named(rehearsal: SshRehearsal, hosts: Hosts) -> None:
    provision = ("provision", "--provider", "ssh", "--name")
    code, document, err = rehearsal.gpuctl(*provision, "first", "--yes")
    assert code == 0, err
    name = document["machine"]["name"]
    for command in ((*provision, "second"), ("run", rehearsal.write_spec(), "--provider", "ssh")):
        code, document, err = rehearsal.gpuctl(*command, "--yes")
        assert code == 3, err
        assert name in document["error"]["message"]
    code, document, _ = rehearsal.gpuctl("quote", "--provider", "ssh")
    assert (code, [offer["available"] for offer in document["offers"]]) == (0, [False])
    assert rehearsal.gpuctl("terminate", name, "--yes")[0] == 0
    nothing_is_left(rehearsal)
