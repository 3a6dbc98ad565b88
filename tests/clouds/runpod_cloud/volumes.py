"""Network volumes: they outlive pods, bill until they are deleted, and stand in one place."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tests.clouds.runpod_cloud.pods import HOURS_A_MONTH

_TERABYTE = 1000
_MONTH, _MONTH_ABOVE = Decimal("0.07"), Decimal("0.05")  # USD a GB; above the first terabyte


@dataclass(frozen=True)
class Volume:
    """One network volume."""

    id: str
    name: str
    size: int
    data_center: str
    tier: str

    @property
    def price_hour(self) -> Decimal:
        """USD an hour, whether a pod uses it or none does."""
        above = max(self.size - _TERABYTE, 0)
        return ((self.size - above) * _MONTH + above * _MONTH_ABOVE) / HOURS_A_MONTH

    def json(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "id": self.id,
            "name": self.name,
            "size": self.size,
            "dataCenter": self.data_center,
            "type": self.tier,
        }
