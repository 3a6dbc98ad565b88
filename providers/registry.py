"""Which providers there are, and how one is made. Nothing is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from providers.base import Clock, Provider, ProviderError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "gpuctl.providers"

BUILT_IN: Mapping[str, str] = {
    "local": "providers.local:LocalProvider",
    "ssh": "providers.ssh:SshProvider",
    "aws": "providers.aws:AwsProvider",
    "vastai": "providers.vastai:VastProvider",
    "hetzner": "providers.hetzner:HetznerProvider",
    "runpod": "providers.runpod:RunpodProvider",
}
"""Name -> "module:class" of the adapters that come with gpuctl. One line a provider."""


class ProviderFactory(Protocol):
    """What a registered class must have."""

    def from_environment(self, environ: Mapping[str, str], *, home: Path, clock: Clock) -> Provider:
        """Return a provider with the credentials that ``environ`` leads to, or with none."""


class UnknownProvider(ValueError):
    """No adapter has that name. ``suggestions`` come near."""

    def __init__(self, name: str, message: str, suggestions: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.suggestions = suggestions


class BrokenProvider(RuntimeError):
    """An adapter of that name is installed and cannot be used; the others can."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class KnownSystem:
    """A place that rents computers and for which reference prices may be on record."""

    name: str
    title: str
    sells: str  # in words, for people who asked for something else
    spot: bool
    gpus: bool
    by_name_only: bool = False


_KNOWN = (
    KnownSystem("local", "this computer", "machines on this computer", True, False, True),
    KnownSystem("ssh", "hosts of your own", "hosts that you reach over SSH", False, True, True),
    KnownSystem("runpod", "RunPod", "on-demand GPU containers", False, True),
    KnownSystem("vastai", "Vast.ai", "on-demand and interruptible GPU containers", True, True),
    KnownSystem(
        "hetzner", "Hetzner Cloud", "on-demand CPU machines, none with a GPU", False, False
    ),
    KnownSystem("aws", "AWS EC2", "on-demand and spot machines", True, True),
    KnownSystem("lambda", "Lambda Cloud", "on-demand GPU machines", False, True),
    KnownSystem("azure", "Microsoft Azure", "on-demand and spot machines", True, True),
    KnownSystem(
        "huggingface", "Hugging Face", "GPU machines for Spaces and endpoints", False, True
    ),
    KnownSystem("sagemaker", "AWS SageMaker", "managed training machines", True, True),
)


def names() -> tuple[str, ...]:
    """Every name that `create_provider` takes: built in first, then other packages'."""
    return (*BUILT_IN, *sorted(set(_entry_points()) - set(BUILT_IN)))


def known_systems() -> Mapping[str, KnownSystem]:
    """The systems that gpuctl knows something about, with or without an adapter."""
    return {system.name: system for system in _KNOWN}


def reference_only() -> tuple[str, ...]:
    """The known systems without an adapter: only `quote` can show them, at reference prices."""
    adapters = set(names())
    return tuple(
        system.name for system in _KNOWN if system.name not in adapters and not system.by_name_only
    )


def create_provider(name: str, environ: Mapping[str, str], *, home: Path, clock: Clock) -> Provider:
    """Return the provider of that name. Asks nobody.

    Raises:
        UnknownProvider: there is no adapter of that name.
        BrokenProvider: there is one, and it cannot be loaded.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
        return cast(ProviderFactory, found).from_environment(environ, home=home, clock=clock)
    points = _entry_points().get(name)
    if not points:
        raise unknown_provider(name)
    return _third_party(name, points, environ, home, clock)


def _third_party(
    name: str,
    points: tuple[EntryPoint, ...],
    environ: Mapping[str, str],
    home: Path,
    clock: Clock,
) -> Provider:
    if len(points) > 1:
        places = " and ".join(sorted(_origin(point) for point in points))
        raise BrokenProvider(name, f"Two packages offer a provider {name!r}: {places}. Remove one.")
    origin = _origin(points[0])
    try:
        factory = points[0].load()
        provider = factory.from_environment(environ, home=home, clock=clock)
    except ProviderError:
        raise  # it says what is wrong, in words for a person
    except Exception as error:
        # Whatever a stranger's package does wrong must not cost the other providers. Only the
        # kind of error is told: its text may hold credentials.
        raise BrokenProvider(
            name,
            f"The provider {name!r} from {origin} cannot be used ({type(error).__name__}). "
            "Update or remove that package.",
        ) from error
    missing = [verb for verb in _VERBS if verb not in dir(provider)]
    if missing:
        raise BrokenProvider(
            name,
            f"The provider {name!r} from {origin} lacks {', '.join(missing)}; "
            "it was made for another version of gpuctl.",
        )
    return cast(Provider, provider)


_VERBS = (
    *("name", "capabilities", "configured", "offers", "create", "get", "list", "destroy"),
    *("leftovers", "remove", "billed", "check"),
)


def _entry_points() -> dict[str, tuple[EntryPoint, ...]]:
    from importlib.metadata import entry_points  # slow to import, and not every command needs it

    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        others = found.get(point.name, ())
        # One package seen twice on the path is one package.
        if all(point.value != other.value for other in others):
            found[point.name] = (*others, point)
    return found


def _origin(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else "an unnamed package"
    return f"{package} ({point.value})"


def unknown_provider(name: str) -> UnknownProvider:
    """Return the error for a name that nobody has: what to use instead."""
    import difflib

    if system := known_systems().get(name):
        return UnknownProvider(
            name,
            f"gpuctl cannot rent from {system.title} yet: there is no adapter for {name!r}. "
            f"Only `gpuctl quote` shows it, at reference prices where there are any. "
            f"Providers that work: {', '.join(names())}.",
        )
    near = tuple(difflib.get_close_matches(name.lower(), [*names(), *known_systems()], n=3))
    near = tuple(dict.fromkeys(near))
    advice = f" Did you mean {' or '.join(near)}?" if near else ""
    return UnknownProvider(
        name,
        f"There is no provider called {name!r}.{advice} Providers that work: {', '.join(names())}.",
        near,
    )
