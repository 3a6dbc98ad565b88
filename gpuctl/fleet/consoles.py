"""Where a person ends a machine by hand, when no program can."""

from __future__ import annotations

from urllib.parse import quote

from gpuctl.ledger import MachineRow
from providers.base import Capabilities, Provider


def console_link(capabilities: Capabilities, provider_id: str | None) -> str | None:
    """Return the address where a machine is shown; None where the provider has none.

    Without an id, and for providers whose pages have no address of their own for a machine, it
    is the page that lists them.
    """
    template = capabilities.console
    if not template:
        return None
    if provider_id is None:
        return template.partition("?")[0].partition("#")[0].replace("{region}.", "")
    region, _, own = provider_id.rpartition("/")
    return template.format(id=quote(own, safe=""), region=quote(region, safe=""))


def by_hand(provider: Provider, row: MachineRow, provider_id: str | None) -> str:
    """Say how to end a machine without gpuctl: its id, the link, and what to mind there."""
    capabilities = provider.capabilities
    if capabilities.kind in ("local", "host"):
        return "look at that computer yourself"
    link = console_link(capabilities, provider_id)
    what = f"end {provider_id} ({row.name})" if provider_id else f"look for {row.name}, and end it,"
    if link is None:
        return f"{what} in {provider.name}'s own console"
    note = f" ({capabilities.console_note})" if capabilities.console_note else ""
    return f"{what} at {link}{note}"
