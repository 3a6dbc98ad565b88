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
    repeated,
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
            server.facts["name"] = check_hostname(wanted["name"])
        return Reply(200, {"server": self.told(server)})

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
        if any(server.facts["name"] == name for server in project.servers.values()):
            raise taken("name", "server name is already used")
        limit = project.switches.servers_limit
        if limit is not None and len(project.servers) >= limit:
            details = {"limits": [{"name": "server_limit"}]}
            raise ApiError(403, "resource_limit_exceeded", "server limit exceeded", details)
        sold = {one["name"]: one for one in kind["locations"]}
        out = {(kind["name"], place["name"]), (kind["name"], "*"), ("*", place["name"]), ("*", "*")}
        closed = sold.get(place["name"], {}).get("deprecation") is not None
        if place["name"] not in sold or closed or out & project.switches.capacity_out:
            raise NO_ROOM
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
                address = project.primary_ips[int(given)]
                if address["assignee_id"] is not None:
                    raise ApiError(422, "primary_ip_assigned", "primary ip is already assigned")
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

    # ------------------------------------------------------------------ ending and actions

    @route("DELETE", "/v1/servers/{id}")
    def server_delete(self, request: Request, id: str) -> Reply:
        server = self.changeable(id)
        if server.facts["protection"]["delete"]:
            raise ApiError(423, "protected", "server is protected")
        action = self.project.delete_server(server)
        return Reply(200, {"action": self.shown_action(action)})

    @route("POST", "/v1/servers/{id}/actions/{verb}")
    def server_act(self, request: Request, id: str, verb: str) -> Reply:
        project, server = self.project, self.changeable(id)
        resources, body = [("server", server.id)], request.json() or {}
        match verb:
            case "poweron":
                action = project.power_on(server)
            case "poweroff":
                action = project.power_off(server)
            case "shutdown":
                action = project.shut_down(server)
            case "change_protection":
                server.facts["protection"].update(body)
                action = project.action("change_protection", resources, 0)
            case "enable_backup":
                server.facts["backup_window"] = "22-02"
                project.meters[f"server:{server.id}"].surcharge = Decimal("0.2")
                action = project.action("enable_backup", resources, project.pace.other)
            case "reboot" | "reset":
                action = project.action(f"{verb}_server", resources, project.pace.other)
            case "create_image":
                return self._snapshot(server, body)
            case _:
                raise ApiError(404, "not_found", "no such action")
        return Reply(201, {"action": self.shown_action(action)})

    def _snapshot(self, server: Server, body: Json) -> Reply:
        project, number = self.project, self.project.new_id()
        size = 2.3
        backup = body.get("type") == "backup"
        image = {
            **catalog.images()[0],
            "id": number,
            "type": "backup" if backup else "snapshot",
            "name": None,
            "description": body.get("description") or "snapshot",
            "image_size": size,
            "disk_size": server.facts["primary_disk_size"],
            "created": project.stamp(),
            "created_from": {"id": server.id, "name": server.facts["name"]},
            "bound_to": server.id if backup else None,
            "rapid_deploy": False,
            "labels": check_labels(body.get("labels")),
        }
        project.images[number] = image
        if not backup:
            month = project.catalog.image_gb_month * Decimal(str(size))
            project.begin_billing("snapshot", number, str(image["description"]), month / 730, month)
        resources = [("server", server.id), ("image", number)]
        action = project.action("create_image", resources, project.pace.other)
        return Reply(201, {"image": image, "action": self.shown_action(action)})

    def changeable(self, id: str) -> Server:
        server = self.server(id)
        if self.project.now() < server.locked_until or server.status == "deleting":
            raise ApiError(423, "locked", "server is locked")
        return server

    @route("GET", "/v1/actions")
    def action_list(self, request: Request) -> Reply:
        wanted = repeated(request, "id")
        if not wanted:
            raise invalid("id", "Missing data for required field.")
        found = [self.project.actions.get(identity(one)) for one in wanted]
        rows = [self.shown_action(one) for one in found if one]
        return self.listing(request, "actions", rows)

    @route("GET", "/v1/actions/{id}")
    @route("GET", "/v1/servers/actions/{id}")
    def action_get(self, request: Request, id: str) -> Reply:
        action = self.project.actions.get(identity(id))
        if action is None:
            raise missing("action", id)
        return Reply(200, {"action": self.shown_action(action)})

    @route("GET", "/v1/servers/{id}/actions")
    def action_of_server(self, request: Request, id: str) -> Reply:
        server = self.server(id)
        mark = {"id": server.id, "type": "server"}
        rows = [self.shown_action(a) for a in self.project.actions.values()]
        rows = [row for row in rows if mark in row["resources"]]
        return self.listing(request, "actions", filtered(request, rows))

    def shown_action(self, action: Json) -> Json:
        """An action as it is shown; see `Switches.error_on_success_action`."""
        shown = dict(action)
        if self.project.switches.error_on_success_action and shown["error"] is None:
            shown["error"] = {"code": "action_failed", "message": "Action failed"}
        return shown


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
