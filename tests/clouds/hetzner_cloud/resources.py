"""The rest of the API: keys, addresses, volumes, images, groups, firewalls, what is sold."""

from __future__ import annotations

import base64
import binascii
import hashlib
from decimal import Decimal
from typing import Any

from tests.clouds.hetzner_cloud import catalog
from tests.clouds.hetzner_cloud.errors import NO_DATACENTERS, ApiError, invalid, missing, taken
from tests.clouds.hetzner_cloud.rules import check_labels, filtered, identity
from tests.clouds.hetzner_cloud.servers import ServerRoutes
from tests.clouds.http_cloud import Reply, Request, route

Json = dict[str, Any]
_HOURS = 730
_UPDATABLE = ("name", "labels", "auto_delete", "description")


class ResourceRoutes(ServerRoutes):
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

    @route("GET", "/v1/floating_ips")
    def floating_list(self, request: Request) -> Reply:
        return self.listing(request, "floating_ips", [])

    @route("GET", "/v1/load_balancers")
    def balancer_list(self, request: Request) -> Reply:
        return self.listing(request, "load_balancers", [])

    @route("GET", "/v1/datacenters")
    @route("GET", "/v1/datacenters/{id}")
    def datacenters(self, request: Request, id: str = "") -> Reply:
        raise NO_DATACENTERS

    # ------------------------------------------------------------------ what all have alike

    def _kept(self, kind: str) -> dict[int, Json]:
        found = getattr(self.project, kind)
        assert isinstance(found, dict)
        return found

    def _one(self, kind: str, id: str) -> Json:
        found = self._kept(kind).get(identity(id))
        if found is None:
            raise missing(kind[:-1], id)
        return found

    def _all(self, request: Request, kind: str) -> Reply:
        return self.listing(request, kind, filtered(request, list(self._kept(kind).values())))

    def _change(self, request: Request, kind: str, id: str) -> Json:
        found, wanted = self._one(kind, id), request.json() or {}
        for name in _UPDATABLE:
            if name in wanted and name in found:
                found[name] = check_labels(wanted[name]) if name == "labels" else wanted[name]
        return found

    def _free_name(self, kind: str, name: object) -> str:
        if not isinstance(name, str) or not name:
            raise invalid("name", "Missing data for required field.")
        if any(one["name"] == name for one in self._kept(kind).values()):
            words = "SSH key name is already used" if kind == "ssh_keys" else "name is already used"
            raise taken("name", words)
        return name

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

    # ------------------------------------------------------------------ addresses

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
        made = self.new_address(
            wanted["type"],
            name,
            place,
            assignee=wanted.get("assignee_id"),
            auto_delete=bool(wanted.get("auto_delete", False)),
        )
        made["labels"] = check_labels(wanted.get("labels"))
        return Reply(201, {"primary_ip": made, "action": None})

    @route("PUT", "/v1/primary_ips/{id}")
    def address_update(self, request: Request, id: str) -> Reply:
        return Reply(200, {"primary_ip": self._change(request, "primary_ips", id)})

    @route("DELETE", "/v1/primary_ips/{id}")
    def address_delete(self, request: Request, id: str) -> Reply:
        address = self._one("primary_ips", id)
        if address["assignee_id"] is not None:
            raise ApiError(422, "must_be_unassigned", "primary ip must be unassigned")
        self.project.drop_address(address)
        return Reply(204)

    @route("POST", "/v1/primary_ips/{id}/actions/unassign")
    def address_unassign(self, request: Request, id: str) -> Reply:
        address = self._one("primary_ips", id)
        server = self.project.servers.get(address["assignee_id"] or 0)
        if server is not None and server.status != "off":
            raise ApiError(422, "server_not_stopped", "server must be stopped")
        address.update(assignee_id=None, assignee_type="unassigned")
        resources = [("primary_ip", address["id"])]
        action = self.project.action("unassign_primary_ip", resources, 0)
        return Reply(201, {"action": self.shown_action(action)})

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

    @route("DELETE", "/v1/volumes/{id}")
    def volume_delete(self, request: Request, id: str) -> Reply:
        volume = self._one("volumes", id)
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
        image = self._one("images", id)
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
        wall = {
            "id": number,
            "name": self._free_name("firewalls", wanted.get("name")),
            "labels": check_labels(wanted.get("labels")),
            "created": self.project.stamp(),
            "rules": wanted.get("rules") or [],
            "applied_to": wanted.get("apply_to") or [],
        }
        self.project.firewalls[number] = wall
        return Reply(201, {"firewall": wall, "actions": []})

    @route("DELETE", "/v1/firewalls/{id}")
    def wall_delete(self, request: Request, id: str) -> Reply:
        wall = self._one("firewalls", id)
        if wall["applied_to"]:
            message = f"firewall with ID {wall['id']} is still in use"
            raise ApiError(422, "resource_in_use", message)
        self.project.firewalls.pop(wall["id"])
        return Reply(204)


def _fingerprint(public_key: object) -> str:
    """MD5 with colons. Raises ApiError (422)."""
    try:
        blob = base64.b64decode(str(public_key).split()[1], validate=True)
    except (IndexError, binascii.Error):
        raise invalid("public_key", "is not valid") from None
    digest = hashlib.md5(blob).hexdigest()  # noqa: S324 - as the API shows it
    return ":".join(digest[i : i + 2] for i in range(0, 32, 2))
