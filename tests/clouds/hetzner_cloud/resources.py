"""The rest of the API: keys, volumes, images, groups, firewalls, what is sold."""

from __future__ import annotations

import base64
import binascii
import hashlib
from decimal import Decimal
from typing import Any

from tests.clouds.hetzner_cloud import catalog
from tests.clouds.hetzner_cloud.addresses import AddressRoutes
from tests.clouds.hetzner_cloud.errors import NO_DATACENTERS, ApiError, invalid, missing, taken
from tests.clouds.hetzner_cloud.rules import check_labels, filtered, identity
from tests.clouds.http_cloud import Reply, Request, route

Json = dict[str, Any]
_HOURS = 730
_MOST_RULES = 50


class ResourceRoutes(AddressRoutes):
    """Mixed into the cloud."""

    # ------------------------------------------------------------------ what is sold

    @route("GET", "/v1/server_types")
    def type_list(self, request: Request) -> Reply:
        rows = self.project.catalog.server_types()
        return self.listing(request, "server_types", filtered(request, rows))

    @route("GET", "/v1/server_types/{id}")
    def type_get(self, request: Request, id: str) -> Reply:
        found = self.project.catalog.server_type(identity(id))
        if found is None:
            raise missing("server_type", id)
        return Reply(200, {"server_type": found})

    @route("GET", "/v1/locations")
    def location_list(self, request: Request) -> Reply:
        return self.listing(request, "locations", filtered(request, catalog.locations()))

    @route("GET", "/v1/pricing")
    def prices(self, request: Request) -> Reply:
        return Reply(200, {"pricing": self.project.catalog.pricing()})

    @route("GET", "/v1/isos")
    def iso_list(self, request: Request) -> Reply:
        return self.listing(request, "isos", [])

    @route("GET", "/v1/load_balancers")
    def balancer_list(self, request: Request) -> Reply:
        return self.listing(request, "load_balancers", [])

    @route("GET", "/v1/datacenters")
    @route("GET", "/v1/datacenters/{id}")
    def datacenters(self, request: Request, id: str = "") -> Reply:
        raise NO_DATACENTERS

    # ------------------------------------------------------------------ keys

    @route("GET", "/v1/ssh_keys")
    def key_list(self, request: Request) -> Reply:
        return self._all(request, "ssh_keys")

    @route("GET", "/v1/ssh_keys/{id}")
    def key_get(self, request: Request, id: str) -> Reply:
        return Reply(200, {"ssh_key": self._one("ssh_keys", id)})

    @route("POST", "/v1/ssh_keys")
    def key_create(self, request: Request) -> Reply:
        wanted = request.json()
        fingerprint = _fingerprint(wanted.get("public_key"))
        if any(x["fingerprint"] == fingerprint for x in self.project.ssh_keys.values()):
            raise taken("public_key", "SSH key with the same fingerprint already exists")
        number = self.project.new_id()
        key = {
            "id": number,
            "name": self._free_name("ssh_keys", wanted.get("name")),
            "fingerprint": fingerprint,
            "public_key": wanted["public_key"],
            "labels": check_labels(wanted.get("labels")),
            "created": self.project.stamp(),
        }
        self.project.ssh_keys[number] = key
        return Reply(201, {"ssh_key": key})

    @route("PUT", "/v1/ssh_keys/{id}")
    def key_update(self, request: Request, id: str) -> Reply:
        return Reply(200, {"ssh_key": self._change(request, "ssh_keys", id)})

    @route("DELETE", "/v1/ssh_keys/{id}")
    def key_delete(self, request: Request, id: str) -> Reply:
        self.project.ssh_keys.pop(self._one("ssh_keys", id)["id"])
        return Reply(204)

    # ------------------------------------------------------------------ volumes

    @route("GET", "/v1/volumes")
    def volume_list(self, request: Request) -> Reply:
        return self._all(request, "volumes")

    @route("GET", "/v1/volumes/{id}")
    def volume_get(self, request: Request, id: str) -> Reply:
        return Reply(200, {"volume": self._one("volumes", id)})

    @route("POST", "/v1/volumes")
    def volume_create(self, request: Request) -> Reply:
        project, wanted = self.project, request.json()
        size = int(wanted.get("size") or 0)
        if not 10 <= size <= 10240:
            raise invalid("size", "must be between 10 and 10240")
        name = self._free_name("volumes", wanted.get("name"))
        server = project.servers.get(int(wanted.get("server") or 0))
        place = server.facts["location"] if server else catalog.location(wanted.get("location"))
        if place is None:
            raise invalid("location", "Missing data for required field.")
        number = project.new_id()
        volume = {
            "id": number,
            "name": name,
            "size": size,
            "server": server.id if server else None,
            "location": place,
            "linux_device": f"/dev/disk/by-id/scsi-0HC_Volume_{number}",
            "format": wanted.get("format"),
            "status": "available",
            "protection": {"delete": False},
            "labels": check_labels(wanted.get("labels")),
            "created": project.stamp(),
        }
        project.volumes[number] = volume
        month = project.catalog.volume_gb_month * Decimal(size)
        project.begin_billing("volume", number, name, month / _HOURS, month)
        action = project.action("create_volume", [("volume", number)], project.pace.other)
        made = {"volume": volume, "action": self.shown_action(action), "next_actions": []}
        return Reply(201, made)

    @route("POST", "/v1/volumes/{id}/actions/detach")
    def volume_detach(self, request: Request, id: str) -> Reply:
        volume = self._one("volumes", id)
        volume["server"] = None
        action = self.project.action("detach_volume", [("volume", volume["id"])], 0)
        return Reply(201, {"action": self.shown_action(action)})

    @route("POST", "/v1/volumes/{id}/actions/attach")
    def volume_attach(self, request: Request, id: str) -> Reply:
        volume, server = self._one("volumes", id), self.server(str(request.json().get("server")))
        self.attach(volume, server)
        resources = [("volume", volume["id"]), ("server", server.id)]
        action = self.project.action("attach_volume", resources, 0)
        return Reply(201, {"action": self.shown_action(action)})

    @route("DELETE", "/v1/volumes/{id}")
    def volume_delete(self, request: Request, id: str) -> Reply:
        volume = self._unprotected("volumes", id)
        if volume["server"] is not None:
            raise ApiError(423, "locked", "volume is attached to a server")
        self.project.volumes.pop(volume["id"])
        self.project.end_billing("volume", volume["id"])
        return Reply(204)

    # ------------------------------------------------------------------ images

    @route("GET", "/v1/images")
    def image_list(self, request: Request) -> Reply:
        return self._all(request, "images")

    @route("GET", "/v1/images/{id}")
    def image_get(self, request: Request, id: str) -> Reply:
        return Reply(200, {"image": self._one("images", id)})

    @route("DELETE", "/v1/images/{id}")
    def image_delete(self, request: Request, id: str) -> Reply:
        image = self._unprotected("images", id)
        if image["type"] not in ("snapshot", "backup"):
            raise ApiError(422, "invalid_input", "only snapshots and backups can be deleted")
        self.project.images.pop(image["id"])
        if image["type"] == "snapshot":
            self.project.end_billing("snapshot", image["id"])
        return Reply(204)

    # ------------------------------------------------------------------ groups and firewalls

    @route("GET", "/v1/placement_groups")
    def group_list(self, request: Request) -> Reply:
        return self._all(request, "placement_groups")

    @route("POST", "/v1/placement_groups")
    def group_create(self, request: Request) -> Reply:
        wanted, number = request.json(), self.project.new_id()
        group = {
            "id": number,
            "name": self._free_name("placement_groups", wanted.get("name")),
            "type": "spread",
            "servers": [],
            "labels": check_labels(wanted.get("labels")),
            "created": self.project.stamp(),
        }
        self.project.placement_groups[number] = group
        return Reply(201, {"placement_group": group, "action": None})

    @route("DELETE", "/v1/placement_groups/{id}")
    def group_delete(self, request: Request, id: str) -> Reply:
        self.project.placement_groups.pop(self._one("placement_groups", id)["id"])
        return Reply(204)

    @route("GET", "/v1/firewalls")
    def wall_list(self, request: Request) -> Reply:
        return self._all(request, "firewalls")

    @route("POST", "/v1/firewalls")
    def wall_create(self, request: Request) -> Reply:
        wanted, number = request.json(), self.project.new_id()
        rules = _rules(wanted)
        wall = {
            "id": number,
            "name": self._free_name("firewalls", wanted.get("name")),
            "labels": check_labels(wanted.get("labels")),
            "created": self.project.stamp(),
            "rules": rules,
            "applied_to": wanted.get("apply_to") or [],
        }
        self.project.firewalls[number] = wall
        return Reply(201, {"firewall": wall, "actions": []})

    @route("POST", "/v1/firewalls/{id}/actions/{verb}")
    def wall_act(self, request: Request, id: str, verb: str) -> Reply:
        wall, wanted = self._one("firewalls", id), request.json() or {}
        resources = [("firewall", wall["id"])]
        if verb == "set_rules":
            wall["rules"] = _rules(wanted)
            commands = ["set_firewall_rules"]
        elif verb == "apply_to_resources":
            for one in wanted["apply_to"]:
                self._apply(wall, one)
            commands = ["apply_firewall"]
        elif verb == "remove_from_resources":
            gone = wanted["remove_from"]
            if any(one not in wall["applied_to"] for one in gone):
                raise ApiError(404, "firewall_resource_not_found", "is not applied there")
            wall["applied_to"] = [one for one in wall["applied_to"] if one not in gone]
            commands = ["remove_firewall"]
        else:
            raise ApiError(404, "not_found", "no such action")
        actions = [self.shown_action(self.project.action(c, resources, 0)) for c in commands]
        return Reply(201, {"actions": actions})

    def _apply(self, wall: Json, to: Json) -> None:
        if to.get("type") == "server":
            self.server(str(to["server"]["id"]))
        if to in wall["applied_to"]:
            raise ApiError(422, "firewall_already_applied", "is applied there already")
        wall["applied_to"].append(to)

    @route("DELETE", "/v1/firewalls/{id}")
    def wall_delete(self, request: Request, id: str) -> Reply:
        wall = self._one("firewalls", id)
        if wall["applied_to"]:
            message = f"firewall with ID {wall['id']} is still in use"
            raise ApiError(422, "resource_in_use", message)
        self.project.firewalls.pop(wall["id"])
        return Reply(204)


def _rules(wanted: Json) -> list[Json]:
    """The rules of a firewall, with everything that they have. Raises ApiError (422)."""
    given = wanted.get("rules") or []
    if len(given) > _MOST_RULES:
        raise invalid("rules", f"at most {_MOST_RULES}")
    whole = {"port": None, "source_ips": [], "destination_ips": [], "description": None}
    return [{**whole, **rule} for rule in given]


def _fingerprint(public_key: object) -> str:
    """MD5 with colons. Raises ApiError (422)."""
    try:
        blob = base64.b64decode(str(public_key).split()[1], validate=True)
    except (IndexError, binascii.Error):
        raise invalid("public_key", "is not valid") from None
    digest = hashlib.md5(blob).hexdigest()  # noqa: S324 - as the API shows it
    return ":".join(digest[i : i + 2] for i in range(0, 32, 2))
