"""The `vastai` provider: containers on other people's computers, rented or bid for.

docs/clouds/vastai.md says what gpuctl does there and what to mind. Settings: ``VAST_API_KEY``,
``VAST_URL``, ``GPUCTL_VASTAI_BID_MARGIN``, ``GPUCTL_VASTAI_UNVERIFIED``,
``GPUCTL_VASTAI_SSH_PORT``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import quote

from providers import vastai_boot, vastai_keys, vastai_market, vastai_offers
from providers.base import (
    ABSENT,
    Ambiguous,
    Billed,
    Capabilities,
    Clock,
    Finding,
    InvalidRequest,
    Leftover,
    Machine,
    NoCapacity,
    NotFound,
    Offer,
    Order,
    PriceChanged,
    ProviderError,
    RateLimited,
    State,
    Want,
)
from providers.http_client import Answer
from providers.shared_call import RecentAnswer, SharedCall
from providers.vastai_account import charges, findings
from providers.vastai_client import (
    DEFAULT_ROOT,
    ROOT,
    VastClient,
    api_key,
    is_absence,
    refusal,
    succeeded,
)
from providers.vastai_listing import all_rows, first_page
from providers.vastai_machines import Row, label, machine
from providers.vastai_offers import Terms
from providers.vastai_pace import Pace

_MARGIN = "GPUCTL_VASTAI_BID_MARGIN"
_UNVERIFIED = "GPUCTL_VASTAI_UNVERIFIED"
_SSH_PORT = "GPUCTL_VASTAI_SSH_PORT"
DEFAULT_IMAGE = "vastai/pytorch:@vastai-automatic-tag"
"""Vast.ai's own PyTorch image; the tag is chosen there to fit the host's driver."""

SETTLE_SECONDS = 30.0
SHOWN_SECONDS = 60.0  # new instances show up late
POLL_SECONDS = 10.0
PACE_FACTOR = 1.0

_SEARCH = "/api/v0/bundles/"
_DEARER = Decimal("1.1")  # than quoted: not what was agreed to, where there is no cap
_LOOKS_BACK = 2
_CHARGES_SECONDS = 10.0  # so long an answer about all of them serves
_CHARGED_LATE = timedelta(seconds=30)  # a charge that ends earlier than that is not all of it


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says."""

    key: str | None
    root: str
    terms: Terms
    ssh_port: int = 22


