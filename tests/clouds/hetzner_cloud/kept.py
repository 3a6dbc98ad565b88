"""What all kinds of things in a project have alike: lists, names, labels, protection."""

from __future__ import annotations

import re
from typing import Any

from tests.clouds.hetzner_cloud.actions import ActionRoutes
from tests.clouds.hetzner_cloud.errors import ApiError, invalid, missing, taken
from tests.clouds.hetzner_cloud.rules import check_labels, filtered, identity
from tests.clouds.http_cloud import Reply, Request, route

Json = dict[str, Any]
_UPDATABLE = ("name", "labels", "auto_delete", "description")
_NAMES = {  # and how long they may be
    "volumes": re.compile(r"[A-Za-z0-9._-]{1,64}"),
    "firewalls": re.compile(r".{1,128}"),
}


class KeptRoutes(ActionRoutes):
    """Mixed into the cloud."""

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
        if wanted.get("name") not in (None, found.get("name")):
            self._free_name(kind, wanted["name"])
        for name in _UPDATABLE:
            if name in wanted and name in found:
                found[name] = check_labels(wanted[name]) if name == "labels" else wanted[name]
        return found

    def _free_name(self, kind: str, name: object) -> str:
        if not isinstance(name, str) or not name:
            raise invalid("name", "Missing data for required field.")
        if kind in _NAMES and not _NAMES[kind].fullmatch(name):
            raise invalid("name", "is not valid")
        if any(one["name"] == name for one in self._kept(kind).values()):
            words = "SSH key name is already used" if kind == "ssh_keys" else "name is already used"
            raise taken("name", words)
        return name

    def _unprotected(self, kind: str, id: str) -> Json:
        """One that may be deleted. Raises ApiError (423)."""
        found = self._one(kind, id)
        if found.get("protection", {}).get("delete"):
            raise ApiError(423, "protected", f"{kind[:-1]} deletion is protected")
        return found

    @route("POST", "/v1/(?P<kind>volumes|primary_ips|images)/{id}/actions/change_protection")
    def protect(self, request: Request, kind: str, id: str) -> Reply:
        found = self._one(kind, id)
        found["protection"] = {"delete": bool((request.json() or {}).get("delete"))}
        resources = [(kind[:-1], found["id"])]
        action = self.project.action("change_protection", resources, 0)
        return Reply(201, {"action": self.shown_action(action)})
