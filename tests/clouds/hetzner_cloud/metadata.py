"""What a server is told by 169.254.169.254: who it is, and its user data. No key is asked for."""

from __future__ import annotations

import json
from typing import Any

from providers.base import Clock
from tests.clouds.http_cloud import HttpCloud, Reply, Request, route

_TEXT = {"Content-Type": "text/plain"}


class Metadata(HttpCloud):
    """The service as one server sees it."""

    def __init__(self, clock: Clock, server: dict[str, Any], ipv4: str, user_data: str) -> None:
        super().__init__(clock=clock)
        place = server["location"]
        self._facts = {
            "instance-id": str(server["id"]),
            "hostname": server["name"],
            "public-ipv4": ipv4,
            "region": place["network_zone"],
            "availability-zone": f"{place['name']}-dc1",
            "private-networks": "",
        }
        self._user_data = user_data

    @route("GET", "/hetzner/v1/metadata")
    def all_of_it(self, request: Request) -> Reply:
        return Reply(200, json.dumps(self._facts).encode(), _TEXT)  # JSON is YAML

    @route("GET", "/hetzner/v1/metadata/{name}")
    def one(self, request: Request, name: str) -> Reply:
        if name not in self._facts:
            return Reply(404, b"not found", _TEXT)
        return Reply(200, self._facts[name].encode(), _TEXT)

    @route("GET", "/hetzner/v1/userdata")
    def user_data(self, request: Request) -> Reply:
        return Reply(200, self._user_data.encode(), _TEXT)
