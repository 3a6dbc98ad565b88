"""Ending the machines of one account together, each with a proof of its own.

The ends are asked for side by side, as fast as the provider allows. One listing is then a look at
all whose end was accepted before it began: the account is asked as often for five hundred machines
as for one. What fails with one of them concerns the others as little as if it were alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from gpuctl.errors import GpuctlError, LedgerError
from gpuctl.fleet.closing import Gone, close, note, sweep
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.doubt import Doubt
from gpuctl.fleet.presence import (
    LEAST_PAUSE_SECONDS,
    Absence,
    Sighting,
    Wanted,
    look_at_all,
    pause_after,
)
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.ssh_config import follow_ledger
from gpuctl.fleet.under_way import said_under_way, seconds_under_way
from gpuctl.ledger import MachineRow
from providers.base import (
    ABSENT,
    Ambiguous,
    AuthFailed,
    Machine,
    NotFound,
    Provider,
    ProviderError,
    RateLimited,
)

_AT_ONCE = 8  # ends that are asked for at the same time
_FEW = 4  # as many are asked for by their ids, too
_LOOK_EVERY_SECONDS = 300.0  # while ends wait to be asked for
_TICK_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(eq=False, slots=True)
class _Case:
    """One machine on its way out."""

    row: MachineRow
    provider_id: str | None  # None: its create was never answered, and it is looked for by name
    absence: Absence
    outcome: Future[Receipt] = field(default_factory=Future)
    accepted: float | None = None  # when its end was; a look that began before proves nothing
    push_at: float = 0.0  # when its end is asked for again, if it is still there
    patience: float = 0.0
    seen: Machine | None = None
    error: ProviderError | None = None
    trouble: LedgerError | None = None

    @property
    def open(self) -> bool:
        return not self.outcome.done()


class Teardown:
    """Machines of one account on their way out.

    Args:
        rows: open ones, all of this provider.
        why: for the ledger.
        deadline_seconds: for each end to be accepted, and from the last of them for the proof.
    """

    def __init__(
        self,
        fleet: Fleet,
        provider: Provider,
        rows: Sequence[MachineRow],
        *,
        why: str,
        deadline_seconds: float,
    ) -> None:
        self._fleet = fleet
        self._clock = fleet.clock
        self._provider = provider
        self._capabilities = provider.capabilities
        self._why = why
        self._deadline_seconds = deadline_seconds
        settle = self._capabilities.settle_seconds
        self._cases = [_Case(row, row.provider_id, Absence(settle)) for row in rows]
        self._changed = threading.Condition()
        self._queue: deque[_Case] = deque()  # whose end is to be asked for, or asked for again
        self._unanswered = 0  # of them, and of those being asked: not accepted yet
        self._over = False
        self._deadline: float | None = None  # of the proofs; set when all were asked
        self._latest = 0.0  # when the last one must have shown itself
        self._told: set[str] = set()
        self._looked = self._clock.monotonic()
        self._pause = self._capabilities.poll_seconds

    @property
    def outcomes(self) -> list[Future[Receipt]]:
        """What becomes of each, in the order of the rows: a receipt or a GpuctlError."""
        return [case.outcome for case in self._cases]

    def run(self) -> None:
        """Carry it to its end; every outcome is set then."""
        try:
            for case in self._cases:
                if case.provider_id is not None:
                    self._enqueue(case)
                else:
                    case.trouble = note(self._fleet, "destroy_asked", case.row.name, why=self._why)
                    case.accepted = self._clock.monotonic()
                    self._may_be_under_way(case)
            if len(self._cases) > 1:
                for _ in range(min(len(self._cases), _AT_ONCE)):
                    # Daemons: somebody who presses Ctrl-C again does not want to wait.
                    threading.Thread(target=self._ask_on, name="release", daemon=True).start()
            while self._worth_a_look():
                self._look()
                self._close()
                self._rest()
        except BaseException as error:
            for case in self._cases:
                self._fail(case, error)
            if not isinstance(error, Exception):
                raise
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    # ------------------------------------------------------------------ asking for the ends

    def _enqueue(self, case: _Case) -> None:
        with self._changed:
            case.accepted = None
            self._unanswered += 1
            self._queue.append(case)
            self._deadline = None
            self._changed.notify_all()

    def _ask_on(self) -> None:
        while (case := self._next()) is not None:
            self._ask(case)

    def _next(self) -> _Case | None:
        with self._changed:
            while not self._queue and not self._over:
                self._changed.wait()
            return None if self._over else self._queue.popleft()

    def _ask(self, case: _Case) -> None:
        if case.accepted is not None:
            self._push(case)
            return
        try:
            self._note(case, "destroy_asked", why=self._why)
            answer = self._accepted(case)
            if answer == ABSENT and case.seen is None:
                self._may_be_under_way(case)
            self._note(case, "destroy_accepted", answer=answer)
            with self._changed:
                case.accepted = self._clock.monotonic()
                case.patience = self._capabilities.settle_seconds
                case.push_at = case.accepted + case.patience
        except Exception as error:
            self._fail(case, error)
        finally:
            with self._changed:
                self._unanswered -= 1
                self._changed.notify_all()

    def _accepted(self, case: _Case) -> str:
        """Ask for the end until the provider has accepted it; return its answer."""
        assert case.provider_id is not None
        deadline = self._clock.monotonic() + self._deadline_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._provider.destroy(case.provider_id)
            except NotFound:
                return ABSENT
            except (Ambiguous, RateLimited) as error:
                # No answer, or too many requests: asking again is safe, destroy is idempotent.
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    raise self._doubt(case).refused(error) from error
                self._tell("has not accepted every end yet", error)
                wait = error.retry_after if isinstance(error, RateLimited) else 0.0
                self._clock.sleep(min(max(wait, pause), left))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            except ProviderError as error:
                raise self._doubt(case).refused(error) from error

    def _may_be_under_way(self, case: _Case) -> None:
        """Believe no look that comes before a machine that nobody has seen must have shown."""
        left = seconds_under_way(self._fleet, case.row, self._capabilities)
        if left > 0:
            self._fleet.say(said_under_way(case.row, left))
        appears_by = self._clock.monotonic() + left
        with self._changed:
            case.absence = Absence(self._capabilities.settle_seconds, appears_by)
            self._latest = max(self._latest, appears_by)

    def _tell(self, what: str, error: ProviderError) -> None:
        """Say once why it takes so long. A pace that has to be kept is no trouble."""
        if what not in self._told and not isinstance(error, RateLimited):
            self._told.add(what)
            self._fleet.say(f"{self._provider.name} {what} ({error}); asking on")

    def _push(self, case: _Case) -> None:
        """Ask once more for the end of a machine that is still there; the next look decides."""
        seen = case.seen
        if not case.open or seen is None:
            return
        try:
            self._provider.destroy(seen.provider_id)
        except NotFound:
            return
        except ProviderError as error:
            case.error = error
        except Exception as error:
            self._fail(case, error)

    # ------------------------------------------------------------------ looking

    def _worth_a_look(self) -> bool:
        """Wait until a look is worth its calls; False when every machine has its outcome."""
        if len(self._cases) == 1:
            while self._queue:
                self._ask(self._queue.popleft())
        with self._changed:
            while self._unanswered and not (self._waits_for_proof() and self._long_ago()):
                self._changed.wait(_TICK_SECONDS)
            if not self._unanswered and self._deadline is None:
                began = max(self._clock.monotonic(), self._latest)
                self._deadline = began + self._deadline_seconds
        return any(case.open for case in self._cases)

    def _long_ago(self) -> bool:
        """Whether the last look is too long ago to wait for ends that are still being asked for.

        Looks take from the quota of those that wait for their turn. When none does, those that are
        under way may hang, and must not hold up the others.
        """
        every = _LOOK_EVERY_SECONDS if self._queue else self._capabilities.settle_seconds
        return self._clock.monotonic() - self._looked >= every

    def _waits_for_proof(self) -> list[_Case]:
        """Whose end was accepted, and whose row is open."""
        return [case for case in self._cases if case.open and case.accepted is not None]

    def _look(self) -> None:
        watched = [case for case in self._waits_for_proof() if not case.absence.proven]
        began = self._looked = self._clock.monotonic()
        if not watched:
            return
        wanted = [Wanted(case.row.name, case.provider_id) for case in watched]
        by_id = len(wanted) <= _FEW
        try:
            seen = look_at_all(self._provider, wanted, self._clock, by_id=by_id)
        except ProviderError as error:
            self._tell("does not say what is gone", error)
            seen = [error] * len(watched)
        ended = self._clock.monotonic()
        for case, sighting in zip(watched, seen, strict=True):
            if isinstance(sighting, Sighting):
                self._take(case, sighting, began, ended)
            else:
                # A failed call neither proves nor disproves; what was seen before stands.
                case.error = sighting
                if isinstance(sighting, AuthFailed):
                    self._fail(case, self._unproven(case))

    def _take(self, case: _Case, sighting: Sighting, began: float, ended: float) -> None:
        case.error, case.seen = None, sighting.machine
        case.absence.take(sighting, began, ended)
        if case.seen is None:
            return
        if case.provider_id is None:
            case.provider_id = case.seen.provider_id
            self._enqueue(case)
        elif began >= case.push_at:
            # Before that, a listing may show what was before; and some machines end slowly.
            case.patience *= 2
            case.push_at = ended + case.patience
            with self._changed:
                self._queue.append(case)
                self._changed.notify_all()

    def _rest(self) -> None:
        """Let the time pass until the next look, if all were asked; or give up."""
        waiting = [case for case in self._cases if case.open]
        if self._deadline is None or not waiting:
            return
        left = self._deadline - self._clock.monotonic()
        if left <= 0:
            for case in waiting:
                self._fail(case, self._unproven(case))
            return
        poll = self._capabilities.poll_seconds
        pauses = [self._until_next(case) for case in waiting]
        self._pause = max(poll, min(pauses)) if any(case.error for case in waiting) else poll
        self._clock.sleep(min(max(min(pauses), LEAST_PAUSE_SECONDS), left))

    def _until_next(self, case: _Case) -> float:
        if case.error is not None:
            return pause_after(case.error, self._pause)
        if case.absence.proven or case.absence.due is None:
            return self._capabilities.poll_seconds
        return case.absence.due - self._clock.monotonic()

    # ------------------------------------------------------------------ the outcomes

    def _close(self) -> None:
        """Sweep after all that are proven gone, and close their rows."""
        gone = {case.row.name: case for case in self._cases if case.open and case.absence.proven}
        if not gone:
            return
        try:
            swept = sweep(self._provider, gone.keys())
        except ProviderError as error:
            swept = dict.fromkeys(gone, error)
        closed: list[tuple[_Case, Receipt, LedgerError | None]] = []
        for name, left in swept.items():
            case = gone[name]
            if isinstance(left, ProviderError):
                case.error = left
                if isinstance(left, AuthFailed):
                    self._fail(case, self._unproven(case))
                continue
            try:
                machine = Gone(case.row, case.provider_id, case.absence.confirmed_by)
                receipt, trouble = close(self._fleet, self._provider, machine, left)
            except Exception as error:
                self._fail(case, error)
                continue
            closed.append((case, receipt, trouble or case.trouble))
        follow_ledger(self._fleet)  # whoever waits for an outcome may end with it
        for case, receipt, trouble in closed:
            self._done(case, receipt, trouble)
        if left_over := sum(case.open for case in self._cases):
            count = len(self._cases)
            self._fleet.say(f"{self._provider.name}: {count - left_over} of {count} machines done")

    @staticmethod
    def _done(case: _Case, receipt: Receipt, trouble: LedgerError | None) -> None:
        if trouble is None:
            case.outcome.set_result(receipt)
            return
        told = LedgerError(
            f"{receipt.name} is gone, confirmed {len(receipt.confirmed_by)} times, and costs "
            f"nothing any more; but {trouble.message}",
            machine=receipt.name,
            next=trouble.next,
        )
        case.outcome.set_exception(told)

    def _fail(self, case: _Case, error: BaseException) -> None:
        if case.open:
            told = error if isinstance(error, GpuctlError) else self._doubt(case).unexpected(error)
            case.outcome.set_exception(told)

    def _note(self, case: _Case, kind: str, **facts: str) -> None:
        case.trouble = note(self._fleet, kind, case.row.name, **facts) or case.trouble

    def _doubt(self, case: _Case) -> Doubt:
        return Doubt(self._provider, case.row, case.provider_id)

    def _unproven(self, case: _Case) -> GpuctlError:
        if case.absence.proven:
            return self._doubt(case).unswept(case.error)
        return self._doubt(case).unproven(case.seen, case.error)
