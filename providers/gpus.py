"""The names of GPUs: one canonical name a card, whatever a cloud or a driver calls it.

A canonical name is ``FAMILY[-<GB>GB][-FORM]``: ``RTX-4070-Ti-SUPER``, ``A100-80GB-SXM``,
``V100-16GB`` (a V100 whose form nobody told). The size is there when a family comes in several
or in several forms. Cards that differ are never merged: a request that leaves something open
matches every card that fits it, so ``A100-40GB`` matches PCIe and SXM.

Memory is *nominal* GB, the number on the box. What drivers report (in GiB) is up to 7 % less,
what some clouds make of it (in GB) up to 7.5 % more; `identify` allows for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from providers import gpu_table

_REPORTED_OFF_BY = 0.12  # more than ECC, GiB for GB or GB for GiB make, less than 40 to 48
_REPORTED_LESS_BY = 0.07  # L40S: 45776 MiB = 44.7 GiB, sold as 48

# Plain strings: compiling them all would double the time that importing this module takes.
_NOISE = r"\b(nvidia|geforce|tesla|amd|instinct|generation|gpu|edition|blackwell|corporation)\b"
_SIZE = r"(?<![0-9.])(\d+(?:\.\d+)?)\s*gi?b\b"
_AT_LEAST = r"\s*(\d+(?:\.\d+)?)\s*g(?:i?b)?\s*\+?\s*"
_FORMS = (
    (r"\bpcie\b", "PCIe"),
    (r"\bsxm\d?\b", "SXM"),
    (r"\bnvl\b", "NVL"),
    (r"\bfhhl\b", "FHHL"),
    (r"\bmax-q\b", "Max-Q"),
    (r"\bserver\b", "Server"),
    (r"\bworkstation\b", "Workstation"),
)


class UnknownGpu(ValueError):
    """No card has that name. ``suggestions`` are canonical names that come near."""

    def __init__(self, name: str, message: str, suggestions: tuple[str, ...]) -> None:
        super().__init__(message)
        self.name = name
        self.suggestions = suggestions


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of card."""

    name: str  # canonical
    family: str
    form: str  # PCIe, SXM, NVL, ...; "" = there is one only, or nobody told
    vram_gb: float  # nominal
    architecture: str
    compute_capability: str | None  # None for AMD
    bf16: bool  # computes in bfloat16 in hardware
    vendor: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    """What a request names: some cards, or a size and everything above it."""

    text: str  # as it was written
    names: frozenset[str] = frozenset()  # canonical; empty for a size
    min_vram_gb: float | None = None

    def matches(self, gpu_name: str | None, vram_gb: float | None) -> bool:
        """Whether a card fits.

        Args:
            gpu_name: any name of it; one that nobody knows still fits by size.
            vram_gb: nominal GB, or what was reported.
        """
        gpu = identify(gpu_name, vram_gb) if gpu_name else None
        if self.min_vram_gb is None:
            return gpu is not None and gpu.name in self.names
        if gpu is not None:
            return gpu.vram_gb >= self.min_vram_gb
        return vram_gb is not None and vram_gb >= self.min_vram_gb * (1 - _REPORTED_LESS_BY)


def find(name: str) -> Gpu:
    """Return the card of that name or alias; case, spaces and dashes do not matter.

    Raises:
        UnknownGpu: there is none, or the name leaves open which of several it is.
    """
    exact = _index().cards.get(_key(name))
    if exact is not None:
        return exact
    candidates = _candidates(name)
    if not candidates:
        raise _unknown(name)
    gpu = _the_one(candidates)
    if gpu is None:
        names = tuple(candidate.name for candidate in candidates)
        raise UnknownGpu(name, f"{name!r} is more than one card: {', '.join(names)}", names)
    return gpu


@lru_cache(maxsize=4096)
def identify(product_name: str, vram_gb: float | None = None) -> Gpu | None:
    """Return the card that a driver or an API means, or None when that is not certain.

    Args:
        product_name: for instance "NVIDIA A100-SXM4-80GB" or "A100 PCIE".
        vram_gb: reported memory in GiB (MiB / 1024) or GB. On Vast.ai it is all that tells a
            40 GB from an 80 GB A100. A card whose memory is not that of its name (a slice of
            it, a rebuilt one) is nobody's.
    """
    exact = _index().cards.get(_key(product_name))
    if exact is not None:
        return exact if _fits(exact, vram_gb) else None
    return _the_one(_of_size(_candidates(product_name), vram_gb))


def parse_selector(text: str) -> Selector:
    """Read what a request names: a card, a family (``A100``, ``A100-40GB``) or ``24GB+``.

    Raises:
        UnknownGpu: with suggestions.
    """
    if size := re.fullmatch(_AT_LEAST, text, re.IGNORECASE):
        return Selector(text, min_vram_gb=float(size[1]))
    alias = _index().cards.get(_key(text))
    candidates = _candidates(text) or ((alias,) if alias else ())
    if not candidates:
        raise _unknown(text)
    return Selector(text, frozenset(gpu.name for gpu in candidates))


def all_gpus() -> tuple[Gpu, ...]:
    """Every card, by name."""
    return tuple(sorted(_index().by_name.values(), key=lambda gpu: gpu.name))


# ---------------------------------------------------------------------------- reading names


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", re.sub(_NOISE, " ", _spaced(text)))


def _spaced(text: str) -> str:
    return re.sub(r"[\s_\-/()]+", " ", text.lower()).replace("instinctmi", "instinct mi")