class VastProvider:
    """One account. Nothing is asked before it is needed."""

    name = "vastai"

    def __init__(self, settings: Settings, home: Path, clock: Clock) -> None:
        self.clock = clock
        self._settings = settings
        pace = Pace(home / "vastai", clock, PACE_FACTOR)
        self._client = VastClient(settings.key, settings.root, pace, clock)
        self._keys = vastai_keys.Keys(self._client)
        # A listing of 500 machines takes 20 calls a second apart.
        self._listing = SharedCall(lambda: all_rows(self._client))
        self._first_page = SharedCall(lambda: first_page(self._client))
        self._charges = RecentAnswer(
            lambda: charges(self._client, self.clock.now()), clock, _CHARGES_SECONDS
        )
        self._ended: dict[str, datetime] = {}  # when this process had them destroyed

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, home: Path, clock: Clock
    ) -> VastProvider:
        """Build it from settings.

        Raises:
            InvalidRequest: one of them is malformed.
        """
        return cls(read_settings(environ), home.absolute(), clock)

    @property
    def capabilities(self) -> Capabilities:
        """What this provider can do."""
        return Capabilities(
            spot=True,
            stop=True,
            ttl=False,
            labels=True,
            kind="container",
            gpus=True,
            console="https://cloud.vast.ai/instances/",
            settle_seconds=SETTLE_SECONDS,
            shown_seconds=SHOWN_SECONDS,
            poll_seconds=POLL_SECONDS,
        )

    def configured(self) -> bool:
        """Whether there is a key."""
        return self._settings.key is not None

    # ------------------------------------------------------------------ offers

    def offers(self, want: Want) -> Sequence[Offer]:
        """What is listed now, cheapest first; bids as well unless only on-demand is wanted."""
        return vastai_market.offers(self._search, want, self._settings.terms, self.clock)

    def _search(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = self._client.read("search", _SEARCH, "offers", body=dict(body))["offers"]
        if not isinstance(rows, list):
            raise Ambiguous("Vast.ai answered a search with no list of offers.")
        return [row for row in rows if isinstance(row, dict)]

    # ------------------------------------------------------------------ renting

    def create(self, order: Order) -> Machine:
        """Rent or bid for one offer; its price is looked at again first.

        A bid that is refused can leave a stopped instance: that is ended, and `Ambiguous` makes
        the caller look that it is gone.
        """
        ask = vastai_offers.read_offer_id(order.offer.id, spot=order.offer.spot)
        bid = self._agreed(order, ask)
        body = self._body(order, bid)
        if order.ssh_public_key:
            self._keys.register(order.ssh_public_key)
        id = self._rented(order, ask, body)
        if order.ssh_public_key:
            self._keys.attach(id, order.ssh_public_key)
        return self._looked_back(order, id)

    def _agreed(self, order: Order, ask: int) -> Decimal | None:
        """Read the offer again; return what to bid, None for on-demand.

        Raises:
            NoCapacity: it is gone, or not the same any more.
            PriceChanged: it costs more than the order allows.
        """
        offer, cap = order.offer, order.max_price_hour
        disk = max(order.disk_gb, vastai_offers.LEAST_DISK_GB)
        search: dict[str, Any] = {"ask_contract_id": {"eq": ask}, "allocated_storage": disk}
        if self._settings.terms.verified_only:
            search["verified"] = {"eq": True}
        found = self._search(vastai_offers.ordered(search, spot=offer.spot, above=None))
        row = next((row for row in found if vastai_offers.ask_id(row) == ask), None)
        prices = None if row is None else vastai_offers.priced(row, disk)
        if row is None or prices is None or row.get("rentable") is False:
            raise NoCapacity(f"Offer {ask} is taken or withdrawn.")
        if not vastai_offers.is_same(row, offer):
            raise NoCapacity(f"Offer {ask} is now something else than {offer.gpu}.")
        allowed = offer.price_hour * _DEARER if cap is None else cap
        rate = prices.bid(self._settings.terms.margin) if offer.spot else prices.base
        if rate is None:
            raise NoCapacity(f"Offer {ask} takes no bids now.")
        if offer.spot and prices.floor is not None:
            rate = max(prices.floor, min(rate, allowed - prices.storage))
        if rate + prices.storage > allowed:
            raise PriceChanged(
                f"Offer {ask} costs ${rate + prices.storage:f}/h now; ${allowed:f}/h is allowed."
            )
        return rate if offer.spot else None

    def _body(self, order: Order, bid: Decimal | None) -> dict[str, Any]:
        settings = self._settings
        if order.offer.spot and bid is None:  # without a price it would be on-demand, dearer
            raise InvalidRequest("A bid needs a price.")
        return {
            "client_id": "me",
            "image": order.image or DEFAULT_IMAGE,
            "env": {} if settings.ssh_port == 22 else {self._open_port: "1"},
            "price": None if bid is None else float(bid),
            "disk": max(order.disk_gb, vastai_offers.LEAST_DISK_GB),
            "label": label(order.name, order.mark),
            "onstart": vastai_boot.onstart(
                settings.root,
                order.mark.end,
                order.ssh_public_key,
                patience=vastai_boot.PATIENCE_SECONDS,
            ),
            "runtype": "ssh_direc ssh_proxy",
            # Else a GPU that was taken meanwhile leaves a stopped instance whose disk bills.
            "cancel_unavail": True,
        }

    @property
    def _open_port(self) -> str:
        port = self._settings.ssh_port
        return f"-p {port}:{port}"

    def _rented(self, order: Order, ask: int, body: Mapping[str, Any]) -> str:
        """Send the create call, once; return the instance's id."""
        try:
            answer = self._client.write("PUT", "create", f"/api/v0/asks/{ask}/", body)
        except RateLimited as limited:
            # Seen together with an instance that was made all the same.
            raise Ambiguous(f"It may have been made all the same: {limited}") from limited
        id = _new_contract(answer)
        if succeeded(answer) and id is not None:
            return id
        error = refusal(f"to rent offer {ask}", answer)
        if id is not None:
            undone = self._undo(id)
            raise Ambiguous(f"{error} It left a stopped instance, {id}: {undone}.")
        if succeeded(answer):
            raise Ambiguous(f"Vast.ai says that {order.name} was made, and not under which id.")
        raise NoCapacity(str(error)) if isinstance(error, NotFound) else error

    def _undo(self, id: str) -> str:
        try:
            return self.destroy(id)
        except ProviderError as error:
            return f"it could not be ended at once ({error})"

    def _looked_back(self, order: Order, id: str) -> Machine:
        """The machine as it was made: its price, and whether it is a bid."""
        for _ in range(_LOOKS_BACK):
            try:
                made = self.get(id)
            except ProviderError:
                continue  # not to be seen yet; it is made all the same, and the caller looks again
            if made.spot != order.offer.spot:
                kind = "a bid" if made.spot else "on-demand"
                undone = self._undo(id)
                raise Ambiguous(f"Vast.ai made {order.name} {kind}, not as ordered: {undone}.")
            return made
        return Machine(
            name=order.name,
            provider=self.name,
            provider_id=id,
            state=State.BOOTING,
            status="provisioning",
            gpu=order.offer.gpu,
            gpu_count=order.offer.gpu_count,
            spot=order.offer.spot,
            region=order.offer.region,
            mark=order.mark,
            self_end=vastai_boot.self_end(self._settings.root, id),
        )

    # ------------------------------------------------------------------ reading

    def get(self, provider_id: str) -> Machine:
        """The machine now. A null for it is how Vast.ai says that there is none."""
        path = f"/api/v0/instances/{quote(provider_id, safe='')}/"
        row = self._client.read("show", path, "instances", query={"owner": "me"})["instances"]
        if row is None:
            raise NotFound(f"Vast.ai has no instance {provider_id}.")
        if not isinstance(row, dict) or not row.get("id"):
            raise Ambiguous(f"Vast.ai described {provider_id} in a shape that nobody knows.")
        found = self._machine(row)
        if found.state is State.READY:
            self._keys.attach_if_missing(provider_id)
        return found

    def list(self) -> Sequence[Machine]:
        """Every instance of the account; stopped ones too, for they bill."""
        return [self._machine(row) for row in self._listing()]

    def _machine(self, row: Row) -> Machine:
        return machine(
            row,
            provider=self.name,
            now=self.clock.now(),
            port=self._settings.ssh_port,
            self_end=vastai_boot.self_end(self._settings.root, str(row["id"])),
        )

    # ------------------------------------------------------------------ ending

    def destroy(self, provider_id: str) -> str:
        """Ask for the end, of the disk too. An instance that is merely stopped bills on."""
        path = f"/api/v0/instances/{quote(provider_id, safe='')}/"
        answer = self._client.write("DELETE", "destroy", path, {})
        if succeeded(answer):
            self._ended[provider_id] = self.clock.now()
            return "200 destroyed"
        if is_absence(answer):
            return ABSENT
        raise refusal(f"to destroy {provider_id}", answer)

    def leftovers(self) -> Sequence[Leftover]:
        """Nothing: gpuctl makes no volumes there, and an instance's disk goes with it.

        The account is asked all the same, so that silence is not taken for an empty account.
        """
        self._first_page()
        return ()

    def remove(self, leftover: Leftover) -> None:
        """Do nothing: there are no leftovers."""
        del leftover

    # ------------------------------------------------------------------ money and health

    def billed(self, provider_id: str) -> Billed | None:
        """What the account's charges say of it; None until they have all of it."""
        ended = self._ended.get(provider_id)
        found = self._charges.since(ended).get(provider_id)
        if found is not None and ended is not None and found.through < ended - _CHARGED_LATE:
            return None
        return found

    def check(self) -> Sequence[Finding]:
        """Key, what it may read, credit, and the two clocks."""
        return findings(self._client, self.clock.now())


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read what the environment says.

    Raises:
        InvalidRequest: a setting is malformed.
    """
    percent = environ.get(_MARGIN, "").strip() or "10"
    try:
        margin = Decimal(percent) / 100
    except InvalidOperation:
        margin = Decimal(-1)
    if not margin.is_finite() or not 0 <= margin <= 10:
        raise InvalidRequest(f"{_MARGIN} is {percent!r}; it must be a percentage such as 10.")
    port = environ.get(_SSH_PORT, "").strip() or "22"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidRequest(f"{_SSH_PORT} is {port!r}; it must be a port such as 22.")
    root = environ.get(ROOT, "").strip().rstrip("/") or DEFAULT_ROOT
    if not root.startswith(("http://", "https://")):
        raise InvalidRequest(f"{ROOT} is {root!r}; it must be an address such as {DEFAULT_ROOT}.")
    return Settings(
        key=api_key(environ),
        root=root,
        terms=replace(
            Terms(), margin=margin, verified_only=environ.get(_UNVERIFIED, "") in ("", "0")
        ),
        ssh_port=int(port),
    )


def _new_contract(answer: Answer) -> str | None:
    """The id of the instance that an answer speaks of, also of one that says no."""
    id = answer.body.get("new_contract") if isinstance(answer.body, dict) else None
    return str(id) if isinstance(id, int | str) and str(id).isdigit() and int(id) > 0 else None
