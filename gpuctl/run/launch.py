"""From a rented machine to a job that is running on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuctl.agent.client import AgentClient, Job, Probe
from gpuctl.errors import GpuctlError
from gpuctl.fleet.guard import armed_agent
from gpuctl.fleet.lease import Renewal
from gpuctl.fleet.ready import Ready, make_ready
from gpuctl.ledger import MachineRow
from gpuctl.printable import printable
from gpuctl.remote.connection import Connection
from gpuctl.run.buckets import bring_data
from gpuctl.run.caps import Allowance
from gpuctl.run.preflight import unmet
from gpuctl.run.prepare import needs_of
from gpuctl.run.relay import (
    OUTBOX_KEEP,
    needs_relay,
    outbox_of,
    remove_checkpoint,
    send_checkpoint,
)
from gpuctl.run.work import Live, Work
from gpuctl.spec import is_s3
from gpuctl.store import CorruptManifest, Manifest, Newest
from providers.base import LocalAccess, Machine

_WORK = "work"


class OutOfTime(GpuctlError):
    """A cap left no time for the job before it could be started."""

    kind = "Cap"


class Unfit(GpuctlError):
    """A machine that is not what the job needs, or not what was paid for."""

    kind = "Unfit"


def agent_folder(run_id: str, number: int) -> str:
    """Return the agent's folder of an attempt, relative to the machine's home."""
    return f".gpuctl/{run_id}-a{number}"


def workdir_on(connection: Connection) -> str:
    """Return the absolute path of the job's working folder on a machine."""
    return f"{connection.home}/{_WORK}"


def launch(
    work: Work,
    row: MachineRow,
    machine: Machine,
    number: int,
    renewal: Renewal,
    allowance: Allowance,
    newest: Newest,
) -> Live:
    """Make a rented machine ready, arm its guard, fill it, and hand it the job.

    Args:
        allowance: how long it may take in all.
        newest: the checkpoint to resume from, if there is one.

    Raises:
        NotReady: it never answered.
        Unfit: its hardware is not what the spec needs.
        OutOfTime: a cap was reached before the job could start.
        RemoteError: it stopped answering.
        StoreError: the checkpoint to resume from cannot be read.
        Interrupted: somebody asked the run to stop.
    """
    clock = work.fleet.clock
    longest = allowance.job_seconds
    stop_at = None if longest is None else clock.monotonic() + longest

    def left() -> float | None:
        work.stop.check()
        seconds = None if stop_at is None else stop_at - clock.monotonic()
        if seconds is not None and seconds <= 0:
            raise OutOfTime(f"budget.{allowance.cap} was used up before the job could start")
        return seconds

    def check() -> None:
        left()

    work.report.step(f"{row.name}: waiting until it answers")
    ready = make_ready(work.fleet, row, machine, check=check)
    agent, facts = armed_agent(
        ready,
        row,
        agent_folder(work.run_id, number),
        work.options.lease_seconds,
        # A detached run is carried on by the machine itself when every local process dies.
        on_lease_end="finish" if work.options.detach else "end",
    )
    renewal.arm(agent.renew)
    check()
    _check_hardware(work, row, facts)
    workdir = workdir_on(ready.connection)
    work.fleet.ledger.record("run_state", run=work.run_id, state="preparing")
    _send(work, ready.connection, workdir, check)
    outbox = outbox_of(agent.directory) if needs_relay(work, ready.machine) else None
    if outbox is not None and work.store.folder is None:
        work.report.warn(
            f"{row.name} cannot write to {work.store.location} itself: what it saves is passed on "
            "by this computer, as long as that is on and connected"
        )
    resume_from = _restore(work, ready, agent, workdir, newest)
    job = _job(work, ready, number, workdir, resume_from, outbox)
    agent.submit(
        replace(
            job,
            stop_after_seconds=left(),
            term_grace_seconds=allowance.term_grace_seconds,
            sync_seconds=allowance.sync_seconds,
        )
    )
    return Live(number, row.name, ready.connection, agent, outbox)


def _check_hardware(work: Work, row: MachineRow, facts: Probe) -> None:
    complaints = unmet(needs_of(work.spec), facts)
    if complaints:
        raise Unfit(f"preflight on {row.name}: {'; '.join(complaints)}", machine=row.name)


