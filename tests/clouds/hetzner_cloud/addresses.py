"""The part of the API about addresses: primary IPs, and floating ones."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.clouds.hetzner_cloud import catalog
from tests.clouds.hetzner_cloud.errors import ApiError, invalid
from tests.clouds.hetzner_cloud.kept import KeptRoutes
from tests.clouds.hetzner_cloud.project import Server
from tests.clouds.hetzner_cloud.rules import check_labels
from tests.clouds.http_cloud import Reply, Request, route

Json = dict[str, Any]
_FLOATING_MONTH, _HOURS = Decimal("3.00"), 730


class AddressRoutes(KeptRoutes):
    """Mixed into the cloud."""

    @route("GET", "/v1/primary_ips")
    def address_list(self, request: Request) -> Reply:
        return self._all(request, "primary_ips")

    @route("GET", "/v1/primary_ips/{id}")
    def address_get(self, request: Request, id: str) -> Reply:
        return Reply(200, {"primary_ip": self._one("primary_ips", id)})

    @route("POST", "/v1/primary_ips")
    def address_create(self, request: Request) -> Reply:
        wanted = request.json()
        place = catalog.location(wanted.get("location") or "fsn1")
        if place is None or wanted.get("type") not in ("ipv4", "ipv6"):
            raise invalid("location" if place is None else "type", "is not valid")
        name = self._free_name("primary_ips", wanted.get("name"))
        server = None
        if wanted.get("assignee_id"):
            server = self._takes(wanted["assignee_id"], wanted["type"])
        made = self.new_address(
            wanted["type"],
            name,
            server.facts["location"] if server else place,
            assignee=server.id if server else None,
            auto_delete=bool(wanted.get("auto_delete", False)),
        )
        made["labels"] = check_labels(wanted.get("labels"))
        return Reply(201, {"primary_ip": made, "action": None})

    @route("PUT", "/v1/primary_ips/{id}")
    def address_update(self, request: Request, id: str) -> Reply:
        return Reply(200, {"primary_ip": self._change(request, "primary_ips", id)})

    @route("DELETE", "/v1/primary_ips/{id}")
    def address_delete(self, request: Request, id: str) -> Reply:
        address = self._unprotected("primary_ips", id)
        if address["assignee_id"] is not None:
            raise ApiError(422, "must_be_unassigned", "primary ip must be unassigned")
        self.project.drop_address(address)
        return Reply(204)

    @route("POST", "/v1/primary_ips/{id}/actions/assign")
    def address_assign(self, request: Request, id: str) -> Reply:
        address = self._one("primary_ips", id)
        if address["assignee_id"] is not None:
            raise ApiError(422, "primary_ip_already_assigned", "primary ip is already assigned")
        server = self._takes(request.json().get("assignee_id"), address["type"])
        address.update(assignee_id=server.id, assignee_type="server")
        return self._acted("assign_primary_ip", address)

    @route("POST", "/v1/primary_ips/{id}/actions/unassign")
    def address_unassign(self, request: Request, id: str) -> Reply:
        address = self._one("primary_ips", id)
        server = self.project.servers.get(address["assignee_id"] or 0)
        if server is not None and server.status != "off":
            raise ApiError(422, "server_not_stopped", "server must be stopped")
        address.update(assignee_id=None, assignee_type="unassigned")
        return self._acted("unassign_primary_ip", address)

    def _takes(self, wanted: object, kind: str) -> Server:
        """A server that can be given an address of a kind. Raises ApiError (422)."""
        server = self.server(str(wanted))
        if server.status != "off":
            raise ApiError(422, "server_not_stopped", "server must be stopped")
        if any(one["type"] == kind for one in self.project.addresses_of(server.id)):
            raise ApiError(422, f"server_has_{kind}", f"server has an {kind} already")
        return server

    def _acted(self, command: str, address: Json) -> Reply:
        action = self.project.action(command, [("primary_ip", address["id"])], 0)
        return Reply(201, {"action": self.shown_action(action)})

    # ------------------------------------------------------------------ floating ones

    @route("GET", "/v1/floating_ips")
    def floating_list(self, request: Request) -> Reply:
        return self._all(request, "floating_ips")

    @route("POST", "/v1/floating_ips")
    def floating_create(self, request: Request) -> Reply:
        project, wanted = self.project, request.json()
        if wanted.get("type") not in ("ipv4", "ipv6"):
            raise invalid("type", "is not valid")
        place = catalog.location(wanted.get("home_location"))
        if place is None:
            raise invalid("home_location", "Missing data for required field.")
        number = project.new_id()
        name = self._free_name("floating_ips", wanted.get("name") or f"floating-{number}")
        made: Json = {
            "id": number,
            "name": name,
            "description": wanted.get("description"),
            "type": wanted["type"],
            "ip": self.next_address() if wanted["type"] == "ipv4" else "2001:db8:f::/64",
            "server": None,
            "home_location": place,
            "blocked": False,
            "dns_ptr": [],
            "labels": check_labels(wanted.get("labels")),
            "protection": {"delete": False},
            "created": project.stamp(),
        }
        project.floating_ips[number] = made
        hour = _FLOATING_MONTH / _HOURS
        project.begin_billing("floating_ip", number, name, hour, _FLOATING_MONTH)
        return Reply(201, {"floating_ip": made})

    @route("DELETE", "/v1/floating_ips/{id}")
    def floating_delete(self, request: Request, id: str) -> Reply:
        found = self._unprotected("floating_ips", id)
        if found["server"] is not None:
            raise ApiError(422, "must_be_unassigned", "floating ip must be unassigned")
        self.project.floating_ips.pop(found["id"])
        self.project.end_billing("floating_ip", found["id"])
        return Reply(204)
