"""Ctrl-C, SIGTERM and SIGHUP while something is rented: the first releases, the second leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from gpuctl.cli.output import Partial
from gpuctl.errors import Exit, GpuctlError
from gpuctl.fleet.context import Fleet
from gpuctl.ledger import MachineRow
from gpuctl.run.stopping import SecondSignal, StopRequest, stopping_on_signals


class LeftAtOnce(GpuctlError):
    """Somebody pressed Ctrl-C a second time: what was rented is left to the watchdog."""

    kind = "Interrupted"
    exit_code = Exit.INTERRUPTED


@dataclass(frozen=True, slots=True)
class Stop:
    """What waits ask whether somebody wants to stop."""

    request: StopRequest

    def pause(self, seconds: float) -> None:
        """Let seconds pass.

        Raises:
            Interrupted: somebody asked to stop, before or meanwhile.
        """
        self.request.wait(seconds)
        self.request.check()


@contextmanager
def stoppable(
    fleet: Fleet, *, run: str | None = None, document: Callable[[], Mapping[str, object]] = dict
) -> Iterator[Stop]:
    """Turn the first signal into a request to stop, and the second into an error that says all.

    Args:
        run: only its machines are named.
        document: what goes beside the error with ``--json``, as it is then.
    """
    stop = Stop(StopRequest())
    try:
        with stopping_on_signals(stop.request):
            yield stop
    except SecondSignal as again:
        raise Partial(
            left_behind(fleet.ledger.machines(open_only=True, run=run)), document()
        ) from again


def left_behind(rows: list[MachineRow]) -> GpuctlError:
    """Say what may still bill when somebody leaves at once. Pure."""
    if not rows:
        return LeftAtOnce("Interrupted; nothing is rented")
    names = ", ".join(row.name for row in rows)
    return LeftAtOnce(
        f"Left at once; {names} may still be billing until the watchdog has ended "
        + ("it" if len(rows) == 1 else "them"),
        machine=rows[0].name,
        may_bill=True,
        next=f"`gpuctl terminate {' '.join(row.name for row in rows)}` ends and proves it now.",
    )
