"""From instance types and prices to offers: one a region, type and market."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from decimal import Decimal
from threading import Thread

from providers import aws_prices
from providers.aws_client import Aws
from providers.aws_errors import said
from providers.aws_notes import Notes
from providers.aws_types import CPU_TYPES, GPU_TYPES, Kind, read_kind
from providers.base import InvalidRequest, NoCapacity, Offer, ProviderError, Unsupported, Want
from providers.matching import Requirement, in_regions, unmet
from providers.reference.ec2 import EGRESS_GB

SPOT, ON_DEMAND = "spot", "on-demand"
_KINDS_KEPT = timedelta(hours=24)
_PAGE = 100
_SCORED_TYPES = 3  # with fewer the placement score means nothing, AWS says
_SCORES_KEPT = timedelta(minutes=10)
_HINT_SECONDS = 0.5
_CENT = Decimal("0.000001")
_NO_DRIVER = ("g6f.", "gr6f.", "g7e.")  # not in the release note of AWS's image
_UNSURE = "AWS's image does not name this type: check that its driver works, or name an image"


def offers(aws: Aws, notes: Notes, want: Want, now: datetime) -> Sequence[Offer]:
    """Return what matches in all regions, cheapest first.

    A region that fails costs its own rows, and the note on the others says so.

    Raises:
        Unsupported: the wanted image is a container's.
        ProviderError: no region answered.
    """
    _check_image(want)
    regions = [region for region in aws.regions() if in_regions(region, want.regions)]
    unpriced = _each(aws, regions, lambda region: _unpriced_in(aws, notes, region, want, now))
    rows_of = {
        region: rows for region, rows in unpriced.items() if not isinstance(rows, ProviderError)
    }
    types = sorted({_type_of(row) for rows in rows_of.values() for row in rows if row.spot})
    # A hint: it is asked for beside the prices, and hardly waited for.
    hint = Thread(target=_ask_scores, args=(aws, notes, regions, types), daemon=True)
    hint.start()
    priced = _each(
        aws, [*rows_of], lambda region: _priced_in(aws, notes, region, rows_of[region], want, now)
    )
    hint.join(_HINT_SECONDS)
    answers = unpriced | priced
    failed = [answer for answer in answers.values() if isinstance(answer, ProviderError)]
    found = [
        one for rows in answers.values() if not isinstance(rows, ProviderError) for one in rows
    ]
    if failed and not found:
        raise failed[0]
    if failed:
        missing = " ".join(str(error) for error in failed)
        found = [
            replace(offer, note=" ".join(filter(None, [offer.note, missing]))) for offer in found
        ]
    return sorted(found, key=lambda offer: (offer.price_hour, offer.id))


def read_offer_id(offer_id: str) -> tuple[str, str, str]:
    """Return market, region and type of an offer. Raises InvalidRequest."""
    parts = offer_id.split(":")
    if len(parts) != 3 or parts[0] not in (SPOT, ON_DEMAND) or not all(parts):
        raise InvalidRequest(f"{offer_id!r} is no offer of AWS; `gpuctl quote --json` lists them.")
    return parts[0], parts[1], parts[2]


def kinds(aws: Aws, notes: Notes, region: str, patterns: Sequence[str]) -> list[Kind]:
    """Return the instance types of a region; remembered for a day. Raises ProviderError."""
    key = f"{region} {' '.join(patterns)}"
    if known := notes.get("kinds", key, _KINDS_KEPT):
        return [Kind(**row) for row in known[1]]
    with said(f"AWS did not list the machine types of {region}"):
        pages = aws.ec2(region).get_paginator("describe_instance_types")
        filters = [{"Name": "instance-type", "Values": list(patterns)}]
        config = {"PageSize": _PAGE}
        rows = [
            row
            for page in pages.paginate(Filters=filters, PaginationConfig=config)
            for row in page["InstanceTypes"]
        ]
    found = [kind for row in rows if (kind := read_kind(row)) is not None]
    notes.put("kinds", {key: [asdict(kind) for kind in found]})
    return found


def fresh_pools(
    aws: Aws, notes: Notes, market: str, region: str, type_name: str, now: datetime
) -> tuple[dict[str, Decimal], Decimal | None]:
    """Ask what a type costs at this moment.

    Returns:
        USD an hour of each zone (spot), and of the region (on-demand).

    Raises:
        NoCapacity: it is not sold there.
    """
    if market == SPOT:
        prices = aws_prices.spot_prices(aws, region, [type_name], now)
        zones = {zone: price for (name, zone), price in prices.items() if name == type_name}
        if not zones:
            raise NoCapacity(f"{type_name} is not sold as spot in {region} now.")
        return zones, None
    found = aws_prices.on_demand_prices(aws, notes, region, [type_name], fresh=True)
    if type_name not in found:
        raise NoCapacity(f"{type_name} is not sold on demand in {region}.")
    return {}, found[type_name][1]


def score(notes: Notes, zone_id: str) -> int | None:
    """Return a zone's placement score from 1 to 10, if one is known that is still worth something.

    It was asked for a set of types, so it says something about the zone, not about one of them.
    """
    found = notes.get("scores", zone_id, _SCORES_KEPT)
    return None if found is None else int(found[1])


_Answers = dict[str, Sequence[Offer] | ProviderError]
"""Region -> its rows, or why there are none."""


def _each(aws: Aws, regions: Sequence[str], ask: Callable[[str], Sequence[Offer]]) -> _Answers:
    """Ask in every region at once. One that fails costs its own rows, whichever place it has."""

    def answer(region: str) -> Sequence[Offer] | ProviderError:
        try:
            return ask(region)
        except ProviderError as error:
            return error

    return dict(zip(regions, aws.each(answer, regions) if regions else (), strict=True))


def _type_of(offer: Offer) -> str:
    return offer.id.split(":")[2]


def _unpriced_in(aws: Aws, notes: Notes, region: str, want: Want, now: datetime) -> Sequence[Offer]:
    patterns = GPU_TYPES if want.gpus else CPU_TYPES
    return [
        row
        for kind in kinds(aws, notes, region, patterns)
        for row in _unpriced(kind, region, want, now)
    ]


def _priced_in(
    aws: Aws, notes: Notes, region: str, rows: Sequence[Offer], want: Want, now: datetime
) -> Sequence[Offer]:
    if not rows:
        return []
    spot = [_type_of(row) for row in rows if row.spot]
    on_demand = [_type_of(row) for row in rows if not row.spot]
    # Three questions that do not wait for each other.
    with ThreadPoolExecutor(3) as pool:
        asked_month = pool.submit(aws_prices.disk_month, aws, notes, region)
        asked_spot = pool.submit(aws_prices.spot_prices, aws, region, spot, now)
        asked_list = pool.submit(aws_prices.on_demand_prices, aws, notes, region, on_demand)
    beside = aws_prices.beside_hour(want.disk_gb, asked_month.result())
    cheapest: dict[str, Decimal] = {}
    for (name, _), price in asked_spot.result().items():
        cheapest[name] = min(price, cheapest.get(name, price))
    listed = asked_list.result()
    found = []
    for row in rows:
        name = _type_of(row)
        if row.spot and name in cheapest:
            found.append(replace(row, price_hour=(cheapest[name] + beside).quantize(_CENT)))
        elif not row.spot and name in listed:
            when, price = listed[name]
            found.append(replace(row, price_hour=(price + beside).quantize(_CENT), as_of=when))
    return [row for row in found if not unmet(row, want)]


def _unpriced(kind: Kind, region: str, want: Want, now: datetime) -> list[Offer]:
    """The offers of a type that fit but for their price."""
    found = []
    for market, sold in ((SPOT, kind.spot), (ON_DEMAND, kind.on_demand)):
        offer = Offer(
            provider="aws",
            id=f"{market}:{region}:{kind.name}",
            gpu=kind.gpu,
            gpu_count=kind.gpu_count,
            vram_gb=kind.vram_gb,
            spot=market == SPOT,
            price_hour=Decimal(0),
            region=region,
            vcpus=kind.vcpus,
            ram_gb=kind.ram_gb,
            as_of=now,
            gb_out_price=EGRESS_GB,
            note=_UNSURE if kind.name.startswith(_NO_DRIVER) and want.image is None else "",
        )
        if sold and not unmet(offer, want) - {Requirement.PRICE}:
            found.append(offer)
    return found


def _ask_scores(aws: Aws, notes: Notes, regions: Sequence[str], types: Sequence[str]) -> None:
    """Note the placement scores of the zones, where they mean something.

    A hint only: AWS gives the ten best, limits how many new questions an account may ask a day,
    and a key may lack the right. Whatever goes wrong, the pools are ranked by price.
    """
    if len(types) < _SCORED_TYPES:
        return
    asked = " ".join([*regions, *types])
    if notes.get("scores", asked, _SCORES_KEPT) is not None:
        return
    values: dict[str, object] = {asked: True}
    try:
        with said("AWS did not tell placement scores"):
            found = aws.launching(regions[0]).get_spot_placement_scores(
                InstanceTypes=list(types),
                TargetCapacity=1,
                SingleAvailabilityZone=True,
                RegionNames=list(regions),
            )
        scores = found.get("SpotPlacementScores") or ()
        values |= {str(row.get("AvailabilityZoneId")): row.get("Score", 0) for row in scores}
    except ProviderError:
        pass
    notes.put("scores", values)


def _check_image(want: Want) -> None:
    if want.image is not None and not is_image(want.image):
        raise Unsupported(
            f"AWS rents machines, not containers: {want.image!r} is no image for one. Name an AMI "
            "(ami-...) or an SSM parameter (/aws/service/...), or leave the image out."
        )


def is_image(text: str) -> bool:
    """Whether a text names a machine image."""
    return text.startswith(("ami-", "/", "resolve:ssm:"))