def _take_apart(text: str) -> tuple[str, float | None, str | None]:
    """Return (key of the family, size in GB, form) as far as the text names them."""
    rest = _spaced(text).replace("max q", "max-q").replace("pci e", "pcie").replace("maxq", "max-q")
    size = None
    if found := re.search(_SIZE, rest):
        size = float(found[1])
        rest = rest[: found.start()] + " " + rest[found.end() :]
    form = None
    for pattern, name in _FORMS:
        if form is None and re.search(pattern, rest):
            form = name
            rest = re.sub(pattern, " ", rest)
    return _key(rest), size, form


def _candidates(text: str) -> tuple[Gpu, ...]:
    """The cards that a name leaves possible, none when it names no family."""
    family, size, form = _take_apart(text)
    members = _index().families.get(family, ())
    if form is not None and any(gpu.form for gpu in members):  # "GH200 SXM": there is one only
        members = tuple(gpu for gpu in members if gpu.form == form)
    return tuple(gpu for gpu in members if size is None or gpu.vram_gb == size)


def _of_size(gpus: tuple[Gpu, ...], vram_gb: float | None) -> tuple[Gpu, ...]:
    if vram_gb is None or not gpus:
        return gpus
    nearest = min((gpu.vram_gb for gpu in gpus), key=lambda size: abs(size - vram_gb))
    return tuple(gpu for gpu in gpus if gpu.vram_gb == nearest and _fits(gpu, vram_gb))


def _fits(gpu: Gpu, vram_gb: float | None) -> bool:
    return vram_gb is None or abs(gpu.vram_gb - vram_gb) <= _REPORTED_OFF_BY * gpu.vram_gb


def _the_one(gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The only one, or of several forms the one without, when they are of one size."""
    if len(gpus) == 1:
        return gpus[0]
    if len({gpu.vram_gb for gpu in gpus}) > 1:
        return None
    return next((gpu for gpu in gpus if not gpu.form), None)


def _unknown(name: str) -> UnknownGpu:
    import difflib  # slow to import, and needed for mistakes only

    index = _index()
    near = difflib.get_close_matches(_take_apart(name)[0], index.families, n=5, cutoff=0.5)
    suggestions = tuple(
        dict.fromkeys(gpu.name for family in near for gpu in index.families[family])
    )[:6]
    advice = f" Did you mean {', '.join(suggestions)}?" if suggestions else ""
    return UnknownGpu(
        name,
        f"There is no GPU called {name!r}.{advice} A size such as 24GB+ works too.",
        suggestions,
    )


# ---------------------------------------------------------------------------- the index


@dataclass(frozen=True, slots=True)
class _Index:
    by_name: Mapping[str, Gpu]
    cards: Mapping[str, Gpu]  # key of a name or alias -> the card
    families: Mapping[str, tuple[Gpu, ...]]  # key of a family or its alias -> its cards


@cache
def _index() -> _Index:
    by_name: dict[str, Gpu] = {}
    cards: dict[str, Gpu] = {}
    families: dict[str, tuple[Gpu, ...]] = {}
    nvidia = (*gpu_table.DATACENTER, *gpu_table.GEFORCE, *gpu_table.WORKSTATION)
    rows = [*((row, "NVIDIA") for row in nvidia), *((row, "AMD") for row in gpu_table.AMD)]
    sized = _families_with_a_size(row for row, _ in rows)
    for row, vendor in rows:
        family, aliases = row[0], row[4]
        made = _cards_of(row, vendor, with_size=family in sized)
        by_name.update({gpu.name: gpu for gpu in made})
        for alias in (family, *(alias for alias in aliases if "=" not in alias)):
            families[_key(alias)] = (*families.get(_key(alias), ()), *made)
        for alias in (alias for alias in aliases if "=" in alias):
            written, _, name = alias.partition("=")
            cards[_key(written)] = by_name[name.strip()]
    cards.update({_key(gpu.name): gpu for gpu in by_name.values()})
    return _Index(by_name, cards, families)


def _families_with_a_size(rows: Iterable[gpu_table.Row]) -> set[str]:
    """Families that come in several sizes, and data-centre cards in several forms."""
    sizes: dict[str, set[float]] = {}
    forms: dict[str, set[str]] = {}
    for family, in_gb, in_forms, _, _ in rows:
        sizes.setdefault(family, set()).update(in_gb)
        forms.setdefault(family, set()).update(in_forms)
    return {
        family
        for family in sizes
        if len(sizes[family]) > 1 or forms[family] & {"PCIe", "SXM", "NVL"}
    }


def _cards_of(row: gpu_table.Row, vendor: str, *, with_size: bool) -> tuple[Gpu, ...]:
    family, sizes, forms, architecture, aliases = row
    capability = gpu_table.COMPUTE_CAPABILITY_OF_FAMILY.get(
        family, gpu_table.COMPUTE_CAPABILITY.get(architecture)
    )
    made = []
    for size in sizes:
        for form in forms:
            name = "-".join(part for part in (family, f"{size:g}GB" * with_size, form) if part)
            own = tuple(
                alias.partition("=")[0].strip()
                for alias in aliases
                if "=" not in alias or alias.partition("=")[2].strip() == name
            )
            made.append(
                Gpu(
                    name=name,
                    family=family,
                    form=form,
                    vram_gb=size,
                    architecture=architecture,
                    compute_capability=capability,
                    bf16=_computes_bf16(capability, architecture),
                    vendor=vendor,
                    aliases=own,
                )
            )
    return tuple(made)


def _computes_bf16(capability: str | None, architecture: str) -> bool:
    """NVIDIA since Ampere (compute capability 8.0), AMD since CDNA (MI100)."""
    if capability is None:
        return architecture.startswith("CDNA")
    return int(capability.partition(".")[0]) >= 8
