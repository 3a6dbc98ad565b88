"""What each provider can do: those with an adapter, and those with reference prices only."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from gpuctl.errors import UsageError
from gpuctl.fleet.context import Fleet
from providers.registry import known_systems, names, reference_only


@dataclass(frozen=True, slots=True)
class Listed:
    """One provider. What is unknown without an adapter is None."""

    name: str
    title: str
    adapter: bool
    configured: bool  # whether there are credentials to try
    sells: str
    gpus: bool | None
    spot: bool | None
    kind: str | None = None  # container, vm, local or host
    stop: bool | None = None
    ttl: bool | None = None  # the cloud's own timer
    labels: bool | None = None
    by_name_only: bool = False
    trouble: str | None = None  # why its adapter cannot be used

    @property
    def usable(self) -> str:
        """Say in a word or two whether something can be rented there now."""
        if self.trouble:
            return "broken"
        if not self.adapter:
            return "reference prices only"
        if not self.configured:
            return "no credentials"
        return "when named" if self.by_name_only else "yes"

    def facts(self) -> dict[str, object]:
        """Return it for JSON."""
        return asdict(self)


def catalog(fleet: Fleet) -> list[Listed]:
    """Return every provider that is known; asks nobody."""
    return [
        *(_with_adapter(fleet, name) for name in names()),
        *(_reference(name) for name in reference_only()),
    ]


def _with_adapter(fleet: Fleet, name: str) -> Listed:
    system = known_systems().get(name)
    title, sells = (system.title, system.sells) if system else (name, "")
    try:
        provider = fleet.provider(name)
    except UsageError as error:
        return Listed(name, title, True, False, sells, None, None, trouble=error.message)
    can = provider.capabilities
    return Listed(
        name=name,
        title=title,
        adapter=True,
        configured=provider.configured(),
        sells=sells,
        gpus=can.gpus,
        spot=can.spot,
        kind=can.kind,
        stop=can.stop,
        ttl=can.ttl,
        labels=can.labels,
        by_name_only=can.by_name_only,
    )


def _reference(name: str) -> Listed:
    system = known_systems()[name]
    return Listed(
        name,
        system.title,
        False,
        False,
        system.sells,
        system.gpus,
        system.spot,
        by_name_only=system.by_name_only,
    )
