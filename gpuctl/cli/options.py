"""Options that several commands share, and the kinds of values that they take."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpuctl.errors import GpuctlError, UsageError
from gpuctl.quantities import parse_duration, parse_gb, parse_money
from providers.base import Want

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # older releases of click cannot be subscripted

Command = TypeVar("Command", bound=Callable[..., Any])


class Declined(GpuctlError):
    """Somebody was asked and said no."""

    kind = "Declined"


class _Parsed(ParamType):
    """A value that one of `gpuctl.quantities` reads."""

    def __init__(self, name: str, parse: Callable[[object], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Read one value; a wrong one is a usage error that says what was expected."""
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = _Parsed("GB", parse_gb)
DURATION = _Parsed("duration", parse_duration)
MONEY = _Parsed("USD", parse_money)


def duration_default(text: str) -> timedelta:
    """Return an option's default that is written the way people write it."""
    return parse_duration(text)


def example(*lines: str) -> str:
    """Return examples as every command's help ends with them."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout; all else on stderr."
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
follow_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line."
)


def require_answer(yes: bool, command: str) -> None:
    """Refuse a command that must ask and cannot.

    Raises:
        UsageError: there is neither ``--yes`` nor a terminal to ask on.
    """
    if not yes and not sys.stdin.isatty():
        raise UsageError(
            f"`gpuctl {command}` asks before it acts, and there is no terminal to ask on",
            next=f"Add --yes to `gpuctl {command}`.",
        )


def ask(yes: bool, command: str, question: str) -> None:
    """Ask whether to go on, on stderr.

    Raises:
        UsageError: there is no terminal to ask on.
        Declined: the answer was no.
    """
    if yes:
        return
    require_answer(yes, command)
    if not click.confirm(question, err=True, default=False):
        raise Declined("You said no; nothing was done")


# ------------------------------------------------------------------------- filters


@dataclass(frozen=True, slots=True)
class Filters:
    """What `quote` and `provision` are asked for."""

    gpus: tuple[str, ...]
    count: int
    cpus: int | None
    memory_gb: float | None
    disk_gb: float
    spot: bool | None
    providers: tuple[str, ...]
    regions: tuple[str, ...]
    min_vram_gb: float | None
    min_reliability: float | None
    max_price: Decimal | None

    def want(self, image: str | None = None) -> Want:
        """Return it as the market takes it."""
        return Want(
            gpus=self.gpus,
            gpu_count=self.count,
            cpus=self.cpus,
            memory_gb=self.memory_gb,
            disk_gb=self.disk_gb,
            spot=self.spot,
            regions=self.regions,
            min_vram_gb=self.min_vram_gb,
            min_reliability=self.min_reliability,
            max_price_hour=self.max_price,
            image=image,
        )


def gpu_selectors(given: Sequence[str]) -> tuple[str, ...]:
    """Check what ``--gpu`` named; ``none`` is no requirement.

    Raises:
        UsageError: nobody knows such a card; the message names those that come near.
    """
    from providers.gpus import UnknownGpu, parse_selector

    if any(one.lower() == "none" for one in given):
        if len(given) > 1:
            raise UsageError("--gpu none cannot be combined with another --gpu")
        return ()
    for one in given:
        try:
            parse_selector(one)
        except UnknownGpu as error:
            raise UsageError(
                f"--gpu: {error}", next="`gpuctl quote` shows what can be rented now."
            ) from error
    return tuple(given)


def filters(command: Command) -> Command:
    """Add the filters of `quote` and `provision`; the command gets them as one `Filters`."""

    @functools.wraps(command)
    def filtered(**given: Any) -> Any:
        chosen = Filters(
            gpus=gpu_selectors(given.pop("gpu")),
            count=given.pop("count"),
            cpus=given.pop("cpus"),
            memory_gb=given.pop("memory"),
            disk_gb=given.pop("disk"),
            spot=given.pop("spot"),
            providers=given.pop("provider"),
            regions=given.pop("region"),
            min_vram_gb=given.pop("min_vram"),
            min_reliability=given.pop("min_reliability"),
            max_price=given.pop("max_price"),
        )
        return command(chosen=chosen, **given)

    for option in reversed(_FILTERS):
        filtered = option(filtered)
    return filtered  # type: ignore[return-value]


_FILTERS = (
    click.option(
        "--gpu",
        multiple=True,
        metavar="GPU",
        help="Any of these: A100-40GB, RTX-4090, 24GB+; none = no GPU needed. Repeatable.",
    ),
    click.option(
        "--count", type=click.IntRange(1, 64), default=1, show_default=True, help="GPUs a machine."
    ),
    click.option("--cpus", type=click.IntRange(1, 4096), help="CPU cores, at least."),
    click.option("--memory", type=SIZE, help="Memory, at least."),
    click.option("--disk", type=SIZE, default="40", show_default=True, help="Disk, at least."),
    click.option("--spot/--on-demand", default=None, help="Only one kind. Default: both."),
    click.option("--provider", multiple=True, metavar="P", help="Ask only this one. Repeatable."),
    click.option("--region", multiple=True, metavar="R", help="Only here. Repeatable."),
    click.option("--min-vram", type=SIZE, help="Memory of one GPU, at least."),
    click.option(
        "--min-reliability", type=click.FloatRange(0, 1), help="Of the host, where it is known."
    ),
    click.option("--max-price", type=MONEY, help="For the whole machine and an hour, at most."),
)
