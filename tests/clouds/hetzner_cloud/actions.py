"""The part of the API about actions, and about what servers are told to do."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.clouds.hetzner_cloud import catalog
from tests.clouds.hetzner_cloud.errors import ApiError, invalid, missing
from tests.clouds.hetzner_cloud.project import Server
from tests.clouds.hetzner_cloud.rules import check_labels, filtered, identity, repeated
from tests.clouds.hetzner_cloud.servers import ServerRoutes
from tests.clouds.http_cloud import Reply, Request, route

Json = dict[str, Any]


class ActionRoutes(ServerRoutes):
    """Mixed into the cloud."""

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
    @route("GET", "/v1/servers/\\d+/actions/{id}")
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
