"""The `runpod` provider: GPU containers ("pods") of RunPod, through its REST API v2.

On-demand only: RunPod has no spot pods any more. Nothing on RunPod's side ends a pod at a given
time, so the lease is kept by the pod itself and by us. docs/clouds/runpod.md tells the rest.

Settings: ``RUNPOD_API_KEY`` (or what runpodctl saved), ``RUNPOD_API_URL``,
``GPUCTL_RUNPOD_SSH_PORT``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from providers import runpod_credentials as credentials
from providers import runpod_offers as catalogue
from providers.base import (
    ABSENT,
    Ambiguous,
    AuthFailed,
    Billed,
    Capabilities,
    Clock,
    Finding,
    Leftover,
    Machine,
    NoCapacity,
    NotFound,
    Offer,
    Order,
    PriceChanged,
    ProviderError,
    QuotaExceeded,
    State,
    Unsupported,
    Want,
)
from providers.http_client import Answer
from providers.runpod_client import RunpodClient, read_refusal, refusal
from providers.runpod_health import Funds, ask_funds, findings
from providers.runpod_logs import Logs
from providers.runpod_offers import COMMUNITY, SECURE
from providers.runpod_pods import IMAGE_CUDA, body_of, machine_of, moment
from providers.shared_call import RecentAnswer, SharedCall

_CATALOG = "/v2/catalog/gpus"
_BILLING = "/v2/billing/pods"
_OURS = re.compile(r"^gpuctl-[a-z0-9-]+-[0-9a-f]{6}-[0-9a-f]{8}$")
_ID = re.compile(r"^[A-Za-z0-9_-]+$")
_VOLUME_MONTH = Decimal("0.07")  # USD a GB below 1 TB; docs.runpod.io, 2026-08
SHOWN_SECONDS = 60.0  # new pods have been answered with 404
_SOON = timedelta(seconds=10)
_SUSPICIOUS = 2  # refusals in a row after which the account's money is looked at


class RunpodProvider:
    """One account. Nothing is asked before it is needed."""

    name = "runpod"

    def __init__(self, environ: Mapping[str, str], clock: Clock) -> None:
        self._environ = environ
        self._clock = clock
        self._root = credentials.api_root(environ)
        self._ssh_port = credentials.ssh_port(environ)
        self._client: RunpodClient | None = None
        self._refused = 0  # creates in a row that found no capacity
        self._ended: dict[str, datetime] = {}  # when it had them deleted
        self._logs = Logs(clock)
        # Many machines are ended side by side, and quotas are small.
        self._pods = SharedCall(self._all_pods)
        self._volumes = SharedCall(self._all_volumes)
        self._bills = RecentAnswer(lambda: self._bill_of(None), clock, _SOON.total_seconds())
        self._bill_asked: datetime | None = None

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, home: Path, clock: Clock
    ) -> RunpodProvider:
        """Build it from settings.

        Raises:
            InvalidRequest: a setting is malformed.
        """
        del home
        return cls(environ, clock)

    @property
    def capabilities(self) -> Capabilities:
        """What this provider can do."""
        return Capabilities(
            spot=False,
            stop=True,
            ttl=False,
            labels=True,
            kind="container",
            gpus=True,
            console="https://console.runpod.io/pods?id={id}",
            settle_seconds=10,
            shown_seconds=SHOWN_SECONDS,
            poll_seconds=5,
        )

    def configured(self) -> bool:
        """Whether there is a key to try."""
        return credentials.is_there(self._environ)

    # ------------------------------------------------------------------ offers and creation

    def offers(self, want: Want) -> Sequence[Offer]:
        """Return what secure and community cloud have now; where no GPU is needed, CPU pods too."""
        if want.spot:
            raise Unsupported(
                "RunPod has no spot machines any more (its API v2 has no field for them); without "
                "--spot it sells on-demand GPU containers."
            )
        count = (want.gpu_count if want.gpus else 0) or 1
        stock: dict[str, Any] = {"include": "AVAILABILITY", "product": "POD"}
        cards = {**stock, "count": count}
        if want.image is None:
            cards["minCudaVersion"] = IMAGE_CUDA
        questions: list[tuple[str, str, dict[str, Any]]] = [
            (_CATALOG, "gpus", {**cards, "cloud": SECURE}),
            (_CATALOG, "gpus", {**cards, "cloud": COMMUNITY}),
        ]
        if not want.gpus:
            questions.append(("/v2/catalog/cpus", "cpus", stock))
        api = self._api
        with ThreadPoolExecutor(len(questions)) as pool:
            answers = list(pool.map(lambda question: api.all_of(*question), questions))
        now = self._clock.now()
        found = [
            *catalogue.gpu_offers(answers[0], SECURE, want, now),
            *catalogue.gpu_offers(answers[1], COMMUNITY, want, now),
            *(catalogue.cpu_offers(answers[2], want, now) if not want.gpus else ()),
        ]
        return catalogue.cheapest_first(found)

    def create(self, order: Order) -> Machine:
        """Rent the pod of the offer, there and nowhere else."""
        choice = catalogue.read_offer_id(order.offer.id)
        cap = order.max_price_hour
        if cap is not None and order.offer.price_hour > cap:
            raise PriceChanged(
                f"That RunPod pod costs ${order.offer.price_hour}/h, above the cap of ${cap}/h."
            )
        answer = self._api.change("POST", "/v2/pods", body_of(order, choice, self._ssh_port))
        if not 200 <= answer.status < 300:
            raise self._why(refusal(f"to create {order.name}", answer))
        self._refused = 0
        return self._machine(answer)

    def _why(self, refused: ProviderError) -> ProviderError:
        """Look behind a second "no instances" in a row: a spend cap answers the same."""
        if not isinstance(refused, NoCapacity):
            return refused
        self._refused += 1
        if self._refused < _SUSPICIOUS:
            return refused
        funds = self._funds()
        trouble = funds.trouble() if funds else None
        return QuotaExceeded(f"{refused} But {trouble}") if trouble else refused

    # ------------------------------------------------------------------ reading

    def get(self, provider_id: str) -> Machine:
        """The pod now. Raises NotFound when RunPod says that there is none."""
        path = _path(provider_id)
        if path is None:
            raise NotFound(f"RunPod has no pod {provider_id!r}.")
        answer = self._api.read(path)
        if answer.status == 404 and isinstance(answer.body, Mapping):
            raise NotFound(f"RunPod has no pod {provider_id}.")
        if answer.status != 200:
            raise read_refusal(f"GET {path}", answer)
        return self._with_hope(self._machine(answer))

    def _with_hope(self, machine: Machine) -> Machine:
        """Call a pod lost whose logs say that it will never start."""
        if machine.state is State.READY:
            self._logs.started(machine.provider_id)
        if machine.state is not State.BOOTING:
            return machine
        why = self._logs.why_hopeless(self._api, machine.provider_id, machine.created_at)
        if why is None:
            return machine
        return replace(machine, state=State.LOST, status=f"{machine.status}: {why[:160]}")

    def list(self) -> Sequence[Machine]:
        """Every pod of the account, those of clusters too."""
        return [machine_of(pod, self._root, self._ssh_port) for pod in self._pods()]

    def _all_pods(self) -> Sequence[Mapping[str, Any]]:
        return self._api.all_of("/v2/pods", "pods", {"includeClusterPods": "true"})

    def _all_volumes(self) -> Sequence[Mapping[str, Any]]:
        return self._api.all_of("/v2/network-volumes", "networkVolumes")

    def _machine(self, answer: Answer) -> Machine:
        if not isinstance(answer.body, Mapping):
            raise Ambiguous(f"RunPod described no pod: {answer.text}")
        return machine_of(answer.body, self._root, self._ssh_port)

    # ------------------------------------------------------------------ the end

    def destroy(self, provider_id: str) -> str:
        """Delete the pod."""
        path = _path(provider_id)
        if path is None:
            return ABSENT
        answer = self._api.change("DELETE", path)
        if 200 <= answer.status < 300:
            self._ended[provider_id] = self._clock.now()
            return f"{answer.status} deleted"
        if answer.status == 404 and isinstance(answer.body, Mapping):
            return ABSENT
        raise refusal(f"to delete {provider_id}", answer)

    def leftovers(self) -> Sequence[Leftover]:
        """Network volumes that bear a name of ours. gpuctl makes none; others are their owner's."""
        return [
            Leftover(
                provider=self.name,
                kind="volume",
                id=str(volume.get("id")),
                name=str(volume.get("name")),
                mark=None,
                price_month=(catalogue.money(volume.get("size")) or 0) * _VOLUME_MONTH,
            )
            for volume in self._volumes()
            if _OURS.match(str(volume.get("name")))
        ]

    def remove(self, leftover: Leftover) -> None:
        """Delete such a volume."""
        if not _ID.match(leftover.id):
            return
        path = f"/v2/network-volumes/{leftover.id}"
        answer = self._api.change("DELETE", path)
        if answer.status != 404 and not 200 <= answer.status < 300:
            raise refusal(f"to delete the volume {leftover.id}", answer)

    # ------------------------------------------------------------------ money and health

    def billed(self, provider_id: str) -> Billed | None:
        """What RunPod charged, once the last hour of it is over; None before that."""
        ended = self._ended.get(provider_id)
        if ended is not None and self._clock.now() < _next_hour(ended):
            return None
        now = self._clock.now()
        before, self._bill_asked = self._bill_asked, now
        if before is not None and now - before < _SOON:
            # One after the other is asked for: the account's bill of this hour has them all.
            records = self._bills.since(_next_hour(now) - timedelta(hours=1))
        else:
            records = self._bill_of(provider_id)
        amounts: list[Decimal] = []
        ends: list[datetime] = []
        for record in records:
            amount, end = record.get("totalAmount"), moment(record.get("endTime"))
            if record.get("podId") != provider_id or end is None:
                continue
            amounts.append(catalogue.money(amount) or Decimal(0))
            ends.append(end)
        if not ends or max(ends) > now:
            return None
        return Billed(sum(amounts, Decimal(0)), max(ends).astimezone(UTC), f"GET {_BILLING}")

    def _bill_of(self, provider_id: str | None) -> Sequence[Mapping[str, Any]]:
        """The records of one pod, or of all. Raises Ambiguous when they may not be all."""
        query = {"bucketSize": "hour"} | ({} if provider_id is None else {"podId": provider_id})
        answer = self._api.read(_BILLING, query)
        if answer.status != 200 or not isinstance(answer.body, Mapping):
            raise read_refusal(f"GET {_BILLING}", answer)
        said = answer.body.get("records")
        records = said if isinstance(said, list) else []
        about = answer.body.get("metadata")
        count = about.get("recordCount") if isinstance(about, Mapping) else None
        if isinstance(count, int) and count != len(records):
            raise Ambiguous(f"RunPod's bill has {len(records)} of {count} records.")
        return records

    def check(self) -> Sequence[Finding]:
        """Key, rights, money and clock."""
        return findings(self._api, self._clock, self._funds())

    def _funds(self) -> Funds | None:
        return ask_funds(self._api)

    @property
    def _api(self) -> RunpodClient:
        """The client, made on first use. Raises AuthFailed without a key."""
        if self._client is None:
            key = credentials.find_key(self._environ)
            if key is None:
                raise AuthFailed(
                    "No RunPod key: set RUNPOD_API_KEY (https://console.runpod.io/user/settings)."
                )
            self._client = RunpodClient(self._root, key, self._clock)
        return self._client


def _next_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)


def _path(provider_id: str) -> str | None:
    """The address of a pod; None for what cannot be one's id."""
    return f"/v2/pods/{provider_id}" if _ID.match(provider_id) else None
