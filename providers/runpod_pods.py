"""A pod as RunPod describes it, read as a machine; and the request that makes one. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from providers.base import Ambiguous, Machine, Mark, Order, SelfEnd, SshAccess, State
from providers.runpod_offers import Choice, canonical, disk_of, money, price_of, price_stopped
from providers.runpod_self_end import command

IMAGE = "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404"
IMAGE_CUDA = "12.8"  # what its hosts' drivers must be able to run
OFFICIAL = "runpod/"  # their images start sshd by themselves
SSH_PORT = 22

STATES: Mapping[str, State] = {
    "PROVISIONING": State.BOOTING,
    "STARTING": State.BOOTING,
    "RUNNING": State.READY,  # once its SSH port is published, see `machine_of`
    "EXITED": State.STOPPED,
    "ERROR": State.LOST,
    "TERMINATED": State.GONE,
}
"""RunPod's words, and what they mean."""

# In lower case: gpuctl's own settings have capital letters, and mean something else.
_OWNER, _RUN, _END, _MANAGED_BY = "gpuctl_owner", "gpuctl_run", "gpuctl_end", "gpuctl_managed_by"

# A pod is thrown away, so what pip installs may go among its system's packages; Ubuntu 24.04 would
# refuse that.
_EVERYWHERE = {"PIP_BREAK_SYSTEM_PACKAGES": "1"}

# Takes the place of what the image would start, so it stays in the foreground. The path goes into
# the sessions by SSH: they do not get the image's own (conda's Python is only there).
_START = (
    "mkdir -p ~/.ssh /run/sshd; chmod 700 ~/.ssh; "
    'echo "$PUBLIC_KEY" >> ~/.ssh/authorized_keys; chmod 600 ~/.ssh/authorized_keys; '
    "command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || "
    "{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y openssh-server; } || "
    "apk add openssh; ssh-keygen -A; "
    '"$(command -v sshd || echo /usr/sbin/sshd)" -o "SetEnv=PATH=$PATH"; exec sleep infinity'
)


def state_of(status: str) -> State:
    """Return what a status means; one that nobody has seen before is UNKNOWN."""
    return STATES.get(status, State.UNKNOWN)


def body_of(order: Order, choice: Choice, ssh_port: int = SSH_PORT) -> dict[str, Any]:
    """Return the body of the create."""
    image = order.image or IMAGE
    env = {
        _OWNER: order.mark.owner,
        _END: str(int(order.mark.end.timestamp())),
        _MANAGED_BY: order.mark.managed_by,
    }
    if order.mark.run is not None:
        env[_RUN] = order.mark.run
    if order.ssh_public_key is not None:
        # Official images read the first, RunPod's documentation names the second.
        env |= {"PUBLIC_KEY": order.ssh_public_key, "SSH_PUBLIC_KEY": order.ssh_public_key}
    body: dict[str, Any] = {
        "name": order.name,
        "image": image,
        "cloud": choice.cloud,
        "disk": disk_of(order.disk_gb),
        "ports": [f"{ssh_port}/tcp"],
        "env": env,
    }
    if choice.has_gpu:
        body["gpu"] = {"id": choice.kind, "count": choice.count}  # without a count: "none left"
        if order.image is None:
            body["gpu"]["minCudaVersion"] = IMAGE_CUDA
    else:
        body["cpu"] = {"id": choice.kind, "vcpuCount": choice.count}
    if choice.place is not None:
        body["dataCenterIds"] = [choice.place]
    if not image.startswith(OFFICIAL) and ssh_port == SSH_PORT:
        body["args"] = f"bash -c '{_START}'"
    return body


def machine_of(pod: Mapping[str, Any], root: str, ssh_port: int = SSH_PORT) -> Machine:
    """Return the machine that a pod is.

    Args:
        root: of the API, for the pod's own use.

    Raises:
        Ambiguous: it has no id, so it is no pod.
    """
    pod_id, status = pod.get("id"), str(pod.get("status") or "")
    if not isinstance(pod_id, str) or not pod_id:
        raise Ambiguous("RunPod described a pod without an id.")
    state, access = state_of(status), _access(pod, ssh_port)
    if state is State.READY and access is None:
        # RUNNING comes minutes before its sshd and the port.
        state, status = State.BOOTING, f"{status} (no SSH port yet)"
    gpu = _mapping(pod, "gpu")
    name = canonical(gpu["id"])[0] if isinstance(gpu.get("id"), str) else None
    count = gpu.get("count", 1)
    return Machine(
        name=str(pod.get("name") or pod_id),
        provider="runpod",
        provider_id=pod_id,
        state=state,
        status=status,
        gpu=name,
        gpu_count=count if name and isinstance(count, int) else 0,
        price_hour=_price(pod, state),
        region=str(pod.get("dataCenterId") or str(pod.get("cloud") or "").lower()),
        access=access if state is State.READY else None,
        mark=mark_of(_mapping(pod, "env")),
        created_at=moment(pod.get("createdAt")),
        self_end=SelfEnd(argv=command(root, pod_id)),
    )


def mark_of(env: Mapping[str, Any]) -> Mark | None:
    """Return the mark that a pod's environment holds; None: it is not ours."""
    owner, end = env.get(_OWNER), env.get(_END)
    if not isinstance(owner, str) or not re.fullmatch(r"[0-9a-f]{6,32}", owner):
        return None
    if not isinstance(end, str) or not re.fullmatch(r"[0-9]{1,11}", end):
        return None
    run, managed_by = env.get(_RUN), env.get(_MANAGED_BY)
    return Mark(
        owner=owner,
        end=datetime.fromtimestamp(int(end), UTC),
        run=run if isinstance(run, str) else None,
        managed_by=managed_by if isinstance(managed_by, str) else "gpuctl",
    )


def moment(text: object) -> datetime | None:
    """Return a time of the API; None when it is none."""
    if not isinstance(text, str):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _access(pod: Mapping[str, Any], ssh_port: int) -> SshAccess | None:
    """The direct way in. RunPod's proxy has no files and no forwards, so it is none."""
    direct = _mapping(_mapping(pod, "ssh"), "direct")
    if ssh_port == SSH_PORT and _is_address(direct.get("host"), direct.get("port")):
        user = str(direct.get("username") or "root")
        return SshAccess(direct["host"], direct["port"], user, env=_EVERYWHERE)
    ports = _mapping(pod, "runtime").get("ports")
    for one in ports if isinstance(ports, list) else ():
        if (
            isinstance(one, Mapping)
            and one.get("private") == ssh_port
            and one.get("type") == "tcp"
            and _is_address(one.get("ip"), one.get("public"))
        ):
            return SshAccess(one["ip"], one["public"], "root", env=_EVERYWHERE)
    return None


def _is_address(host: object, port: object) -> bool:
    known = isinstance(host, str) and host != "" and not host.startswith("-")
    return known and isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536


def _price(pod: Mapping[str, Any], state: State) -> Decimal | None:
    """USD an hour, disks included. A stopped pod's `cost` stays at the running rate: not used."""
    disk = money(pod.get("disk")) or Decimal(0)
    volume = money(_mapping(_mapping(pod, "mounts"), "persistent").get("size")) or Decimal(0)
    if state is State.STOPPED:
        return price_stopped(volume)
    cost = money(pod.get("cost"))
    return None if cost is None else price_of(cost, disk, volume)


def _mapping(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = holder.get(key)
    return value if isinstance(value, Mapping) else {}
