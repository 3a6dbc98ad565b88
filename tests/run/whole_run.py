"""A run from the command line to its end, and what has to be true whatever the end was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.clouds.http_cloud import HttpCloud
from tests.clouds.unwrapping import unwrapped
from tests.faults.rehearsal import Rehearsal
from tests.waiting import until

_SECRET_SETTINGS = ("_KEY", "_TOKEN", "_KEY_ID")


@dataclass(frozen=True)
class Ended:
    """How `gpuctl run` ended."""

    code: int
    document: Any
    err: str

    @property
    def run(self) -> Any:
        return self.document["run"]

    @property
    def outcomes(self) -> list[str]:
        return [attempt["outcome"] for attempt in self.run["attempts"]]

    @property
    def error(self) -> Any:
        return self.document["error"]


def run(rehearsal: Rehearsal, spec: str | None = None, *more: str, seconds: float = 90) -> Ended:
    """Carry a spec, or the job that counts, to its end where the rehearsal is."""
    arguments = ("run", rehearsal.write_spec(spec), "--provider", rehearsal.provider, "--yes")
    return Ended(*rehearsal.gpuctl(*arguments, *more, seconds=seconds))


def result(rehearsal: Rehearsal) -> str:
    """What the job that counts delivered."""
    return (rehearsal.folder / "job/artifacts/result.txt").read_text().strip()


def not_ended_without_a_key(
    rehearsal: Rehearsal, refuse: Callable[[bool], None], left: Callable[[], int]
) -> None:
    """Check that a key which is refused meanwhile is no proof: it still bills, and is named.

    Args:
        refuse: switches the key off, and on again.
        left: how many machines the cloud's books have.
    """
    arguments = ("--provider", rehearsal.provider, "--gpu", "RTX-4090", "--yes")
    code, document, err = rehearsal.gpuctl("provision", *arguments)
    assert code == 0, err
    name = document["machine"]["name"]
    refuse(True)
    code, document, err = rehearsal.gpuctl("terminate", name, "--yes")
    assert code == 6, (document, err)
    assert document["error"]["machine"] == name
    assert document["error"]["may_bill"] is True
    assert left() == 1
    refuse(False)
    code, document, err = rehearsal.gpuctl("terminate", name, "--yes")
    assert (code, document["receipts"][0]["confirmed"]) == (0, True), err


def all_released(rehearsal: Rehearsal, ended: Ended) -> None:
    """Check that each attempt's machine is gone, proven, and nothing of it is left."""
    machines = [attempt["machine"]["name"] for attempt in ended.run["attempts"]]
    receipts = ended.document["receipts"]
    assert sorted(receipt["name"] for receipt in receipts) == sorted(machines), ended.err
    for receipt in receipts:
        assert receipt["confirmed"] is True
        assert len(receipt["confirmed_by"]) == 2
    nothing_bills(rehearsal)


def nothing_bills(rehearsal: Rehearsal) -> None:
    """Check that no process, no folder and no open row is left, and that no key left the house."""
    assert until(rehearsal.nothing_is_left, 5), rehearsal.machine_processes()
    code, document, err = rehearsal.gpuctl("audit")
    assert (code, document["billing"], document["unaccounted"]) == (0, [], []), err
    no_key_in_requests(rehearsal)


def no_key_in_requests(rehearsal: Rehearsal) -> None:
    """Look over everything that its cloud was ever asked, if it has one.

    No address, query or body may hold a key of the account, however it is wrapped: user-data and
    boot commands are in there, too. Nobody may call with the name that a library has by default.
    """
    cloud = getattr(rehearsal, "cloud", None)
    if not isinstance(cloud, HttpCloud):
        return
    keys = [
        value.encode()
        for name, value in rehearsal.settings.items()
        if name.endswith(_SECRET_SETTINGS)
    ]
    assert keys
    log = list(cloud.log)
    assert log
    for line in log:
        assert line.agent.startswith("gpuctl/"), (line.method, line.path, line.agent)
        for text in unwrapped(line):
            assert not any(key in text for key in keys), (line.method, line.path)


def reached_every_way(rehearsal: Rehearsal, name: str) -> None:
    """Check that each command that leads to a machine works there."""
    for command in ("ssh", "exec"):
        there = rehearsal.start(command, name, "--", "sh", "-c", "cat /etc/hostname; echo reached")
        out, err = there.communicate(timeout=60)
        assert (there.returncode, out.splitlines()[-1]) == (0, "reached"), err
    sent = rehearsal.folder / "sent"
    (sent / "sub").mkdir(parents=True)
    (sent / "sub/file").write_text("there and back")
    code, moved, err = rehearsal.gpuctl("upload", name, sent, "work/in")
    assert (code, moved and moved["files"]) == (0, 1), err
    code, _, err = rehearsal.gpuctl("download", name, "work/in", rehearsal.folder / "back")
    assert code == 0, err
    assert (rehearsal.folder / "back/sub/file").read_text() == "there and back"
    [before] = rehearsal.gpuctl("list")[1]["machines"]
    code, document, err = rehearsal.gpuctl("extend", name, "3h")
    assert code == 0, err
    assert document["machine"]["lease_expires_at"] > before["lease_expires_at"]


def logs_of(rehearsal: Rehearsal) -> str:
    """What `gpuctl logs` shows of the only run."""
    shown = rehearsal.start("logs", rehearsal.run_id())
    out, err = shown.communicate(timeout=60)
    assert shown.returncode == 0, err
    return out
