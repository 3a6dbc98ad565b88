"""Reading what `nvidia-smi` says of the cards in a computer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from providers import gpus

QUERY = (
    "nvidia-smi",
    "--query-gpu=uuid,name,memory.total,memory.used",
    "--format=csv,noheader,nounits",
)
"""The command whose answer `read_cards` understands."""

_MIB_IN_A_GIB = 1024


class NotReadable(Exception):
    """nvidia-smi is there and does not tell. The text says what it said."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a computer."""

    uuid: str
    name: str  # canonical where the card is known
    vram_gb: float  # nominal
    used_gib: float = 0  # of its memory, by whoever

    @property
    def busy(self) -> bool:
        """Whether somebody uses it: a driver and a desktop alone take less."""
        return self.used_gib > max(1.0, 0.1 * self.vram_gb)


def read_cards(said: str) -> tuple[Gpu, ...]:
    """Read lines of ``uuid, name, MiB, MiB used``.

    Raises:
        NotReadable: they look different.
    """
    found = []
    for line in said.splitlines():
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        try:
            uuid, product, total, used = fields
            reported = float(total) / _MIB_IN_A_GIB
            # Some cards share the computer's memory and say "[N/A]".
            taken = 0.0 if used.startswith("[") else float(used) / _MIB_IN_A_GIB
        except ValueError as error:
            raise NotReadable(f"nvidia-smi said {line!r}") from error
        card = gpus.identify(product, reported)
        name = card.name if card else product.replace("NVIDIA ", "").replace(" ", "-")
        vram = card.vram_gb if card else float(round(reported))
        found.append(Gpu(uuid, name, vram, taken))
    return tuple(found)
