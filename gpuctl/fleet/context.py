"""What every phase of a machine's life needs at hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gpuctl.errors import UsageError
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from providers.base import Clock, Provider, ProviderError, Regional
from providers.registry import BrokenProvider, UnknownProvider, create_provider, names

BORROWED = "borrowed"
"""The provider of claims on machines that are lent; see `gpuctl.fleet.borrowed`."""

Say = Callable[[str], None]
"""Takes one line for a person. The rooms below `cli` never print."""


def silent(_line: str) -> None:
    """Say nothing."""


@dataclass(slots=True)
class Fleet:
    """One home, its ledger, and the providers as its settings name them."""

    home: Home
    ledger: Ledger
    clock: Clock
    environ: Mapping[str, str]
    say: Say = silent
    _providers: dict[str, Provider] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def provider(self, name: str) -> Provider:
        """Return a provider by name, made on first use.

        Raises:
            UsageError: there is no such provider, or its settings are malformed.
        """
        with self._lock:
            if name == BORROWED and name not in self._providers:
                from gpuctl.fleet.borrowed import BorrowedMachines

                self._providers[name] = BorrowedMachines(self)
            if name not in self._providers:
                try:
                    made = create_provider(
                        name, self.environ, home=self.home.path, clock=self.clock
                    )
                except (UnknownProvider, BrokenProvider, ProviderError) as error:
                    raise UsageError(str(error)) from error
                if isinstance(made, Regional):
                    made.look_in(self.ledger.regions_used(name))
                self._providers[name] = made
            return self._providers[name]

    def use(self, provider: Provider) -> None:
        """Put a provider in under its own name (tests, and third parties' code)."""
        with self._lock:
            self._providers[provider.name] = provider

    def asked_providers(self) -> list[str]:
        """Name the providers that audit and reap must ask.

        Every one that the ledger has ever used, and every one with credentials.
        """
        asked = set(self.ledger.providers_used())
        for name in {*names(), *self._providers}:
            try:
                if self.provider(name).configured():
                    asked.add(name)
            except UsageError:
                # Whether it has credentials cannot be known, so it counts as not answering.
                asked.add(name)
        return sorted(asked)
