"""What is left of GraphQL: enough for the official SDK, the balance, and a pod's own stop.

Mistakes of clients are answered with 200 and `errors`, as the real one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from graphql import GraphQLError, OperationDefinitionNode, parse, value_from_ast_untyped
from graphql.language import FieldNode, SelectionSetNode

from tests.clouds.runpod_cloud import catalog
from tests.clouds.runpod_cloud.account import NO_SPOT, Account, Refused
from tests.clouds.runpod_cloud.pods import Pod

PUBLIC = {"gpuTypes", "dataCenters", "cpuFlavors", "countryCodes"}  # need no key
_RESUME = "There are not enough free GPUs on the host machine to start this pod."


class Legacy:
    """Answers documents.

    Args:
        account: whose they are about.
    """

    def __init__(self, account: Account) -> None:
        self._account = account

    def fields(self, text: str) -> set[str]:
        """The names at the top of a document; empty when it is none."""
        try:
            return {field.name.value for field in _top(text)}
        except GraphQLError:
            return set()

    def answer(self, text: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Carry a document out."""
        data: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        try:
            fields = _top(text)
        except GraphQLError as error:
            return {"errors": [_error(error.message, [], "GRAPHQL_PARSE_FAILED")]}
        for field in fields:
            name = field.name.value
            given = {
                one.name.value: value_from_ast_untyped(one.value, dict(variables))
                for one in field.arguments or ()
            }
            try:
                resolver = getattr(self, f"_{_snake(name)}", None)
                if resolver is None:
                    raise Refused(400, f'Cannot query field "{name}".')
                data[name] = _picked(resolver(given.get("input") or {}), field.selection_set)
            except Refused as refused:
                data[name] = None
                code = "SUPPLY_CONSTRAINT" if "instances" in refused.detail else "RUNPOD"
                errors.append(_error(refused.detail, [name], code))
        return {"errors": errors, "data": data} if errors else {"data": data}

    # ------------------------------------------------------------------ queries

    def _myself(self, _: Mapping[str, Any]) -> dict[str, Any] | None:
        account = self._account
        if account.switches.myself_null:
            return None
        return {
            "id": "user_emulated",
            "email": "somebody@example.com",
            "clientBalance": float(round(account.left, 6)),
            "currentSpendPerHr": float(round(account.spending(), 4)),
            "spendLimit": float(account.spend_limit),
            "pubKey": "\n\n".join(account.ssh_keys),
            "networkVolumes": [
                {**volume.json(), "dataCenterId": volume.data_center}
                for volume in account.volumes.values()
            ],
            "pods": [self._pod_json(pod) for pod in account.listed() if pod.state != "terminated"],
        }

    def _pod(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        pod = self._account.found(str(given.get("podId")))
        return self._pod_json(pod) if pod else None

    def _gpu_types(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = [
            row for row in catalog.GPUS.values() if given.get("id") in (None, row.id)
        ]  # an unknown id: none
        sentinel = {"id": "unknown", "displayName": "unknown", "memoryInGb": 0}
        found = [self._gpu_json(row) for row in rows]
        return found if given.get("id") else [sentinel, *found]

    def _gpu_json(self, row: catalog.GpuRow) -> dict[str, Any]:
        places = self._account.places(row.id, honest=False)
        levels = [level for level in places.values() if level != "NONE"]
        return {
            "id": row.id,
            "displayName": row.name,
            "manufacturer": row.manufacturer,
            "memoryInGb": row.memory,
            "maxGpuCount": row.most,
            "secureCloud": row.secure is not None,
            "communityCloud": row.community is not None,
            "securePrice": float(row.secure or 0),
            "communityPrice": float(row.community or 0),
            "secureSpotPrice": self._spot(row.secure),
            "communitySpotPrice": self._spot(row.community),
            "lowestPrice": {
                "uninterruptablePrice": float(row.secure or row.community or 0),
                "minimumBidPrice": self._spot(row.secure or row.community),
                "maxUnreservedGpuCount": row.most if levels else 0,
                "availableGpuCounts": list(range(1, row.most + 1)) if levels else [],
                "stockStatus": levels[0].title() if levels else None,
                "minVcpu": 4,
                "minMemory": 16,
            },
        }

    def _spot(self, price: Decimal | None) -> float | None:
        if price is None or not self._account.switches.graphql_spot:
            return None  # there is none any more
        return float(price * catalog.SPOT_SHARE)

    # ------------------------------------------------------------------ mutations

    def _pod_find_and_deploy_on_demand(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return self._pod_json(self._account.create(self._body(given)))

    @staticmethod
    def _body(given: Mapping[str, Any]) -> dict[str, Any]:
        """A create of API v2 that asks for the same; stopAfter and terminateAfter are ignored."""
        cloud = given.get("cloudType", "ALL")
        row = catalog.GPUS.get(str(given.get("gpuTypeId")))
        if row is None:
            raise Refused(400, "No GPU found with the specified ID")
        if cloud == "ALL":
            cloud = "SECURE" if row.secure is not None else "COMMUNITY"
        body: dict[str, Any] = {
            "name": given.get("name") or "my pod",
            "image": given["imageName"],
            "args": given.get("dockerArgs") or "",
            "disk": given.get("containerDiskInGb") or 10,
            "ports": [p for p in str(given.get("ports") or "").split(",") if p],
            "env": {one["key"]: str(one["value"]) for one in given.get("env") or ()},
            "cloud": cloud,
            "gpu": {"id": row.id, "count": given.get("gpuCount") or 1},
            "dataCenterIds": [given["dataCenterId"]] if given.get("dataCenterId") else [],
        }
        if given.get("volumeInGb"):
            path = given.get("volumeMountPath") or "/workspace"
            body["mounts"] = {"persistent": {"size": given["volumeInGb"], "path": path}}
        if given.get("networkVolumeId"):
            path = given.get("volumeMountPath") or "/workspace"
            mount = {"volumeId": given["networkVolumeId"], "path": path}
            body["mounts"] = {"network": [mount]}
        return body

    def _deploy_cpu_pod(self, given: Mapping[str, Any]) -> dict[str, Any]:
        flavour, count, _ = str(given.get("instanceId") or "cpu3c-2-4").split("-")
        body: dict[str, Any] = {
            "name": given.get("name") or "my pod",
            "image": given.get("imageName") or "runpod/base",
            "disk": given.get("containerDiskInGb") or 10,
            "env": {one["key"]: str(one["value"]) for one in given.get("env") or ()},
            "cpu": {"id": flavour, "vcpuCount": int(count)},
        }
        return self._pod_json(self._account.create(body))

    def _pod_rent_interruptable(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if not self._account.switches.graphql_spot:
            raise Refused(400, NO_SPOT)
        bid = Decimal(str(given.get("bidPerGpu") or 0))
        return self._pod_json(self._account.create(self._body(given), bid=bid))

    def _pod_bid_resume(self, given: Mapping[str, Any]) -> dict[str, Any]:
        pod = self._there(given)
        bid = Decimal(str(given.get("bidPerGpu") or 0))
        if pod.bid is None or pod.state != "stopped" or bid < pod.bid:
            raise Refused(400, _RESUME)
        pod.price, pod.bid = bid * pod.body["gpu"]["count"], bid
        self._account.start(pod)
        return self._pod_json(pod)

    def _pod_stop(self, given: Mapping[str, Any]) -> dict[str, Any]:
        pod = self._there(given)
        if pod.locked or pod.cluster:
            raise Refused(400, "pod is locked")
        self._account.stop(pod)
        return self._pod_json(pod)

    def _pod_resume(self, given: Mapping[str, Any]) -> dict[str, Any]:
        pod = self._there(given)
        if self._account.switches.hits("resume_500"):
            raise Refused(500, "Something went wrong. Please try again later or contact support.")
        if pod.state != "stopped":
            raise Refused(400, _RESUME)
        self._account.start(pod)
        return self._pod_json(pod)

    def _pod_terminate(self, given: Mapping[str, Any]) -> None:
        pod = self._account.found(str(given.get("podId")))
        if pod is None:
            raise Refused(404, "pod not found to terminate")
        self._account.terminate(pod)

    def _there(self, given: Mapping[str, Any]) -> Pod:
        pod = self._account.found(str(given.get("podId")))
        if pod is None:
            raise Refused(404, "pod not found")
        return pod

    def _pod_json(self, pod: Pod) -> dict[str, Any]:
        now = self._account.clock.now()
        port = pod.published_port(now)
        ports = [
            {
                "ip": pod.address,
                "isIpPublic": True,
                "privatePort": 22,
                "publicPort": port,
                "type": "tcp",
            }
        ]
        return {
            "id": pod.id,
            "name": pod.body["name"],
            "imageName": pod.body["image"],
            "env": [f"{key}={value}" for key, value in pod.body["env"].items()],
            "desiredStatus": "EXITED" if pod.state == "stopped" else "RUNNING",
            "costPerHr": float(pod.price or Decimal(0)),
            "gpuCount": pod.gpus,
            "podType": "RESERVED" if pod.bid is None else "INTERRUPTABLE",
            "containerDiskInGb": pod.body["disk"],
            "machineId": "emulated",
            "machine": {"podHostId": pod.proxy_user},
            "runtime": None
            if port is None
            else {"uptimeInSeconds": int(pod.age(now)), "ports": ports, "gpus": []},
        }


def _top(text: str) -> list[FieldNode]:
    fields = []
    for definition in parse(text).definitions:
        if isinstance(definition, OperationDefinitionNode):
            fields += [
                one for one in definition.selection_set.selections if isinstance(one, FieldNode)
            ]
    return fields


def _picked(value: Any, chosen: SelectionSetNode | None) -> Any:
    """Only the fields that were asked for."""
    if chosen is None or value is None:
        return value
    if isinstance(value, list):
        return [_picked(one, chosen) for one in value]
    return {
        field.name.value: _picked(value.get(field.name.value), field.selection_set)
        for field in chosen.selections
        if isinstance(field, FieldNode)
    }


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _error(message: str, path: list[str], code: str) -> dict[str, Any]:
    return {"message": message, "path": path, "extensions": {"code": code}}
