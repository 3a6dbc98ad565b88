"""One RunPod account: its pods, volumes, money and books."""

from __future__ import annotations

import secrets
import string
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from providers.base import Clock
from tests.clouds.books import Books
from tests.clouds.runpod_cloud import catalog
from tests.clouds.runpod_cloud.hosts import GRACE_SECONDS, Host, card_of
from tests.clouds.runpod_cloud.pods import Pod, Times
from tests.clouds.runpod_cloud.switches import Switches
from tests.clouds.runpod_cloud.volumes import Volume
from tests.remote.sshd import free_port

NO_INSTANCES = (
    "There are no longer any instances available with the requested specifications. "
    "Please refresh and try again."
)
DEFAULT_IMAGE_DISK = 50
NO_SPOT = (
    "There are no instances available with the request specifications. Please try again later."
)
_FOR_EVER = 10.0**8  # seconds
_LETTERS = string.ascii_lowercase + string.digits


class Refused(Exception):
    """The API says no: a status and a text."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Account:
    """Everything that one key leads to.

    Args:
        clock: the cloud's own time.
        times: of new pods.
        machines: where the real machines behind the pods live; None for none.
        root: the API's address as pods see it; set once it is known.
    """

    def __init__(self, clock: Clock, times: Times, machines: Path | None) -> None:
        self.clock = clock
        self.times = times
        self.machines = machines
        self.switches = Switches()
        self.books = Books()
        self.pods: dict[str, Pod] = {}
        self.volumes: dict[str, Volume] = {}
        self.stock: dict[str, dict[str, str]] = {}  # id -> data center -> level, where set
        self.ssh_keys: list[str] = []  # for pods that are made with startSsh
        self.balance = Decimal(25)  # what was paid in; see `left`
        self.spend_limit = Decimal(80)
        self._starts = 0
        self._balance_checked = clock.now()

    # ------------------------------------------------------------------ stock

    def places(self, id: str, *, honest: bool) -> dict[str, str]:
        """Data center -> level of a GPU or CPU type."""
        found = dict(self.stock.get(id) or catalog.data_centers_of(id))
        if self.switches.stock_lies and not honest:
            return found
        for gpu, place in self.switches.no_capacity:
            if gpu in ("*", id):
                gone = found if place == "*" else {place: ""}
                found |= {name: "NONE" for name in gone if name in found}
        return found

    def _placed(self, id: str, wanted: list[str]) -> str:
        free = [p for p, level in self.places(id, honest=True).items() if level != "NONE"]
        free = [place for place in free if not wanted or place in wanted]
        if not free:
            raise Refused(400, NO_INSTANCES)
        return free[0]

    def _price(self, body: dict[str, Any]) -> tuple[str, Decimal]:
        """What was asked for by id, and USD an hour for it."""
        if "cpu" in body:
            row = catalog.CPUS.get(body["cpu"]["id"])
            if row is None:
                raise Refused(400, "request could not be processed")
            return row.id, row.price_per_vcpu * body["cpu"]["vcpuCount"]
        gpu = catalog.GPUS.get(body["gpu"]["id"])
        price = gpu.price(body.get("cloud", "SECURE")) if gpu else None
        if gpu is None or price is None:
            raise Refused(400, "request could not be processed")
        count = body["gpu"]["count"]
        least = catalog.cuda(body["gpu"].get("minCudaVersion", "0.0"))
        if count > gpu.most or least > catalog.CUDA:
            raise Refused(400, NO_INSTANCES)
        return gpu.id, price * count

    # ------------------------------------------------------------------ a pod's life

    def create(self, body: dict[str, Any], *, bid: Decimal | None = None) -> Pod:
        """Rent one, or bid for it (USD an hour for a GPU). Raises Refused."""
        id, price = self._price(body)
        price *= self.switches.price_jump
        if bid is not None:
            if bid * body["gpu"]["count"] < price * catalog.SPOT_SHARE:
                raise Refused(400, NO_SPOT)
            price = bid * body["gpu"]["count"]
        if self.switches.insufficient_balance or self.left < price:
            raise Refused(402, "Insufficient balance")
        if self.switches.spend_cap_as_capacity or self.spending() + price > self.spend_limit:
            raise Refused(400, NO_INSTANCES)
        place = self._placed(id, self._where(body))
        now = self.clock.now()
        whole = {"args": "", "disk": DEFAULT_IMAGE_DISK, "ports": [], "env": {}, "cloud": "SECURE"}
        pod = Pod(
            id="".join(secrets.choice(_LETTERS) for _ in range(14)),
            body={**whole, **body},
            price=price,
            created_at=now,
            data_center=place,
            times=self.times,
            api_key=f"rpa_pod{secrets.token_hex(18)}",
            key_rights=self.switches.scoped_rights,
            started_at=now,
            real=self.machines is not None,
            bid=bid,
        )
        self._inject(pod)
        pod.say(now, "system", f"create container {pod.body['image']}")
        if self.switches.hits("never_ready"):
            pod.stuck = "no port"
        elif self.switches.hits("image_pull_stuck"):
            pod.stuck = "starting"
        elif self.switches.image_pull_error is not None:
            pod.stuck = "starting"
            pod.say(now, "system", f"error pulling image: {self.switches.image_pull_error}")
        elif self.switches.hits("container_restarts"):
            pod.stuck = "restarting"
        self.pods[pod.id] = pod
        self.books.begin("pod", pod.id, pod.body["name"], pod.meter(now), now)
        missing, self.switches.fewer_gpus = self.switches.fewer_gpus, 0
        self._boot(pod, max(body.get("gpu", {}).get("count", 0) - missing, 0))
        return pod

    def _where(self, body: dict[str, Any]) -> list[str]:
        """The data centers that will do: a network volume leaves one. Raises Refused."""
        wanted: list[str] = body.get("dataCenterIds") or []
        mounts = body.get("mounts", {}).get("network")
        if not mounts:
            return wanted
        volume = self.volumes.get(mounts[0]["volumeId"])
        if volume is None:
            raise Refused(404, "network volume not found")
        if wanted and volume.data_center not in wanted:
            raise Refused(400, NO_INSTANCES)
        return [volume.data_center]

    def _inject(self, pod: Pod) -> None:
        """What the flags of a create put into its environment, and no look at it shows."""
        if pod.body.get("startSsh") and self.ssh_keys:
            pod.injected["PUBLIC_KEY"] = "\n".join(self.ssh_keys)
        if pod.body.get("startJupyter"):
            pod.injected["JUPYTER_PASSWORD"] = secrets.token_hex(10)

    def change(self, pod: Pod, body: dict[str, Any]) -> None:
        """Change what it is made of; a running container begins anew, its disk erased."""
        pod.locked = body.get("locked", pod.locked)
        parts = {k: v for k, v in body.items() if k not in ("locked", "globalNetworking")}
        pod.body = {**pod.body, **parts}
        if pod.state == "live" and set(parts) - {"name"}:
            self._no_host(pod)
            self.start(pod)

    def stop(self, pod: Pod) -> None:
        """End its container; the persistent volume stays, and bills."""
        self._no_host(pod)
        pod.state, pod.taken_at = "stopped", None
        pod.say(self.clock.now(), "system", "stop container")
        self.books.reprice(pod.id, pod.meter(self.clock.now()), self.clock.now())

    def start(self, pod: Pod) -> None:
        """Start it again, on another port, perhaps without GPUs."""
        pod.state = "live"
        pod.started_at = self.clock.now()
        pod.say(pod.started_at, "system", "start container")
        self.books.reprice(pod.id, pod.meter(self.clock.now()), self.clock.now())
        count = int(pod.body.get("gpu", {}).get("count", 0))
        self._boot(pod, 0 if self.switches.zero_gpu_on_start else count)

    def terminate(self, pod: Pod) -> None:
        """Delete it."""
        if pod.state == "terminated":
            return
        self._no_host(pod)
        pod.state = "terminated"
        pod.ended_at = self.clock.now()
        pod.stop_meter(pod.ended_at)
        self.books.end(pod.id, pod.ended_at)

    def lose(self, pod: Pod) -> None:
        """Its host is gone; the API goes on saying RUNNING."""
        pod.stuck = "lost"
        if pod.host is not None:
            pod.host.kill()

    def take_away(self, pod: Pod) -> None:
        """Somebody bids more: 5 s after a SIGTERM all is killed; the API shows it later still."""
        assert pod.bid is not None, "on-demand pods are not taken away"
        pod.taken_at = self.clock.now()
        if pod.host is not None:
            pod.host.interrupt()

    def settle(self) -> None:
        """Let everything happen that is due: pods that were taken away, money that ran out."""
        now = self.clock.now()
        for pod in self.pods.values():
            if pod.taken_at is None or pod.state != "live":
                continue
            shown = GRACE_SECONDS + self.switches.interruption_lag_s
            if (now - pod.taken_at).total_seconds() >= shown:
                self.stop(pod)
        if (now - self._balance_checked).total_seconds() < self.switches.balance_check_s:
            return
        self._balance_checked = now
        if self.left > 0:
            return
        for pod in self.pods.values():
            if pod.state == "live" and pod.body.get("mounts", {}).get("network"):
                self.stop(pod)
            elif pod.state != "terminated":
                self.terminate(pod)

    def _boot(self, pod: Pod, gpus: int) -> None:
        self._starts += 1
        pod.gpus = gpus
        if self.switches.port_changes_on_start or not pod.port:
            pod.port = free_port() if pod.real else 30000 + self._starts % 30000
        if self.machines is None or pod.stuck == "starting":
            return
        row = catalog.GPUS.get(pod.body.get("gpu", {}).get("id", ""))
        pod.host = Host(
            self.machines / f"{pod.id}-{self._starts}",
            image=pod.body["image"],
            args=pod.body["args"],
            env=self.environment(pod),
            card=card_of(row, gpus) if row else None,
            port=pod.port,
            refused_seconds=_FOR_EVER
            if pod.stuck == "restarting"
            else self.switches.ssh_refused_for,
        )

    def _no_host(self, pod: Pod) -> None:
        if pod.host is not None:
            pod.host.end()
            pod.host = None

    def environment(self, pod: Pod) -> dict[str, str]:
        """What every process in the container sees."""
        return {
            "RUNPOD_POD_ID": pod.id,
            "RUNPOD_DC_ID": pod.data_center or "",
            "RUNPOD_POD_HOSTNAME": pod.proxy_user,
            "RUNPOD_GPU_COUNT": str(pod.gpus),
            "RUNPOD_CPU_COUNT": "8",
            "RUNPOD_PUBLIC_IP": pod.address,
            "RUNPOD_API_KEY": pod.api_key,
            "RUNPOD_TCP_PORT_22": str(pod.port),
            "RUNPOD_VOLUME_ID": pod.volume_id,
            "CUDA_VERSION": "12.8.1",
            "PYTORCH_VERSION": "2.8.0",
            **pod.injected,
            **pod.body["env"],
        }

    # ------------------------------------------------------------------ looking

    @property
    def left(self) -> Decimal:
        """USD that are left of what was paid in; may be negative."""
        return self.balance - self.books.total(self.clock.now())

    def spending(self) -> Decimal:
        """USD an hour, now."""
        live = [pod for pod in self.pods.values() if pod.state == "live"]
        return sum((pod.price + pod.disk_price() for pod in live), Decimal(0))

    def listed(self) -> list[Pod]:
        """What the listing shows now: late, if it is switched so."""
        since = self.clock.now() - timedelta(seconds=self.switches.list_lag_s)
        shown = [
            pod
            for pod in self.pods.values()
            if pod.created_at <= since
            and (pod.state != "terminated" or self._ended_since(pod, since))
        ]
        return shown[::2] if self.switches.hits("partial_list") else shown

    @staticmethod
    def _ended_since(pod: Pod, since: datetime) -> bool:
        return pod.ended_at is not None and pod.ended_at > since

    def found(self, id: str) -> Pod | None:
        """One pod by its id, as a look at it shows: a new one may be unknown for a while."""
        pod = self.pods.get(id)
        if pod is None or pod.state == "terminated":
            return None
        new = (self.clock.now() - pod.created_at).total_seconds() < self.switches.get_404_for_s
        return None if new else pod

    # ------------------------------------------------------------------ volumes

    def create_volume(
        self, name: str, size: int, data_center: str, tier: str = "STANDARD"
    ) -> Volume:
        """A network volume, which bills until it is deleted."""
        volume = Volume(secrets.token_hex(5), name, size, data_center, tier)
        self.volumes[volume.id] = volume
        now = self.clock.now()
        self.books.begin("network-volume", volume.id, name, volume.price_hour, now)
        return volume

    def change_volume(self, volume: Volume, body: dict[str, Any]) -> Volume:
        """Give it another name, or more room."""
        changed = self.volumes[volume.id] = replace(volume, **body)
        self.books.reprice(volume.id, changed.price_hour, self.clock.now())
        return changed

    def delete_volume(self, id: str) -> bool:
        """Whether it was there."""
        if self.volumes.pop(id, None) is None:
            return False
        self.books.end(id, self.clock.now())
        return True

    def close(self) -> None:
        """Kill every machine."""
        for pod in self.pods.values():
            self._no_host(pod)
