"""The `hetzner` provider: CPU machines of Hetzner Cloud.

There are none with a GPU. A server's name is unique in its project, which makes it the token of a
create: the second one under a name is refused. A server that is switched off costs what it costs
when it runs; only its deletion ends that, and no credential that could delete it is narrow enough
to be put on it. So a server cannot end itself: the watchdog and `gpuctl reap` delete it.

Settings: ``HCLOUD_TOKEN`` (else a context of the hcloud command), ``HCLOUD_ENDPOINT``,
``GPUCTL_HETZNER_SSH_PORT``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

from providers import hetzner_boot, hetzner_servers
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
    NotFound,
    Offer,
    Order,
    PriceChanged,
    ProviderError,
    State,
    Unsupported,
    Want,
)
from providers.hetzner_checks import check
from providers.hetzner_client import TIMEOUTS, Api, part
from providers.hetzner_credentials import endpoint, token
from providers.hetzner_errors import Refusal
from providers.hetzner_leftovers import find_leftovers, remove_leftover
from providers.hetzner_offers import (
    NO_GPUS,
    NO_SPOT,
    Prices,
    net_hour,
    offers,
    read_offer_id,
    read_prices,
)
from providers.hetzner_order import image_id, ssh_key_id
from providers.reference.exchange import eur_usd
from providers.reference.hetzner_cloud import BILL_STEP_SECONDS
from providers.shared_call import SharedCall

Json = dict[str, Any]
_LOG = logging.getLogger(__name__)

_IMAGE = "ubuntu-24.04"
_SSH_PORT = 22
_PRICES_SECONDS = 600.0


class HetznerProvider:
    """One project. Nothing is asked before it is needed."""

    name = "hetzner"

    def __init__(
        self,
        environ: Mapping[str, str],
        clock: Clock,
        *,
        timeouts: tuple[float, float] = TIMEOUTS,
    ) -> None:
        self._environ = environ
        self._clock = clock
        self._api = Api(lambda: token(environ), endpoint(environ), clock, timeouts)
        # Many machines are ended side by side, and the limit is the project's.
        self._listed = SharedCall(self._all_machines)
        self._left = SharedCall(self._all_leftovers)
        self._prices: tuple[float, Prices] | None = None
        self._actions: dict[str, tuple[int, ...]] = {}  # of servers that we made and that boot
        self._deleted: set[str] = set()  # whose deletion was accepted

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, home: Path, clock: Clock
    ) -> HetznerProvider:
        """Build it from settings; nothing is read or asked yet."""
        del home
        return cls(environ, clock)

    @property
    def capabilities(self) -> Capabilities:
        """What this provider can do. Its listings have not been seen to lag."""
        return Capabilities(
            spot=False,
            stop=True,
            ttl=False,
            labels=True,
            kind="vm",
            gpus=False,
            console="https://console.hetzner.com/projects",
            console_note="in the project of the token, which the API does not name",
            bill_step_seconds=BILL_STEP_SECONDS,
            settle_seconds=5,
            poll_seconds=2,
        )

    def configured(self) -> bool:
        """Whether there is a token."""
        try:
            return token(self._environ) is not None
        except ProviderError:
            return True  # there is a file, and whoever asks will be told what is wrong with it

    # ------------------------------------------------------------------ offers

    def offers(self, want: Want) -> Sequence[Offer]:
        """Return the server types that have what is wanted, in every location; cheapest first."""
        if want.gpus:
            raise Unsupported(NO_GPUS)
        if want.spot:
            raise Unsupported(NO_SPOT)
        rate = eur_usd(self._environ)
        with ThreadPoolExecutor(3) as pool:
            types = pool.submit(self._api.pages, "server_types")
            places = pool.submit(self._api.pages, "locations")
            prices = pool.submit(self._fresh_prices)
        return offers(
            types.result(), places.result(), prices.result(), want, rate, self._clock.now()
        )

    def _fresh_prices(self) -> Prices:
        try:
            said = self._api.read("/pricing")
        except Refusal as refusal:
            raise refusal.error("the price list") from None
        prices = read_prices(part(said, "pricing", dict))
        self._prices = (self._clock.monotonic(), prices)
        return prices

    def _known_prices(self) -> Prices | None:
        """Prices that are minutes old at most; None when they cannot be had now."""
        if self._prices and self._clock.monotonic() - self._prices[0] < _PRICES_SECONDS:
            return self._prices[1]
        try:
            return self._fresh_prices()
        except ProviderError:
            return None  # a machine is told without its price then

    # ------------------------------------------------------------------ creation

    def create(self, order: Order) -> Machine:
        """Make one server: with our key, labels, and a host key of its own."""
        kind, location = read_offer_id(order.offer.id)
        self._check_price(order, kind, location)
        host_key = hetzner_boot.new_host_key()
        try:
            labels = hetzner_servers.labels_of(order.mark, host_key.label)
        except ValueError as error:
            raise InvalidRequest(f"Hetzner cannot keep the mark of {order.name}: {error}") from None
        body: Json = {
            "name": order.name,
            "server_type": kind,
            "location": location,
            "image": image_id(self._api, order.image or _IMAGE, kind),
            "ssh_keys": [ssh_key_id(self._api, order)],
            "user_data": hetzner_boot.user_data(host_key, order.mark.end),
            "labels": labels,
            "start_after_create": True,
            "public_net": {"enable_ipv4": True, "enable_ipv6": True},
        }
        try:
            said = self._api.write("POST", "/servers", body)
        except Refusal as refusal:
            if refusal.code == "uniqueness_error":
                return self._adopted(order)
            raise refusal.error(f"to make a {kind} in {location}", creating=True) from None
        server = part(said, "server", dict)
        number = part(server, "id", int)
        actions = (said.get("action"), *(said.get("next_actions") or ()))
        self._actions[str(number)] = tuple(int(one["id"]) for one in actions if one)
        self._mark_address(server, order.name, labels)
        return self._machine(server)

    def _check_price(self, order: Order, kind: str, location: str) -> None:
        price = self._fresh_prices().server(kind, location, eur_usd(self._environ))
        if price is None:
            raise InvalidRequest(f"Hetzner has no price for a {kind} in {location}.")
        if order.max_price_hour is not None and price > order.max_price_hour:
            raise PriceChanged(
                f"A {kind} in {location} costs ${price}/h now, above the cap of "
                f"${order.max_price_hour}/h."
            )

    def _adopted(self, order: Order) -> Machine:
        """Return the server that has the order's name already, if it is this order's."""
        for server in self._rows("servers", {"name": order.name}):
            machine = self._machine(server)
            mark = machine.mark
            if mark and (mark.owner, mark.run) == (order.mark.owner, order.mark.run):
                return machine
            raise InvalidRequest(f"Another server of the Hetzner project is called {order.name}.")
        raise Ambiguous(f"Hetzner says that {order.name} is there, and does not show it.")

    def _mark_address(self, server: Json, name: str, labels: Mapping[str, str]) -> None:
        """Have the address that was made with a server go with it, or be found when it did not."""
        address = ((server.get("public_net") or {}).get("ipv4") or {}).get("id")
        if address is None:
            return
        body = {"name": name, "auto_delete": True, "labels": dict(labels)}
        try:
            self._api.write("PUT", f"/primary_ips/{address}", body)
        except (Refusal, ProviderError) as error:
            # The server is there and must be told of; its address goes with it as a rule.
            _LOG.warning("the address of %s could not be marked: %s", name, type(error).__name__)

    # ------------------------------------------------------------------ reading

    def get(self, provider_id: str) -> Machine:
        """The server now. Raises NotFound when Hetzner says that there is none."""
        machine = self._machine(self._server(provider_id))
        if machine.state is not State.BOOTING:
            self._actions.pop(provider_id, None)
            return machine
        return self._with_failed_start(machine)

    def list(self) -> Sequence[Machine]:
        """Every server of the project, in any state."""
        return self._listed()

    def _all_machines(self) -> Sequence[Machine]:
        return [self._machine(one) for one in self._rows("servers", {"sort": "id:asc"})]

    def _with_failed_start(self, machine: Machine) -> Machine:
        """Tell of a server whose start has failed, which its status does not."""
        from dataclasses import replace

        numbers = self._actions.get(machine.provider_id)
        if not numbers:
            return machine
        try:
            said = self._api.read("/actions", {"id": list(numbers)})
        except (Refusal, ProviderError):
            return machine  # the server's own status stands
        for action in said.get("actions") or ():
            # Actions that run or succeeded carry an error, too: only the status counts.
            if action.get("status") == "error":
                why = (action.get("error") or {}).get("message") or "no reason given"
                failed = f"{machine.status}, but {action.get('command')} failed: {why}"
                return replace(machine, state=State.LOST, status=failed, access=None)
        return machine

    def _server(self, provider_id: str) -> Json:
        if not _is_number(provider_id):
            raise NotFound(f"Hetzner has no server {provider_id!r}.")
        try:
            return part(self._api.read(f"/servers/{provider_id}"), "server", dict)
        except Refusal as refusal:
            raise refusal.error(f"the server {provider_id}") from None

    def _rows(self, kind: str, query: Mapping[str, Any] | None = None) -> Sequence[Json]:
        try:
            return self._api.pages(kind, query)
        except Refusal as refusal:
            error = refusal.error(f"the list of {kind}")
            raise (Ambiguous(str(error)) if isinstance(error, NotFound) else error) from None

    def _machine(self, server: Json) -> Machine:
        port = self._ssh_port()
        return hetzner_servers.machine_of(server, port, self._price_of(server))

    def _price_of(self, server: Json) -> Decimal | None:
        kind, location = hetzner_servers.type_and_place(server)
        net, prices = net_hour(kind, location), self._known_prices()
        if net is None or prices is None:
            return None
        try:
            return prices.with_address(net, location, eur_usd(self._environ))
        except ProviderError:
            return None  # a currency that cannot be converted, or a malformed rate

    def _ssh_port(self) -> int:
        text = self._environ.get("GPUCTL_HETZNER_SSH_PORT", "").strip()
        if not text:
            return _SSH_PORT
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise InvalidRequest(f"GPUCTL_HETZNER_SSH_PORT is {text!r}; it must be a port.")
        return int(text)

    # ------------------------------------------------------------------ the end

    def destroy(self, provider_id: str) -> str:
        """Delete the server, whatever its state."""
        if not _is_number(provider_id):
            return ABSENT
        try:
            return self._delete(provider_id)
        except Refusal as refusal:
            if refusal.code == "protected":
                return self._delete_protected(provider_id, refusal)
            if refusal.code == "locked" and self._is_going(provider_id):
                return "is being deleted already"
            raise refusal.error(f"the deletion of the server {provider_id}") from None

    def _delete(self, provider_id: str) -> str:
        try:
            said = self._api.write("DELETE", f"/servers/{provider_id}")
        except Refusal as refusal:
            if refusal.code == "not_found":
                return ABSENT
            raise
        self._actions.pop(provider_id, None)
        self._deleted.add(provider_id)
        action = said.get("action") or {}
        return f"{action.get('command', 'delete_server')} {action.get('status', 'accepted')}"

    def _is_going(self, provider_id: str) -> bool:
        if provider_id in self._deleted:
            return True
        try:
            return bool(self._server(provider_id).get("status") == "deleting")
        except NotFound:
            return True

    def _delete_protected(self, provider_id: str, refusal: Refusal) -> str:
        """Lift a protection that somebody put on a server of ours, and delete it."""
        mark = hetzner_servers.mark_of(self._server(provider_id).get("labels"))
        if mark is None or mark.managed_by != "gpuctl":
            raise refusal.error(f"the deletion of the server {provider_id}") from None
        path = f"/servers/{provider_id}/actions/change_protection"
        try:
            self._api.write("POST", path, {"delete": False, "rebuild": False})
            return self._delete(provider_id)
        except Refusal as again:
            # It takes a moment until the protection is off.
            raise Ambiguous(str(again.error("the deletion of a protected server"))) from None

    def leftovers(self) -> Sequence[Leftover]:
        """Addresses, volumes and snapshots with our mark that belong to no server."""
        return self._left()

    def _all_leftovers(self) -> Sequence[Leftover]:
        rate = eur_usd(self._environ)
        return find_leftovers(self._rows, self._known_prices(), rate)

    def remove(self, leftover: Leftover) -> None:
        """Delete one of those."""
        remove_leftover(self._api, leftover)

    # ------------------------------------------------------------------ money and health

    def billed(self, provider_id: str) -> Billed | None:
        """The API does not tell."""
        del provider_id
        return None

    def check(self) -> Sequence[Finding]:
        """Whether the token is valid and may write, what is charged in, and the clock."""
        return check(self._api, self._environ, self._clock, self._fresh_prices)


def _is_number(provider_id: str) -> bool:
    return provider_id.isascii() and provider_id.isdecimal()
