"""Threads and streams of one transfer: the first that fails ends them all."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from gpuctl.errors import RemoteError
from gpuctl.remote.channels import Channels
from gpuctl.remote.connection import Transferred
from gpuctl.remote.transfer import planning
from gpuctl.remote.transfer.pace import Meter, Pace
from gpuctl.remote.transfer.parts import Job
from gpuctl.remote.transfer.session import LinkBroken, NoPython, Session

if TYPE_CHECKING:
    from paramiko import SFTPClient

    from gpuctl.remote.transfer.sftp import Sftp

_JOIN_SECONDS = 30.0
_VERDICT_SECONDS = 2.0
_SETTLE_SECONDS, _LOOK_SECONDS = 1.0, 1.0
_FRUITLESS = 5  # attempts in a row that moved nothing
T = TypeVar("T")


class Crew:
    """Runs functions in threads over sessions that are closed when one of them fails.

    Args:
        channels: the way to the machine.
        machine: its name, for what goes wrong.
    """

    def __init__(self, channels: Channels, machine: str | None) -> None:
        self.changed = threading.Condition()
        self.machine = machine
        self._channels = channels
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._sessions: list[Session] = []
        self._closed = False

    def control(self) -> Session:
        """The first stream, over the link that all share. Raises RemoteError."""
        return self._joined(Session(self._channels, machine=self.machine))

    def further(self, root: str, token: str, name: str | None = None) -> Session | None:
        """One more stream, on a link of its own, or None: then the others do the work.

        Its greeting is still to come: what is sent meanwhile need not wait for it.

        Args:
            root, token, name: as `Session.hello` takes them.
        """
        try:
            session = Session(self._channels, own_link=True, machine=self.machine)
        except RemoteError:
            return None
        self._joined(session)
        session.hello(root, token, name)
        return session

    def _joined(self, session: Session) -> Session:
        with self.changed:
            closed = self._closed
            self._sessions.append(session)
        if closed:
            session.close()
        return session

    def widen(self, work: Callable[[], None], left: Callable[[], int], most: int) -> None:
        """Let further streams work: some at first, more when those are held up by the distance.

        Args:
            work: what each does, beginning with its login.
            left: tells how many bytes are still to be moved.
            most: streams there may be, the first included.
        """
        running = 1
        for goal in planning.GOAL_RATES:
            wanted = planning.streams_wanted(left(), self._channels.round_trip, goal)
            for _ in range(running, min(wanted, most)):
                self.start(work)
            running = max(running, min(wanted, most))
            if running == 1 or not self._held_up():
                return

    def _held_up(self) -> bool:
        """Whether the streams, after a while, are about as fast as their windows allow."""
        moved: list[dict[Session, int]] = []
        for seconds in (_SETTLE_SECONDS, _LOOK_SECONDS):
            with self.changed:
                self.changed.wait_for(lambda: self._closed, seconds)
                if self._closed:
                    return False
                moved.append({session: session.moved for session in self._sessions})
        before, after = moved
        fastest = (planning.window_rate(self._channels.round_trip) or 0) * _LOOK_SECONDS
        quick = [after[session] - before[session] > fastest * 0.85 for session in before]
        return all(quick)

    def start(self, work: Callable[..., None], *args: object) -> threading.Thread:
        """Run something in a thread."""
        thread = threading.Thread(target=self._guarded, args=(work, args), daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _guarded(self, work: Callable[..., None], args: tuple[object, ...]) -> None:
        try:
            work(*args)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End everything; the first error is the one to tell, but the machine's word is better."""
        with self.changed:
            better = isinstance(self._error, LinkBroken) and not isinstance(error, LinkBroken)
            first = self._error is None
            if first or better:
                self._error = error
            self.changed.notify_all()
        if first:
            self.close()

    @contextmanager
    def heard(self, listener: threading.Thread) -> Iterator[None]:
        """Sends on a stream that another thread listens to, which may hear why it broke."""
        try:
            yield
        except LinkBroken:
            listener.join(_VERDICT_SECONDS)
            raise

    @property
    def failed(self) -> bool:
        """Whether something failed."""
        return self._error is not None

    def wait_for(self, true: Callable[[], bool]) -> None:
        """Wait until it is true; each session's own deadlines bound it. Raises what failed."""
        with self.changed:
            self.changed.wait_for(lambda: self._error is not None or true())
        self.check()

    def check(self) -> None:
        """Raise what failed, once everything has ended."""
        if self._error is None:
            return
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_SECONDS)
        raise self._error

    def close(self) -> None:
        """Close every session."""
        with self.changed:
            sessions, self._closed = list(self._sessions), True
            self.changed.notify_all()
        for session in sessions:
            session.close()


class Jobs:
    """What is still to be moved, shared by the streams."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._waiting: deque[Job] = deque()
        self._complete = False

    def add(self, jobs: Iterable[Job]) -> None:
        """More to do."""
        with self._crew.changed:
            self._waiting.extend(jobs)
            self._crew.changed.notify_all()

    def complete(self) -> None:
        """Nothing more will be added."""
        with self._crew.changed:
            self._complete = True
            self._crew.changed.notify_all()

    def take(self, *, wait: bool = True) -> Job | None:
        """The next, or None when there is none (any more, when waiting)."""
        with self._crew.changed:
            if wait:
                self._crew.changed.wait_for(
                    lambda: self._waiting or self._complete or self._crew.failed
                )
            return self._waiting.popleft() if self._waiting and not self._crew.failed else None

    @property
    def ended(self) -> bool:
        """Whether nothing is left and nothing will come."""
        return self._complete and not self._waiting


def carried_on(work: Callable[[], T], done: Callable[[], int]) -> T:
    """Do it again after a broken link, for as long as that gets it further.

    Args:
        work: carries on from what is there already.
        done: bytes moved so far, over all attempts.

    Raises:
        LinkBroken: it broke `_FRUITLESS` times in a row without moving anything.
    """
    state = {"done": -1, "fruitless": 0}

    def give_up(_: RetryCallState) -> bool:
        now = done()
        state["fruitless"] = 0 if now > state["done"] else state["fruitless"] + 1
        state["done"] = now
        return state["fruitless"] >= _FRUITLESS

    retrying = Retrying(
        retry=retry_if_exception_type(LinkBroken),
        stop=give_up,
        wait=wait_random_exponential(multiplier=0.2, max=15),
        reraise=True,
    )
    return retrying(work)


def carried_out(
    attempt: Callable[[], Transferred],
    plain: Callable[[Sftp], Transferred],
    *,
    meter: Meter,
    pace: Pace,
    machine: str | None,
    sftp: Callable[[], SFTPClient] | None,
) -> Transferred:
    """Move with our program on the machine, or by plain SFTP where it has no python3.

    Args:
        attempt: one try with the program.
        plain: one try without.
        sftp: opens a session; None where there is none.

    Raises:
        NoPython: the machine has no python3, and there is no ``sftp``.
        RemoteError: it cannot be done there, or the link broke again and again.
    """
    try:
        return carried_on(attempt, lambda: meter.moved)
    except NoPython:
        if sftp is None:
            raise
    from gpuctl.remote.transfer.sftp import Sftp

    def slowly() -> Transferred:
        with sftp() as client:
            return plain(Sftp(client, meter=meter.restarted(), pace=pace, machine=machine))

    return carried_on(slowly, lambda: meter.moved)
