"""What a person is told about a machine that may still be billing."""

from __future__ import annotations

from dataclasses import dataclass

from gpuctl.errors import MayStillBill
from gpuctl.fleet.consoles import by_hand
from gpuctl.ledger import MachineRow
from providers.base import AuthFailed, Machine, Provider, ProviderError


@dataclass(frozen=True, slots=True)
class Doubt:
    """One machine whose end is not proven, on its provider."""

    provider: Provider
    row: MachineRow
    provider_id: str | None

    def refused(self, error: ProviderError) -> MayStillBill:
        """Return that its end was not accepted."""
        return self._said(
            f"{self.provider.name} did not accept the end of {self._machine}: {error}", error
        )

    def unproven(self, seen: Machine | None, error: ProviderError | None) -> MayStillBill:
        """Return that there is no proof.

        Args:
            seen: what the last look showed.
            error: why there was no such look.
        """
        why = f"it is still {seen.status}" if seen else "no proof that it is gone"
        if error is not None:
            why = f"{self.provider.name} does not answer: {error}"
        return self._said(f"{self._machine} may still be billing: {why}", error)

    def unswept(self, error: ProviderError | None) -> MayStillBill:
        """Return that it is gone, and that what it left behind may be there."""
        return MayStillBill(
            f"{self.row.name} is gone, but what it left on {self.provider.name} could not be "
            f"swept: {error}",
            machine=self.row.name,
            next=f"Run `gpuctl terminate {self.row.name}` again.",
        )

    def unexpected(self, error: BaseException) -> MayStillBill:
        """Return that something broke that must not. Its text may hold more than one should see."""
        made = self._said(
            f"{self._machine} may still be billing: {type(error).__name__} in gpuctl or in its "
            f"adapter for {self.provider.name}",
            None,
        )
        made.__cause__ = error
        return made

    def _said(self, message: str, error: ProviderError | None) -> MayStillBill:
        return MayStillBill(message, machine=self.row.name, next=self._advice(error))

    def _advice(self, error: ProviderError | None) -> str:
        hand = by_hand(self.provider, self.row, self.provider_id)
        if isinstance(error, AuthFailed):
            return f"Put valid {self.provider.name} credentials in place and repeat, or {hand}."
        return (
            f"The watchdog keeps trying. Run `gpuctl terminate {self.row.name}` again, or {hand}."
        )

    @property
    def _machine(self) -> str:
        return f"{self.row.name} ({self.provider_id or 'id unknown'})"
