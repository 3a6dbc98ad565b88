"""An emulated AWS account: moto behind a layer that adds what it lacks.

EC2, SSM, Pricing, Service Quotas, EventBridge Scheduler and STS on one address; `contracts/aws.md`
section 7.4 lists what is added. Requests are routed as ``/service/region/Action``, so a fault is
`Fault(path="/ec2/.*/RunInstances", when="after")` and the log reads alike.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from moto.ec2.models import ec2_backends

from providers.base import Clock
from tests.clouds.aws_cloud import fleets, images, limits, serving, spot_requests
from tests.clouds.aws_cloud.launching import Tokens, gpu_of, relaunch, run_instances
from tests.clouds.aws_cloud.machines import AwsMachine
from tests.clouds.aws_cloud.market import QUOTAS, Market
from tests.clouds.aws_cloud.passing import Moto
from tests.clouds.aws_cloud.rentals import Rentals, Times
from tests.clouds.aws_cloud.scheduler import Scheduler
from tests.clouds.aws_cloud.wire import (
    Refused,
    form,
    json_refusal,
    json_reply,
    refusal,
    throttled,
)
from tests.clouds.books import Books
from tests.clouds.http_cloud import HttpCloud, Reply, Request, route
from tests.remote.sshd import free_port

_SCOPE = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/aws4_request")
_TICK_SECONDS = 0.1
_REFUSED_KINDS = ("RequestSpotInstances", "RequestSpotFleet")
_QUERY = ("ec2", "sts", "iam")  # services of the query protocol
_PRICE_LISTS = ("us-east-1", "eu-central-1", "ap-south-1")  # where the price list is served
KEY, SECRET = "AKIAEMULATED0000TEST", "emulated-secret-key-that-never-leaves-this-computer"


class AwsCloud(HttpCloud):
    """One account.

    Args:
        clock: the cloud's own time.
        folder: where the machines are; needed for ``machines``.
        machines: whether there is a real one behind every instance.
        account: its number; one of its own by default, for moto keeps accounts apart.

    Attributes:
        keys: access key ids that are valid.
        denied: actions that the key has no right to; CreateTags refuses launches with tags.
        latency: seconds that every request takes.
        bucket: requests that may be made at once, and how many a second come back, for each
            action; None: any.
        documented_limits: whether EC2's documented buckets count, when there is no ``bucket``.
        launch_bucket: the same for instances to be launched, in each region; always counts.
        expired: the caller's clock is wrong, or the temporary credentials are.
        ssh_seconds: from running to an sshd that answers.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        port: int = 0,
        folder: Path | None = None,
        machines: bool = False,
        account: str | None = None,
    ) -> None:
        super().__init__(clock=clock, port=port)
        self.account = account or f"{secrets.randbelow(9 * 10**11) + 10**11}"
        self.market = Market()
        self.rentals = Rentals(self.clock, self.market)
        self.rentals.lock = self.lock
        self.scheduler = Scheduler(self.account)
        self.rentals.ends_due = self.scheduler.ends_due
        self.rentals.relaunch = lambda before: relaunch(self, before)
        self.tokens = Tokens()
        self.keys = {KEY}
        self.denied: set[str] = set()
        self.latency = 0.0
        self.bucket: tuple[int, float] | None = None
        self.documented_limits = False
        self.launch_bucket = limits.LAUNCHES
        self.expired = False
        self.ssh_seconds = 0.0
        self.ssh_port = free_port()
        self.user_agents: set[str] = set()
        self.events: list[dict[str, Any]] = []
        self._level: dict[str, tuple[float, float]] = {}
        self._folder = folder if machines else None
        self._next_address = 256 * (secrets.randbelow(250) + 1)
        self._machines: list[AwsMachine] = []
        self.moto = Moto(self.account)
        self.fleets: dict[str, Reply] = {}
        self._closed = threading.Event()

    # ------------------------------------------------------------------ as a context

    def __enter__(self) -> Self:
        super().__enter__()
        if self._folder is not None:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def close(self) -> None:
        """Stop serving, and end every machine."""
        self._closed.set()
        super().close()
        for machine in self._machines:
            machine.kill()
        with suppress(KeyError):
            del ec2_backends[self.account]

    def settings(self, *, regions: Sequence[str] = ("us-east-1",)) -> dict[str, str]:
        """The environment that leads gpuctl, and any AWS tool, here."""
        services = ("EC2", "SSM", "PRICING", "SERVICE_QUOTAS", "SCHEDULER", "STS")
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": regions[0],
            "AWS_DEFAULT_REGION": regions[0],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
            "GPUCTL_AWS_REGIONS": ",".join(regions),
            "GPUCTL_AWS_SSH_PORT": str(self.ssh_port),
            **{f"AWS_ENDPOINT_URL_{name}": self.url for name in services},
        }

    @property
    def books(self) -> Books:
        """What existed when, and what it billed."""
        with self.lock:
            self.rentals.advance()
            return self.rentals.books

    def interrupt(self, instance_id: str, **how: Any) -> None:
        """Take a spot instance away; see `Rentals.interrupt`."""
        self.rentals.interrupt(instance_id, **how)
        detail = {"instance-id": instance_id, "instance-action": "terminate"}
        kind = "EC2 Spot Instance Interruption Warning"
        if how.get("told", True):
            self.events.append({"detail-type": kind, "source": "aws.ec2", "detail": detail})

    def rebalance(self, instance_id: str) -> None:
        """Recommend to leave; nothing else happens."""
        machine = self.rentals.all[instance_id].machine
        if machine is not None:
            machine.metadata.recommend(self.clock.now())
        kind = "EC2 Instance Rebalance Recommendation"
        detail = {"instance-id": instance_id}
        self.events.append({"detail-type": kind, "source": "aws.ec2", "detail": detail})

    def machine(self, name: str) -> AwsMachine:
        """The real machine behind the instance of that name."""
        found = next(r.machine for r in self.rentals.all.values() if r.name == name and r.alive)
        assert found is not None, "the cloud was made without machines"
        return found

    def new_machine(self, instance_id: str, type_name: str, data: bytes) -> AwsMachine | None:
        """Make the machine of a new instance, if there are machines at all."""
        if self._folder is None:
            return None
        self._next_address += 1
        number = self._next_address
        address = (f"127.77.{number >> 8 & 255}.{number & 255}", self.ssh_port)
        place = self._folder / instance_id
        place.mkdir(parents=True)
        gpu = gpu_of(type_name)
        machine = AwsMachine(place, self.clock, address, gpu, data, self.ssh_seconds)
        self._machines.append(machine)
        return machine

    # ------------------------------------------------------------------ routing

    def serve(self, request: Request) -> Reply | None:
        """Answer one request, routed by service, region and action."""
        if self.latency:
            self._closed.wait(self.latency)
        self.user_agents.add(request.headers.get("user-agent", ""))
        found = _SCOPE.search(request.headers.get("authorization", ""))
        if found is None:
            return refusal("MissingAuthenticationToken", "Request is missing Authentication Token")
        _, region, service = found.groups()
        target = request.headers.get("x-amz-target", "")
        if service in _QUERY:
            path = form(request.body).get("Action", "")
        elif target:
            path = target.rpartition(".")[2]
        else:
            path = request.path.lstrip("/")
        query = {**request.query, " path": request.path}
        return super().serve(replace(request, path=f"/{service}/{region}/{path}", query=query))

    def gate(self, request: Request) -> Reply | None:
        """Check the key, its rights, the clock and the rate."""
        _, service, region, action = request.path.split("/", 3)
        key = _SCOPE.search(request.headers["authorization"])
        refuse = refusal if service in _QUERY else json_refusal
        if key is None or key[1] not in self.keys:
            text = "AWS was not able to validate the provided access credentials"
            return refuse("AuthFailure" if service == "ec2" else "InvalidClientTokenId", text)
        if self.expired:
            return refuse("RequestExpired", "Request has expired.")
        if action in self.denied:
            code = "UnauthorizedOperation" if service == "ec2" else "AccessDeniedException"
            text = "You are not authorized to perform this operation. Encoded authorization "
            return refuse(code, text + "failure message: c2VjcmV0")
        bucket = self.bucket or self._documented(service, action, request)
        if bucket is not None and not self._take(f"{service} {region} {action}", bucket):
            return throttled()
        images.seed(self.account, region)
        self.rentals.advance()
        return None

    def _dispatch(self, request: Request) -> Reply:
        try:
            return super()._dispatch(request)
        except Refused as refused:
            return refusal(refused.code, str(refused))

    def nothing_there(self, request: Request) -> Reply:
        """What needs no layer is moto's."""
        _, service, region, action = request.path.split("/", 3)
        if action in _REFUSED_KINDS:
            return refusal("UnsupportedOperation", f"{action} is not emulated: its books would lie")
        reply = self.moto.hand_on(region, service, request)
        if service == "ec2" and reply.status == 200:
            serving.keep_books(self, form(request.body), reply)
        return reply

    # ------------------------------------------------------------------ what moto lacks

    @route("POST", "/ec2/{region}/RunInstances")
    def run_instances(self, request: Request, region: str) -> Reply:
        return run_instances(self, region, form(request.body))

    @route("POST", "/ec2/{region}/CreateFleet")
    def create_fleet(self, request: Request, region: str) -> Reply:
        return fleets.create(self, region, form(request.body))

    @route("POST", "/ec2/{region}/TerminateInstances")
    def terminate_instances(self, request: Request, region: str) -> Reply:
        return serving.terminate(self, region, form(request.body))

    @route("POST", "/ec2/{region}/(?P<action>StopInstances|StartInstances)")
    def stop_start(self, request: Request, region: str, action: str) -> Reply:
        return serving.stop_or_start(self, region, action, form(request.body))

    @route("POST", "/ec2/{region}/(?P<action>DescribeInstances|DescribeInstanceStatus)")
    def describe_instances(self, request: Request, region: str, action: str) -> Reply:
        return serving.describe(self, region, form(request.body))

    @route("POST", "/ec2/{region}/ModifyInstanceAttribute")
    def modify_instance(self, request: Request, region: str) -> Reply:
        return serving.modify(self, region, form(request.body))

    @route("POST", "/ec2/{region}/GetConsoleOutput")
    def console(self, request: Request, region: str) -> Reply:
        return serving.console(self, form(request.body))

    @route("POST", "/ec2/{region}/DeleteSecurityGroup")
    def delete_group(self, request: Request, region: str) -> Reply:
        return serving.delete_group(self, region, request)

    @route("POST", "/ec2/{region}/DescribeSpotPriceHistory")
    def spot_prices(self, request: Request, region: str) -> Reply:
        return serving.spot_prices(self, region, form(request.body))

    @route("POST", "/ec2/{region}/GetSpotPlacementScores")
    def placement_scores(self, request: Request, region: str) -> Reply:
        return serving.placement_scores(self, region, form(request.body))

    @route("POST", "/ec2/{region}/DescribeSpotInstanceRequests")
    def describe_spot_requests(self, request: Request, region: str) -> Reply:
        return spot_requests.describe(self, region, form(request.body))

    @route("POST", "/ec2/{region}/CancelSpotInstanceRequests")
    def cancel_spot_requests(self, request: Request, region: str) -> Reply:
        return spot_requests.cancel(self, region, form(request.body))

    @route("POST", "/pricing/{region}/GetProducts")
    def products(self, request: Request, region: str) -> Reply:
        if region not in _PRICE_LISTS:
            text = f"Credential should be scoped to a valid region, not '{region}'."
            return json_refusal("InvalidSignatureException", text)
        return serving.products(self, request.json())

    @route("POST", "/servicequotas/{region}/GetServiceQuota")
    def quota(self, request: Request, region: str) -> Reply:
        code = request.json()["QuotaCode"]
        if code not in QUOTAS:
            return json_refusal("NoSuchResourceException", f"No quota {code}")
        return json_reply({"Quota": self._quota(region, code)})

    @route("POST", "/servicequotas/{region}/ListServiceQuotas")
    def quotas(self, request: Request, region: str) -> Reply:
        return json_reply({"Quotas": [self._quota(region, code) for code in QUOTAS]})

    def _quota(self, region: str, code: str) -> dict[str, object]:
        value = self.market.quota(region, code)
        return {"QuotaCode": code, "QuotaName": QUOTAS[code][0], "Value": value, "Unit": "None"}

    @route("POST", "/scheduler/{region}/schedule-groups/{name}")
    @route("GET", "/scheduler/{region}/schedule-groups/{name}")
    @route("DELETE", "/scheduler/{region}/schedule-groups/{name}")
    def schedule_group(self, request: Request, region: str, name: str) -> Reply:
        if request.method == "GET":
            return self.scheduler.get_group(region, name)
        if request.method == "DELETE":
            return self.scheduler.delete_group(region, name)
        body = request.json() or {}
        return self.scheduler.create_group(region, name, body, self.clock.now())

    @route("GET", "/scheduler/{region}/tags/(?P<arn>.+)")
    def schedule_tags(self, request: Request, region: str, arn: str) -> Reply:
        return self.scheduler.tags(arn)

    @route("POST", "/scheduler/{region}/schedules/{name}")
    def create_schedule(self, request: Request, region: str, name: str) -> Reply:
        return self.scheduler.create(region, name, request.json(), self.clock.now())

    @route("PUT", "/scheduler/{region}/schedules/{name}")
    def update_schedule(self, request: Request, region: str, name: str) -> Reply:
        return self.scheduler.update(region, name, request.json(), self.clock.now())

    @route("GET", "/scheduler/{region}/schedules/{name}")
    def get_schedule(self, request: Request, region: str, name: str) -> Reply:
        return self.scheduler.get(region, request.query.get("groupName", "default"), name)

    @route("DELETE", "/scheduler/{region}/schedules/{name}")
    def delete_schedule(self, request: Request, region: str, name: str) -> Reply:
        return self.scheduler.delete(region, request.query.get("groupName", "default"), name)

    @route("GET", "/scheduler/{region}/schedules")
    def list_schedules(self, request: Request, region: str) -> Reply:
        query = request.query
        return self.scheduler.listed(
            region, query.get("ScheduleGroup"), query.get("NamePrefix", "")
        )

    # ------------------------------------------------------------------ time

    def _tick(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            with self.lock:
                self.rentals.advance()

    def _documented(self, service: str, action: str, request: Request) -> limits.Bucket | None:
        if service != "ec2" or not self.documented_limits:
            return None
        asked = form(request.body)
        narrow = "MaxResults" in asked or any("." in name for name in asked)
        return limits.documented(action, narrow=narrow)

    def may_launch(self, region: str, count: int) -> bool:
        """Whether so many instances may be asked for now: EC2 counts them, not the requests."""
        return self._take(f"instances {region}", self.launch_bucket, count)

    def _take(self, what: str, bucket: tuple[int, float], count: int = 1) -> bool:
        size, refill = bucket
        now = self.clock.monotonic()
        level, since = self._level.get(what, (float(size), now))
        level = min(size, level + (now - since) * refill)
        enough = level >= count
        self._level[what] = (level - count if enough else level, now)
        return enough


def by_hand(folder: Path, *, machines: bool) -> AwsCloud:
    """An account to try things on, at a pace that a person sees."""
    cloud = AwsCloud(folder=folder, machines=machines)
    cloud.rentals.times = Times(boot=5, end=3, unseen=1, stale=1)
    return cloud


def main_settings(cloud: AwsCloud) -> dict[str, str]:
    """The environment to export so that gpuctl and the AWS tools talk to the emulation."""
    return cloud.settings()
