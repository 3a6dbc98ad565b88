"""The part of the API about servers and actions."""

from __future__ import annotations

import secrets
from datetime import timedelta
from decimal import Decimal
from typing import Any

from tests.clouds.hetzner_cloud import catalog
from tests.clouds.hetzner_cloud.errors import NO_ROOM, ApiError, invalid, missing, taken
from tests.clouds.hetzner_cloud.project import Project, Server
from tests.clouds.hetzner_cloud.rules import (
    check_hostname,
    check_labels,
    filtered,
    identity,
)
from tests.clouds.http_cloud import HttpCloud, Reply, Request, route

Json = dict[str, Any]
_USER_DATA_MAX = 32 << 10


class ServerRoutes(HttpCloud):
    """Mixed into the cloud, which has `project` and helpers."""

    project: Project

    def next_address(self) -> str:
        """An IPv4 address that nothing has."""
        raise NotImplementedError

    def listing(self, request: Request, kind: str, rows: list[Json]) -> Reply:
        """One page of a list."""
        raise NotImplementedError

    # ------------------------------------------------------------------ reading

    @route("GET", "/v1/servers")
    def server_list(self, request: Request) -> Reply:
        now = self.project.now()
        seen = [s for s in self.project.servers.values() if s.seen_from <= now]
        wanted = filtered(request, [s.facts for s in seen])
        reply = self.listing(request, "servers", wanted)
        shown = [self.told(self.project.servers[facts["id"]]) for facts in reply.body["servers"]]
        return Reply(200, {**reply.body, "servers": shown})

    @route("GET", "/v1/servers/{id}")
    def server_get(self, request: Request, id: str) -> Reply:
        return Reply(200, {"server": self.told(self.server(id))})

    @route("PUT", "/v1/servers/{id}")
    def server_update(self, request: Request, id: str) -> Reply:
        server, wanted = self.server(id), request.json()
        if "labels" in wanted:
            server.facts["labels"] = check_labels(wanted["labels"])
        if wanted.get("name"):
            self._free(wanted["name"], server)
            server.facts["name"] = check_hostname(wanted["name"])
        return Reply(200, {"server": self.told(server)})

    def _free(self, name: object, own: Server | None = None) -> None:
        """Raise ApiError (409) where another server has a name."""
        if any(s.facts["name"] == name and s is not own for s in self.project.servers.values()):
            raise taken("name", "server name is already used")

    def server(self, id: str) -> Server:
        number = identity(id)
        if number not in self.project.servers:
            raise missing("server", number)
        return self.project.servers[number]

    def told(self, server: Server) -> Json:
        """A server as it is shown."""
        project, facts = self.project, dict(server.facts)
        facts["status"] = project.switches.status_instead or facts["status"]
        facts["locked"] = project.now() < server.locked_until
        facts["volumes"] = [x["id"] for x in project.volumes.values() if x["server"] == server.id]
        facts["server_type"] = project.catalog.server_type(facts["server_type"])
        facts["image"] = project.images.get(facts["image"])
        facts["placement_group"] = project.placement_groups.get(facts["placement_group"])
        facts["public_net"] = self._public_net(server)
        if project.switches.null_arrays:
            facts["private_net"] = None
            facts["public_net"] = {**facts["public_net"], "firewalls": None, "floating_ips": None}
        return facts

    def _public_net(self, server: Server) -> Json:
        project = self.project
        own = project.addresses_of(server.id)
        shown: Json = {"ipv4": None, "ipv6": None, "floating_ips": []}
        for one in own:
            dns = one["dns_ptr"][0]["dns_ptr"] if one["type"] == "ipv4" else []
            facts = {"id": one["id"], "ip": one["ip"], "blocked": False, "dns_ptr": dns}
            shown[one["type"]] = facts
        shown["firewalls"] = [
            {"id": wall["id"], "status": "applied"}
            for wall in project.firewalls.values()
            if any(to.get("server", {}).get("id") == server.id for to in wall["applied_to"])
        ]
        return shown

    # ------------------------------------------------------------------ creating

    @route("POST", "/v1/servers")
    def server_create(self, request: Request) -> Reply:
        project, wanted = self.project, request.json()
        facts, keys = self._checked(wanted)
        now = project.now()
        server = Server(
            facts,
            seen_from=now + timedelta(seconds=project.switches.list_lag_s),
            locked_until=now + timedelta(seconds=project.switches.locked_for_s),
            user_data=wanted.get("user_data") or "",
            keys=[key["public_key"] for key in keys],
        )
        self._give_addresses(server, wanted.get("public_net") or {})
        for number in wanted.get("volumes") or ():
            self.attach(project.volumes[int(number)], server)
        for wall in wanted.get("firewalls") or ():
            applied = {"type": "server", "server": {"id": server.id}}
            project.firewalls[int(wall["firewall"])]["applied_to"].append(applied)
        if group := project.placement_groups.get(facts["placement_group"]):
            group["servers"].append(server.id)
        action, following = project.begin_server(
            server, start=wanted.get("start_after_create", True)
        )
        place = facts["location"]["name"]
        kind = project.catalog.server_type(facts["server_type"])
        assert kind is not None
        project.begin_billing(
            "server",
            server.id,
            facts["name"],
            project.catalog.hour(kind["name"], place),
            project.catalog.month(kind["name"], place),
        )
        shown = self.told(server)
        if project.switches.created_price_factor:
            shown["server_type"] = _dearer(shown["server_type"], project)
        return Reply(
            201,
            {
                "server": shown,
                "action": self.shown_action(action),
                "next_actions": [self.shown_action(one) for one in following],
                "root_password": None if keys else secrets.token_urlsafe(12),
            },
        )

    def _checked(self, wanted: Json) -> tuple[Json, list[Json]]:
        project = self.project
        for name in ("name", "server_type", "image"):
            if not wanted.get(name):
                raise invalid(name, "Missing data for required field.")
        if "datacenter" in wanted:
            raise invalid("datacenter", "was removed")
        name, labels = check_hostname(wanted["name"]), check_labels(wanted.get("labels"))
        if len((wanted.get("user_data") or "").encode()) > _USER_DATA_MAX:
            raise invalid("user_data", "must be at most 32 KiB")
        kind = project.catalog.server_type(wanted["server_type"])
        if kind is None:
            raise invalid("server_type", "server type not found")
        place = catalog.location(wanted.get("location") or "fsn1")
        if place is None:
            raise invalid("location", "location not found")
        image = self._image(wanted["image"], kind["architecture"])
        keys = [self._key(one) for one in wanted.get("ssh_keys") or ()]
        self._free(name)
        limit = project.switches.servers_limit
        if limit is not None and len(project.servers) >= limit:
            details = {"limits": [{"name": "server_limit"}]}
            raise ApiError(403, "resource_limit_exceeded", "server limit exceeded", details)
        sold = {one["name"]: one for one in kind["locations"]}
        out = {(kind["name"], place["name"]), (kind["name"], "*"), ("*", place["name"]), ("*", "*")}
        closed = sold.get(place["name"], {}).get("deprecation") is not None
        empty = project.switches.capacity_out | project.catalog.sold_out
        if place["name"] not in sold or closed or out & empty:
            raise NO_ROOM
        self._check_parts(wanted, place)
        facts = {
            "id": project.new_id(),
            "name": name,
            "status": "initializing",
            "created": project.stamp(),
            "private_net": [],
            "server_type": kind["id"],
            "location": place,
            "image": image["id"],
            "iso": None,
            "rescue_enabled": False,
            "backup_window": None,
            "outgoing_traffic": None,
            "ingoing_traffic": None,
            "included_traffic": 20 << 40,
            "protection": {"delete": False, "rebuild": False},
            "labels": labels,
            "load_balancers": [],
            "primary_disk_size": kind["disk"],
            "placement_group": wanted.get("placement_group"),
        }
        return facts, keys

    def _check_parts(self, wanted: Json, place: Json) -> None:
        """What a server is to have is there, and free, and where the server will be."""
        project = self.project
        for number in wanted.get("volumes") or ():
            if number not in project.volumes:
                raise missing("volume", number)
            _attachable(project.volumes[number], place)
        for wall in wanted.get("firewalls") or ():
            if wall["firewall"] not in project.firewalls:
                code = "firewall_resource_not_found"
                raise ApiError(422, code, f"firewall {wall['firewall']} not found")
        if wanted.get("placement_group") not in (None, *project.placement_groups):
            raise missing("placement_group", wanted["placement_group"])
        for kind in ("ipv4", "ipv6"):
            number = (wanted.get("public_net") or {}).get(kind)
            if number is None:
                continue
            if number not in project.primary_ips:
                raise missing("primary_ip", number)
            address = project.primary_ips[number]
            if address["assignee_id"] is not None:
                raise ApiError(422, "primary_ip_assigned", "primary ip is already assigned")
            if address["type"] != kind:
                raise ApiError(422, "primary_ip_version_mismatch", f"primary ip is no {kind}")
            if address["location"]["name"] != place["name"]:
                code = "primary_ip_datacenter_mismatch"
                raise ApiError(422, code, "primary ip is in another location")

    def attach(self, volume: Json, server: Server) -> None:
        """Attach a volume to a server. Raises ApiError (422)."""
        _attachable(volume, server.facts["location"])
        volume["server"] = server.id

    def _image(self, wanted: object, architecture: str) -> Json:
        for image in self.project.images.values():
            if str(wanted) == str(image["id"]):
                if image["architecture"] != architecture:
                    raise invalid("image", "image is not compatible with the server type")
                return image
            if wanted == image["name"] and image["architecture"] == architecture:
                return image
        raise invalid("image", "image not found")

    def _key(self, wanted: object) -> Json:
        for key in self.project.ssh_keys.values():
            if str(wanted) in (str(key["id"]), key["name"]):
                return key
        raise missing("ssh_key", wanted)

    def _give_addresses(self, server: Server, wanted: Json) -> None:
        project = self.project
        for kind in ("ipv4", "ipv6"):
            if not wanted.get(f"enable_{kind}", True):
                continue
            if given := wanted.get(kind):
                address = project.primary_ips[given]
                address.update(assignee_id=server.id, assignee_type="server")
                continue
            self.new_address(
                kind,
                None,
                server.facts["location"],
                assignee=server.id,
                auto_delete=not project.switches.auto_delete_false,
            )

    def new_address(
        self, kind: str, name: str | None, place: Json, *, assignee: int | None, auto_delete: bool
    ) -> Json:
        """Make a primary IP; an IPv4 costs from now on."""
        project, number = self.project, self.project.new_id()
        ip = self.next_address() if kind == "ipv4" else f"2001:db8:{number & 0xFFFF:x}::/64"
        pointer = f"static.{number}.clients.your-server.de"
        address = {
            "id": number,
            "name": name or f"primary_ip-{number}",
            "type": kind,
            "ip": ip,
            "assignee_id": assignee,
            "assignee_type": "server" if assignee else "unassigned",
            "auto_delete": auto_delete,
            "blocked": False,
            "location": place,
            "dns_ptr": [{"ip": ip, "dns_ptr": pointer}] if kind == "ipv4" else [],
            "labels": {},
            "protection": {"delete": False},
            "created": project.stamp(),
        }
        project.primary_ips[number] = address
        if kind == "ipv4":
            prices = project.catalog
            project.begin_billing(
                "primary_ip", number, address["name"], prices.ipv4_hour, prices.ipv4_month
            )
        return address

    def changeable(self, id: str) -> Server:
        server = self.server(id)
        if self.project.now() < server.locked_until or server.status == "deleting":
            raise ApiError(423, "locked", "server is locked")
        return server

    def shown_action(self, action: Json) -> Json:
        """An action as it is shown; see `Switches.error_on_success_action`."""
        shown = dict(action)
        if self.project.switches.error_on_success_action and shown["error"] is None:
            shown["error"] = {"code": "action_failed", "message": "Action failed"}
        return shown


def _attachable(volume: Json, place: Json) -> None:
    if volume["server"] is not None:
        raise ApiError(422, "volume_already_attached", "volume is attached already")
    if volume["location"]["name"] != place["name"]:
        raise invalid("server", "volume and server are not in the same location")


def _dearer(kind: Json, project: Project) -> Json:
    by = Decimal(project.switches.created_price_factor or "1")
    prices = project.catalog
    factor, prices.factor = prices.factor, prices.factor * by
    try:
        found = prices.server_type(kind["id"])
    finally:
        prices.factor = factor
    assert found is not None
    return found
