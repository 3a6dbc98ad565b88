"""Errors that are written for people.

Each says what happened, to which machine, whether it may still cost money, and what to do
next. Exit codes are those of the design: 0 done, 1 failed, 2 usage or spec, 3 nothing
rentable, 4 credentials, 5 refused by a cap, 6 may still be billing, 130 interrupted.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What the process returns."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOTHING_RENTABLE = 3
    CREDENTIALS = 4
    CAP = 5
    MAY_BILL = 6
    INTERRUPTED = 130
    TERMINATED = 143


class GpuctlError(Exception):
    """Something a person must read.

    Args:
        message: one sentence or two; never a secret.
        machine: the name of the machine that it happened to.
        may_bill: whether something may still cost money.
        next: what to do now.
    """

    kind = "Failed"
    exit_code: Exit = Exit.FAILED

    def __init__(
        self,
        message: str,
        *,
        machine: str | None = None,
        may_bill: bool = False,
        next: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.machine = machine
        self.may_bill = may_bill
        self.next = next


class UsageError(GpuctlError):
    """The command line or an argument is wrong."""

    kind = "Usage"
    exit_code = Exit.USAGE


class SpecError(UsageError):
    """A train.yaml is wrong; the message names file, line and key."""

    kind = "Spec"


class NothingRentable(GpuctlError):
    """No offer matches; the message names the nearest."""

    kind = "NothingRentable"
    exit_code = Exit.NOTHING_RENTABLE


class NoCredentials(GpuctlError):
    """No usable credentials for anything that was asked."""

    kind = "Credentials"
    exit_code = Exit.CREDENTIALS


class CapReached(GpuctlError):
    """Refused or ended by a cap on price, cost or time."""

    kind = "Cap"
    exit_code = Exit.CAP


class MayStillBill(GpuctlError):
    """Something may still be billing; the message names it and what to do."""

    kind = "MayBill"
    exit_code = Exit.MAY_BILL

    def __init__(self, message: str, *, machine: str | None = None, next: str) -> None:
        super().__init__(message, machine=machine, may_bill=True, next=next)


class LedgerError(GpuctlError):
    """The ledger cannot be read or written."""

    kind = "Ledger"


class StoreError(GpuctlError):
    """A store cannot be read or written."""

    kind = "Store"


class RemoteError(GpuctlError):
    """A machine did not answer, or not as it should."""

    kind = "Remote"


class Interrupted(GpuctlError):
    """Somebody asked us to stop; everything was released first."""

    kind = "Interrupted"
    exit_code = Exit.INTERRUPTED
