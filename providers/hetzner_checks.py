"""Whether a Hetzner project can be used. Makes nothing."""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Mapping, Sequence

from providers.base import Clock, Finding, ProviderError
from providers.hetzner_client import Api
from providers.hetzner_credentials import endpoint, token
from providers.hetzner_errors import Refusal
from providers.hetzner_offers import Prices
from providers.http_client import HttpClient

_SKEW_SECONDS = 120


def check(
    api: Api, environ: Mapping[str, str], clock: Clock, prices: Callable[[], Prices]
) -> Sequence[Finding]:
    """Return what `gpuctl doctor` shows. Raises what keeps everything from being asked."""
    charged = prices()
    currency = f"charged in {charged.currency}; prices are net, {charged.vat_rate} % VAT on top"
    return [
        Finding("key", True, "the token is valid"),
        _rights(api),
        Finding("currency", charged.currency in ("EUR", "USD"), currency),
        Finding("quota", True, "not told by the API: see Limits in Hetzner's Console"),
        _clock(environ, clock),
    ]


def _rights(api: Api) -> Finding:
    """Ask for a key without content to be made: refused either way, and for what tells."""
    try:
        api.write("POST", "/ssh_keys", {"name": "", "public_key": ""})
    except Refusal as refusal:
        if refusal.code == "token_readonly":
            return Finding("rights", False, "the token may only read: make one with Read & Write")
        if refusal.code == "invalid_input":
            return Finding("rights", True, "the token may read and write")
        return Finding("rights", False, str(refusal.error("to be asked for its rights")))
    except ProviderError as error:
        return Finding("rights", False, str(error))
    return Finding("rights", True, "the token may read and write")


def _clock(environ: Mapping[str, str], clock: Clock) -> Finding:
    """Compare the clocks; the library does not show the headers of an answer."""
    headers = {"Authorization": f"Bearer {token(environ)}"}
    client = HttpClient("hetzner", endpoint(environ), headers, clock=clock)
    try:
        said = client.read("/locations").headers.get("date", "")
        theirs = email.utils.parsedate_to_datetime(said)
    except ProviderError as error:
        return Finding("clock", False, str(error))
    except ValueError:
        return Finding("clock", True, "Hetzner does not tell its time")
    ahead = (clock.now() - theirs).total_seconds()
    detail = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} Hetzner's"
    return Finding("clock", abs(ahead) <= _SKEW_SECONDS, detail)
