"""The `aws` provider: EC2 machines, on demand and spot, in the regions that you name.

Each launch is one type in one zone. Spot is always one-time with behaviour "terminate"; a machine
that shuts down is ended by EC2; all that is made carries our tags from the first moment.
`docs/clouds/aws.md` says what to set and what to expect.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from providers import (
    aws_billing,
    aws_boot,
    aws_check,
    aws_ground,
    aws_launch,
    aws_leftovers,
    aws_offers,
    aws_prices,
    aws_schedule,
)
from providers.aws_client import DEFAULT_PATIENCE, Aws, Patience
from providers.aws_errors import VCPU_QUOTA, code_of, meaning, said, status_of
from providers.aws_launch import Pool
from providers.aws_machines import SSH_PORT, read_machine, split
from providers.aws_notes import Notes
from providers.aws_offers import SPOT
from providers.aws_types import CPU_TYPES, GPU_TYPES, Kind, quota_of
from providers.base import (
    ABSENT,
    Ambiguous,
    Billed,
    Capabilities,
    Clock,
    Finding,
    InvalidRequest,
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
    Want,
)

SETTLE_SECONDS = 10.0
SHOWN_SECONDS = 60.0  # EC2 is eventually consistent; how long it takes nobody says
POLL_SECONDS = 3.0
_DEARER = Decimal("1.10")  # than the offer, which a pool may be when nobody set a cap
_ALIVE = ("pending", "running", "stopping", "stopped", "shutting-down")
_PAGE = 1000
_CONSOLE = (
    "https://{region}.console.aws.amazon.com/ec2/home?region={region}"
    "#InstanceDetails:instanceId={id}"
)
_GROUP_SPREADS_SECONDS = 2.0
_log = logging.getLogger(__name__)


class AwsProvider:
    """One AWS account."""

    name = "aws"

    def __init__(
        self,
        environ: Mapping[str, str],
        home: Path,
        clock: Clock,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        self.environ = environ
        self.clock = clock
        self._aws = Aws(environ, patience, clock)
        self._notes = Notes(home / "aws", clock)
        self._stays: dict[str, aws_billing.Stay] = {}  # of the spot machines that were seen
        self._ended: dict[str, datetime] = {}  # when this process had them ended
        self._histories = aws_billing.Histories(self._aws, clock)
        self._looked_in: set[str] = set()

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, home: Path, clock: Clock
    ) -> AwsProvider:
        """Build it from settings. ``home`` is GPUCTL_HOME; nobody is asked yet."""
        return cls(environ, home, clock)

    @property
    def capabilities(self) -> Capabilities:
        """What EC2 can do. It ends machines by itself only where it has a role for that."""
        return Capabilities(
            spot=True,
            stop=True,
            ttl=bool(self.environ.get(aws_schedule.ROLE)),
            labels=True,
            kind="vm",
            gpus=True,
            console=_CONSOLE,
            settle_seconds=SETTLE_SECONDS,
            shown_seconds=SHOWN_SECONDS,
            poll_seconds=POLL_SECONDS,
        )

    def configured(self) -> bool:
        """Whether there are credentials for AWS itself, not just for an S3 elsewhere."""
        return self._aws.configured()

    # ------------------------------------------------------------------ offers and creation

    def offers(self, want: Want) -> Sequence[Offer]:
        """What fits in the regions, cheapest first; spot at the cheapest zone's price."""
        return aws_offers.offers(self._aws, self._notes, want, self.clock.now())

    def create(self, order: Order) -> Machine:
        """Launch one machine, in the first of the type's zones that has one."""
        market, region, type_name = aws_offers.read_offer_id(order.offer.id)
        self._ssh_port()  # after a launch it would be too late to complain
        if region not in self._aws.regions():
            raise InvalidRequest(f"{region} is not among {', '.join(self._aws.regions())}.")
        kind = self._kind(region, type_name)
        image = aws_ground.find_image(
            self._aws, self._notes, region, order.image, kind.arch, kind.gpu is not None
        )
        month = aws_prices.disk_month(self._aws, self._notes, region)
        beside = aws_prices.beside_hour(aws_launch.disk_size(order.disk_gb, image), month)
        pools = self._worth_asking(order, self._pools(market, region, type_name), beside)
        group = aws_ground.security_group(self._aws, region, pools[0].vpc)
        self._remember(region)
        host_key = aws_boot.new_host_key()
        refused: NoCapacity | None = None
        for pool in pools:
            price = (pool.price + beside).quantize(Decimal("0.000001"))
            cap = order.max_price_hour
            bid = cap - beside if cap is not None and market == SPOT else None
            arguments = aws_launch.request(
                order, region, type_name, market, pool, image, group, host_key, price, bid
            )
            try:
                row = self._launch(region, arguments)
            except NoCapacity as error:
                self._notes.refuse(_pool_name(market, pool, type_name))
                refused = error
                continue
            return self._launched(row, order, region, market)
        assert refused is not None
        raise refused

    def _kind(self, region: str, type_name: str) -> Kind:
        patterns = GPU_TYPES if type_name.startswith(("g", "p")) else CPU_TYPES
        for kind in aws_offers.kinds(self._aws, self._notes, region, patterns):
            if kind.name == type_name:
                return kind
        raise InvalidRequest(f"{region} has no machine type {type_name!r} that gpuctl rents.")

    def _pools(self, market: str, region: str, type_name: str) -> list[Pool]:
        """The zones to try, best first, at this moment's prices."""
        now = self.clock.now()
        zones, everywhere = aws_offers.fresh_pools(
            self._aws, self._notes, market, region, type_name, now
        )
        pools = [
            Pool(zone, zone_id, subnet, vpc, price)
            for zone, zone_id, subnet, vpc in aws_ground.zones(self._aws, region)
            if (price := zones.get(zone, everywhere)) is not None
        ]
        if not pools:
            raise NoCapacity(f"There is no subnet in {region} where {type_name} is sold.")
        return aws_launch.rank(pools, self._notes)

    def _worth_asking(self, order: Order, pools: Sequence[Pool], beside: Decimal) -> list[Pool]:
        """Leave out what costs too much, and what had nothing a moment ago."""
        market, region, type_name = aws_offers.read_offer_id(order.offer.id)
        cap = order.max_price_hour
        limit = order.offer.price_hour * _DEARER if cap is None else cap
        cheap = [pool for pool in pools if pool.price + beside <= limit]
        if not cheap:
            cheapest = min(pool.price for pool in pools) + beside
            words = "the offer by more than a tenth" if cap is None else f"the cap of ${cap}/h"
            raise PriceChanged(f"{order.offer.id} costs ${cheapest:.4f}/h now, above {words}.")
        left = [p for p in cheap if not self._notes.refused(_pool_name(market, p, type_name))]
        if not left:
            raise NoCapacity(f"AWS in {region} had no {type_name} ({market}) a moment ago.")
        # A security group belongs to one VPC; subnets of several are tried one VPC at a time.
        return [pool for pool in left if pool.vpc == left[0].vpc]

    def _remember(self, region: str) -> None:
        try:
            self._notes.use_region(region)
        except OSError as error:
            raise InvalidRequest(
                f"{error.filename} cannot be written ({error.strerror}), and without it a machine "
                "in a region that is no longer named would be forgotten."
            ) from error

    def _launch(self, region: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Launch once; raises what EC2 says. A group made just now gets a second chance."""
        from botocore.exceptions import ClientError

        what = f"AWS launched no {arguments['InstanceType']} in {region}"
        for last in (False, True):
            with said(what):
                try:
                    reply = self._aws.launching(region).run_instances(**arguments)
                    return dict(reply["Instances"][0])
                except ClientError as error:
                    code = code_of(error)
                    if code == "InvalidGroup.NotFound" and not last:
                        self.clock.sleep(_GROUP_SPREADS_SECONDS)
                        continue
                    raise self._refusal(code, status_of(error), what, arguments, error) from None
                except (KeyError, IndexError, TypeError) as error:
                    raise Ambiguous(f"{what}: the reply names no machine.") from error
        raise AssertionError

    @staticmethod
    def _refusal(
        code: str, status: int, what: str, arguments: Mapping[str, Any], error: Any
    ) -> ProviderError:
        if code in VCPU_QUOTA:
            spot = "InstanceMarketOptions" in arguments
            quota, family = quota_of(arguments["InstanceType"], spot=spot)
            named = f"{quota} ({family} vCPUs)" if quota else f"of {family} vCPUs"
            return QuotaExceeded(
                f"{what}: the account's quota {named} is used up or zero. Ask for more in the "
                "Service Quotas console, or try another family or region."
            )
        text = str(error.response.get("Error", {}).get("Message", ""))
        found = meaning(code, status, what, text)
        # A create finds nothing and loses nothing: what it needs is not there.
        return InvalidRequest(str(found)) if isinstance(found, NotFound) else found

    def _launched(self, row: Mapping[str, Any], order: Order, region: str, market: str) -> Machine:
        machine = self._read(row, region)
        if machine.spot != (market == SPOT):
            with suppress(ProviderError):  # whoever is told of the doubt asks again
                self.destroy(machine.provider_id)
            raise Ambiguous(f"AWS gave {order.name} in the wrong market; its end has been asked.")
        note = self._timer(machine, order)
        return replace(
            machine, mark=machine.mark or order.mark, name=order.name, notes=(note,) if note else ()
        )

    def _timer(self, machine: Machine, order: Order) -> str:
        """Have AWS itself end it at its hard end; return what a person must know of that."""
        role = self.environ.get(aws_schedule.ROLE)
        if not role:
            return f"no timer of AWS's own ends it: {aws_schedule.ROLE} is not set"
        try:
            aws_schedule.arm(self._aws, role, machine, order.mark)
        except ProviderError as error:
            # The machine is there and has its own timer: it must be returned, not forgotten.
            return f"no timer of AWS's own ends it: {error}"
        return ""

    # ------------------------------------------------------------------ reading

    def get(self, provider_id: str) -> Machine:
        """The machine now."""
        region, instance_id = split(provider_id)
        try:
            with said(f"AWS did not describe {provider_id}"):
                found = self._aws.ec2(region).describe_instances(InstanceIds=[instance_id])
        except NotFound:
            raise NotFound(f"AWS knows no machine {instance_id} in {region}.") from None
        rows = [row for group in found["Reservations"] for row in group["Instances"]]
        if not rows:
            raise NotFound(f"AWS knows no machine {instance_id} in {region}.")
        return self._read(rows[0], region)

    def list(self) -> Sequence[Machine]:
        """Every machine in the regions that are named, or were used from here, but ended ones."""
        return [one for found in self._aws.each(self._in_region, self._regions()) for one in found]

    def _in_region(self, region: str) -> Sequence[Machine]:
        with said(f"AWS did not list the machines of {region}"):
            pages = self._aws.ec2(region).get_paginator("describe_instances")
            alive = [{"Name": "instance-state-name", "Values": list(_ALIVE)}]
            return [
                self._read(row, region)
                for page in pages.paginate(Filters=alive, PaginationConfig={"PageSize": _PAGE})
                for group in page["Reservations"]
                for row in group["Instances"]
            ]

    def _regions(self) -> Sequence[str]:
        used = (*self._notes.used_regions(), *sorted(self._looked_in))
        return tuple(dict.fromkeys((*self._aws.regions(), *used)))

    # ------------------------------------------------------------------ the end

    def destroy(self, provider_id: str) -> str:
        """End it; then cancel its spot request, which would count against the quota."""
        try:
            region, instance_id = split(provider_id)
        except NotFound:
            return ABSENT
        try:
            with said(f"AWS did not end {provider_id}"):
                ending = self._aws.ec2(region).terminate_instances(InstanceIds=[instance_id])
        except NotFound:
            return ABSENT
        self._ended.setdefault(provider_id, self.clock.now())
        try:
            aws_leftovers.cancel_request_of(self._aws, region, instance_id)
        except ProviderError as error:
            # It closes by itself, later; `leftovers` shows it until then.
            _log.info("the spot request of %s is not cancelled: %s", provider_id, error)
        rows = ending.get("TerminatingInstances") or [{}]
        return str(rows[0].get("CurrentState", {}).get("Name", "accepted"))

    def leftovers(self) -> Sequence[Leftover]:
        """Volumes, interfaces, spot requests and schedules that carry our tags and serve nobody."""
        machines = self.list()
        found = []
        for region in self._regions():
            alive = {
                split(one.provider_id)[1]: one.name
                for one in machines
                # One without our mark came out of a request that launches again and again.
                if one.region == region and one.state is not State.LOST and one.mark is not None
            }
            found += aws_leftovers.leftovers(self._aws, region, alive)
        return found

    def remove(self, leftover: Leftover) -> None:
        """Remove one of them."""
        aws_leftovers.remove(self._aws, leftover)

    # ------------------------------------------------------------------ money and health

    def billed(self, provider_id: str) -> Billed | None:
        """What a machine that this process has ended cost, by AWS's prices.

        A bill comes a day later, and not per machine.
        """
        stay, ended = self._stays.get(provider_id), self._ended.get(provider_id)
        if stay is None or ended is None:
            return None
        changes = self._histories.of(stay, ended) if stay.spot else ()
        source = aws_billing.SPOT_SOURCE if stay.spot else aws_billing.LIST_SOURCE
        return Billed(aws_billing.charged(stay, changes, ended), ended, source)

    def look_in(self, regions: Iterable[str]) -> None:
        """Look in these regions, too: somebody's ledger has machines there."""
        self._looked_in |= {region for region in regions if region}

    def _read(self, row: Mapping[str, Any], region: str) -> Machine:
        machine = read_machine(row, region, self._ssh_port())
        stay = aws_billing.stay_of(row, region)
        if stay is not None:
            self._stays[machine.provider_id] = stay
        return machine

    def check(self) -> Sequence[Finding]:
        """Key, clock, rights, network, quotas."""
        return aws_check.findings(self._aws, self._notes, self.clock.now())

    def _ssh_port(self) -> int:
        text = self.environ.get("GPUCTL_AWS_SSH_PORT", "").strip()
        if not text:
            return SSH_PORT
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise InvalidRequest(f"GPUCTL_AWS_SSH_PORT is {text!r}; it must be a port.")
        return int(text)


def _pool_name(market: str, pool: Pool, type_name: str) -> str:
    return f"{market} {pool.zone_id} {type_name}"