def _send(work: Work, connection: Connection, workdir: str, check: Callable[[], None]) -> None:
    def progress(what: str) -> Callable[[int, int], None]:
        def seen(done: int, total: int) -> None:
            check()
            work.report.progress(what, done, total)

        return seen

    source = Path(work.spec.workdir)
    work.report.step(f"sending {source}")
    sent = connection.put(source, f"{workdir}/", progress=progress(str(source)))
    work.report.step(f"sent {sent.files} files, {sent.bytes / 1e6:.1f} MB")
    for item in work.spec.data:
        check()
        target = f"{workdir}/{item.target}"
        if is_s3(item.source):
            bring_data(work, connection, item.source, target, progress(item.source))
            continue
        work.report.step(f"sending {item.source} to {item.target}")
        connection.put(Path(item.source), target, progress=progress(item.source))


def _restore(work: Work, ready: Ready, agent: AgentClient, workdir: str, newest: Newest) -> str:
    """Put the newest whole checkpoint in place; return its path there, or "" on a first start."""
    checkpoint_dir = f"{workdir}/{work.spec.checkpoints.dir}"
    passed_over = False
    while True:
        for one in newest.passed_over:
            passed_over = True
            _pass_over(work, one.name or one.key, one.why)
        manifest = newest.manifest
        if manifest is None:
            if passed_over:
                work.report.warn("no checkpoint can be used; the job starts from the beginning")
            return ""
        dest = f"{checkpoint_dir}/{manifest.name}"
        try:
            _put_in_place(work, ready, agent, manifest, dest)
        except CorruptManifest as error:
            passed_over = True
            _pass_over(work, manifest.name, error.message)
            newest = work.store.newest_whole(verify=False, older_than=manifest)
            continue
        work.report.step(f"restored checkpoint {printable(manifest.name)}")
        return dest


def _pass_over(work: Work, name: str, why: str) -> None:
    work.report.warn(f"checkpoint {printable(name)} is passed over: {why}")


def _put_in_place(
    work: Work, ready: Ready, agent: AgentClient, manifest: Manifest, dest: str
) -> None:
    """Have the machine take a checkpoint from the store, or from us where it cannot.

    Raises:
        CorruptManifest: it is not whole.
    """
    local = isinstance(ready.machine.access, LocalAccess)
    if local and work.store.folder is not None:
        agent.restore(manifest, dest, {"folder": str(work.store.folder)})
    elif local or work.store.reachable_from_machine:
        agent.restore(manifest, dest, {"urls": work.store.read_urls(manifest)})
    else:
        incoming = f"{agent.directory}/incoming"
        what = f"checkpoint {printable(manifest.name)}"
        work.report.step(f"sending {what}")
        send_checkpoint(
            work,
            ready.connection,
            manifest,
            incoming,
            lambda done, total: work.report.progress(what, done, total),
        )
        agent.restore(manifest, dest, {"folder": incoming})
        remove_checkpoint(ready.connection, incoming)


def _job(
    work: Work,
    ready: Ready,
    number: int,
    workdir: str,
    resume_from: str,
    outbox: str | None,
) -> Job:
    spec = work.spec
    checkpoint_dir = f"{workdir}/{spec.checkpoints.dir}"
    env = {
        **spec.env,
        "GPUCTL_RUN_ID": work.run_id,
        "GPUCTL_ATTEMPT": str(number),
        "GPUCTL_CHECKPOINT_DIR": checkpoint_dir,
        "GPUCTL_RESUME_FROM": resume_from,
        "GPUCTL_NODE_RANK": "0",
        "GPUCTL_NODES": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    return Job(
        run=work.run_id,
        attempt=number,
        workdir=workdir,
        env=env,
        secrets=dict(work.secrets),
        preflight=spec.preflight.run,
        setup=spec.setup,
        command=spec.run,
        checkpoint_dir=checkpoint_dir,
        settle_seconds=spec.checkpoints.settle.total_seconds(),
        outputs=tuple(output.source for output in spec.outputs),
        store=_grant(work, outbox),
        notice=_notices(ready),
    )


def _notices(ready: Ready) -> tuple[Mapping[str, str], ...]:
    """Say where the machine hears that it will be taken away."""
    file = {"file": f"{ready.connection.home}/.interruption"}
    root = ready.machine.notice_root
    return (file,) if root is None else (file, {"aws": root})


def _grant(work: Work, outbox: str | None) -> Mapping[str, Any] | None:
    if outbox is None:
        return work.store.write_grant()
    return {"kind": "folder", "path": outbox, "keep": OUTBOX_KEEP}
