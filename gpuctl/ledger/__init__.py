"""The book: what we intended, what the clouds confirmed, what it cost."""

from gpuctl.ledger.book import Ledger
from gpuctl.ledger.costs import Price
from gpuctl.ledger.events import Event
from gpuctl.ledger.rows import AttemptRow, CheckpointRow, MachineRow, OutputRow, RunRow

__all__ = [
    "AttemptRow",
    "CheckpointRow",
    "Event",
    "Ledger",
    "MachineRow",
    "OutputRow",
    "Price",
    "RunRow",
]
