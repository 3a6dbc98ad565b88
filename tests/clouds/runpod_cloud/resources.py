"""Routes beside those of pods: the catalogue, network volumes, the account's keys, the bill."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.clouds.http_cloud import HttpCloud, Reply, Request, route
from tests.clouds.runpod_cloud import billing, catalog
from tests.clouds.runpod_cloud.account import Account
from tests.clouds.runpod_cloud.answers import body_of, invalid, problem

_KEY = re.compile(r"^(ssh|ecdsa|sk)-\S+ \S+([ \t][^\n\r]*)?$")
_SIZES = range(10, 4097)  # GB of a network volume
_TIERS = ("STANDARD", "HIGH_PERFORMANCE")


class Resources(HttpCloud):
    """What an account has besides pods."""

    account: Account

    # ------------------------------------------------------------------ catalogue

    @route("GET", "/v2/catalog/gpus")
    def list_gpus(self, request: Request) -> Reply:
        """Cards, their prices, and their stock where it is asked for."""
        asked, wrong = _availability_asked(request.query)
        if wrong:
            return problem(400, wrong)
        cloud = request.query.get("cloud", "SECURE")
        count = int(request.query.get("count", "1"))
        old = _older_than_asked(request.query)
        rows = []
        for row in catalog.GPUS.values():
            places = self.account.places(row.id, honest=False)
            if count > row.most or old:
                places = {}
            rows.append(catalog.gpu_json(row, cloud, places if asked else None))
        return Reply(200, {"gpus": rows})

    @route("GET", "/v2/catalog/gpus/{id}")
    def get_gpu(self, request: Request, id: str) -> Reply:
        """One card."""
        row = catalog.GPUS.get(id)
        if row is None:
            return problem(404, "GPU type not found")
        asked, wrong = _availability_asked(request.query)
        places = self.account.places(id, honest=False) if asked else None
        cloud = request.query.get("cloud", "SECURE")
        return problem(400, wrong) if wrong else Reply(200, catalog.gpu_json(row, cloud, places))

    @route("GET", "/v2/catalog/cpus")
    def list_cpus(self, request: Request) -> Reply:
        """Flavours without a card."""
        asked, wrong = _availability_asked(request.query)
        if wrong:
            return problem(400, wrong)
        rows = catalog.CPUS.values()
        return Reply(200, {"cpus": [self._cpu(row, asked) for row in rows]})

    @route("GET", "/v2/catalog/cpus/{id}")
    def get_cpu(self, request: Request, id: str) -> Reply:
        """One flavour."""
        row = catalog.CPUS.get(id)
        if row is None:
            return problem(404, "CPU type not found")
        asked, wrong = _availability_asked(request.query)
        return problem(400, wrong) if wrong else Reply(200, self._cpu(row, asked))

    def _cpu(self, row: catalog.CpuRow, asked: bool) -> dict[str, Any]:
        places = self.account.places(row.id, honest=False) if asked else None
        return catalog.cpu_json(row, places)

    @route("GET", "/v2/catalog/datacenters")
    def list_data_centers(self, request: Request) -> Reply:
        """Where there is something."""
        return Reply(200, {"dataCenters": self._data_centers(request)})

    @route("GET", "/v2/catalog/datacenters/{id}")
    def get_data_center(self, request: Request, id: str) -> Reply:
        """One place."""
        found = [one for one in self._data_centers(request) if one["id"] == id]
        return Reply(200, found[0]) if found else problem(404, "data center not found")

    def _data_centers(self, request: Request) -> list[dict[str, Any]]:
        stock = request.query.get("include") == "GPU_AVAILABILITY"
        levels = {
            row.id: self.account.places(row.id, honest=False) for row in catalog.GPUS.values()
        }
        return catalog.data_centers_json(levels if stock else None)

    # ------------------------------------------------------------------ network volumes

    @route("GET", "/v2/network-volumes")
    def list_volumes(self, request: Request) -> Reply:
        """All of them."""
        return Reply(200, {"networkVolumes": [v.json() for v in self.account.volumes.values()]})

    @route("POST", "/v2/network-volumes")
    def create_volume(self, request: Request) -> Reply:
        """Another one; it bills until it is deleted."""
        body = body_of(request)
        if errors := _volume_errors(body, required=("name", "size", "dataCenter")):
            return invalid(errors)
        if body["dataCenter"] not in catalog.DATA_CENTERS:
            return problem(400, "request could not be processed")
        volume = self.account.create_volume(
            body["name"], body["size"], body["dataCenter"], body.get("type", "STANDARD")
        )
        return Reply(201, volume.json())

    @route("GET", "/v2/network-volumes/{id}")
    def get_volume(self, request: Request, id: str) -> Reply:
        """One of them."""
        volume = self.account.volumes.get(id)
        return Reply(200, volume.json()) if volume else problem(404, "network volume not found")

    @route("PATCH", "/v2/network-volumes/{id}")
    def update_volume(self, request: Request, id: str) -> Reply:
        """Another name, or more room; less is refused."""
        volume, body = self.account.volumes.get(id), body_of(request)
        if volume is None:
            return problem(404, "network volume not found")
        if errors := _volume_errors(body, required=(), known=("name", "size")):
            return invalid(errors)
        if body.get("size", volume.size) < volume.size:
            return problem(400, "network volume size cannot be decreased")
        return Reply(200, self.account.change_volume(volume, body).json())

    @route("DELETE", "/v2/network-volumes/{id}")
    def delete_volume(self, request: Request, id: str) -> Reply:
        """It bills no more."""
        there = self.account.delete_volume(id)
        return Reply(204) if there else problem(404, "network volume not found")

    # ------------------------------------------------------------------ keys and money

    @route("GET", "/v2/account/ssh-keys")
    def ssh_keys(self, request: Request) -> Reply:
        """What pods that ask for ``startSsh`` let in."""
        return Reply(200, {"keys": self.account.ssh_keys})

    @route("PUT", "/v2/account/ssh-keys")
    def replace_ssh_keys(self, request: Request) -> Reply:
        """All of them at once: keys that are not in the request are lost."""
        keys = body_of(request).get("keys")
        if not isinstance(keys, list) or not all(_KEY.match(str(key)) for key in keys):
            return invalid(["$.keys: value must be a list of SSH public keys"])
        self.account.ssh_keys = [str(key) for key in keys]
        return Reply(200, {"keys": self.account.ssh_keys})

    @route("GET", "/v2/billing/pods")
    def bill(self, request: Request) -> Reply:
        """What pods were charged."""
        if wrong := billing.what_is_wrong(request.query):
            return problem(400, wrong)
        return Reply(200, billing.answer(self.account, request.query))


def _volume_errors(
    body: Mapping[str, Any],
    *,
    required: tuple[str, ...],
    known: tuple[str, ...] = ("name", "size", "dataCenter", "type"),
) -> list[str]:
    errors = [f"$: missing property '{name}'" for name in required if name not in body]
    errors += [
        f"$: additional properties '{name}' not allowed" for name in sorted(set(body) - set(known))
    ]
    if not body:
        errors.append("$: at least one property is required")
    size = body.get("size", min(_SIZES))
    if not isinstance(size, int) or size not in _SIZES:
        errors.append("$.size: value must be an integer from 10 to 4096")
    if not body.get("name", "x"):
        errors.append("$.name: value must not be empty")
    if body.get("type", "STANDARD") not in _TIERS:
        errors.append("$.type: value must be one of 'STANDARD', 'HIGH_PERFORMANCE'")
    return errors


def _availability_asked(query: Mapping[str, str]) -> tuple[bool, str]:
    """Whether availability was asked for, and what is wrong with how."""
    include, product = query.get("include"), query.get("product")
    if include not in (None, "AVAILABILITY"):
        return False, "unsupported include"
    if (include is None) != (product is None):
        return False, "product is required with include=AVAILABILITY, and valid only with it"
    if "cudaVersions" in query and "minCudaVersion" in query:
        return False, "cudaVersions and minCudaVersion are mutually exclusive"
    return include is not None, ""


def _older_than_asked(query: Mapping[str, str]) -> bool:
    """Whether all drivers are too old for what is asked."""
    return catalog.cuda(query.get("minCudaVersion", "0.0")) > catalog.CUDA
