"""Prices that were found one by one: in the founding documents and in public sources since.

The founding documents are those that this project was started from, at the turn of 2025 to
2026. Most of their figures carry no date of their own; those count as of January 2026. A claim
of theirs that turned out to be false stays here with the reason, so that nobody adds it again.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from providers.reference.entry import Entry, Unit

_FOUNDING = date(2026, 1, 1)
_FOUNDING_SOURCE = "founding documents"
_UNDATED = "undated; taken as 2026-01"
_NO_RUNPOD_SPOT = (
    "RunPod no longer sells spot pods: its documentation dropped them on 2026-05-06 and its "
    "API v2 has no field for them"
)
_SKYPILOT = "SkyPilot catalog v8, runpod/vms.csv at 01acdfd"
_BENCHMARK = "third-party benchmark document"


def _founding(
    system: str,
    name: str,
    gpu: str | None,
    price: str,
    *,
    count: int = 1,
    spot: bool = False,
    unit: Unit = "USD/hour",
    low: str | None = None,
    as_of: date = _FOUNDING,
    dated: str = _UNDATED,
    region: str = "",
    product: str = "",
    per_gpu: bool = False,
    retracted: str | None = None,
    not_hourly: str | None = None,
    note: str = "",
) -> Entry:
    return Entry(
        system=system,
        name=name,
        gpu=gpu,
        gpu_count=count,
        spot=spot,
        price=Decimal(price),
        low=Decimal(low) if low else None,
        high=Decimal(price) if low else None,
        unit=unit,
        as_of=as_of,
        dated=dated,
        source=_FOUNDING_SOURCE,
        region=region,
        product=product,
        per_gpu=per_gpu,
        retracted=retracted,
        not_hourly=not_hourly,
        note=note,
    )


def _aws(name: str, gpu: str, price: str, *, count: int = 1, spot: bool = False) -> Entry:
    return _founding("aws", name, gpu, price, count=count, spot=spot, region="us-east-1")


def _plan(name: str, price: str) -> Entry:
    return _founding(
        "colab", name, None, price, count=0, unit="USD/month", not_hourly="a monthly plan"
    )


FOUNDING: tuple[Entry, ...] = (
    _founding(
        "runpod",
        "A100-40GB",
        "A100-40GB",
        "1.39",
        spot=True,
        dated="2026-01",
        retracted=_NO_RUNPOD_SPOT + "; nor does it sell an A100 with 40 GB",
    ),
    _founding("runpod", "A100-80GB", "A100-80GB", "1.89", spot=True, retracted=_NO_RUNPOD_SPOT),
    _founding("runpod", "RTX-4090", "RTX-4090", "0.44", spot=True, retracted=_NO_RUNPOD_SPOT),
    _founding(
        "vastai",
        "RTX-3090",
        "RTX-3090",
        "0.40",
        low="0.20",
        as_of=date(2025, 1, 1),
        dated="2025-26",
        per_gpu=True,
    ),
    _founding(
        "vastai",
        "RTX-3080",
        "RTX-3080-10GB",
        "0.30",
        low="0.15",
        as_of=date(2025, 1, 1),
        dated="2025-26",
        per_gpu=True,
    ),
    _aws("g4dn.xlarge", "T4", "0.526"),
    _aws("g4dn.xlarge", "T4", "0.158", spot=True),
    _aws("p3.2xlarge", "V100-16GB-SXM", "3.06"),
    _aws("p4d.24xlarge", "A100-40GB-SXM", "32.77", count=8),
    _founding("sagemaker", "ml.g5.xlarge", "A10G", "1.41", note="a managed training instance"),
    _founding("lambda", "A6000", "RTX-A6000", "0.80"),
    _founding("lambda", "A100-40GB", "A100-40GB", "1.10", product="gpu_1x_a100_sxm4"),
    _founding("lambda", "A100-80GB", "A100-80GB", "1.50"),
    _founding(
        "lambda",
        "RTX-4090",
        "RTX-4090",
        "0.50",
        retracted="Lambda sells no GeForce cards; its price list has no RTX 4090",
    ),
    _founding("huggingface", "T4", "T4", "0.60"),
    _founding("huggingface", "A10G", "A10G", "1.05"),
    _founding("huggingface", "A100-40GB", "A100-40GB", "3.50"),
    _founding(
        "azure", "V100", "V100-16GB", "3.06", note="Azure's machines with one V100 have 16 GB"
    ),
    _founding("azure", "A100-80GB", "A100-80GB", "3.67"),
    _founding(
        "azure",
        "8xA100",
        "A100-40GB",
        "27.20",
        count=8,
        note="ND A100 v4, whose eight cards have 40 GB each",
    ),
    _plan("Colab Pro", "9.99"),
    _plan("Colab Pro+", "49.99"),
    Entry(
        system="hetzner",
        name="ccx23 with a GPU",
        gpu="A10",
        gpu_count=1,
        spot=False,
        price=None,
        unit="EUR/hour",
        as_of=_FOUNDING,
        dated=_UNDATED,
        source=_FOUNDING_SOURCE,
        retracted="ccx23 has 4 dedicated CPUs and no GPU; Hetzner Cloud has no GPU server types",
    ),
)


def _runpod(gpu: str, price: str, as_of: date, source: str, dated: str = "") -> Entry:
    return Entry(
        system="runpod",
        name=gpu,
        gpu=gpu,
        gpu_count=1,
        spot=False,
        price=Decimal(price),
        unit="USD/hour",
        as_of=as_of,
        dated=dated,
        source=source,
        per_gpu=True,
    )


def _runpod_catalog(gpu: str, price: str) -> Entry:
    return _runpod(gpu, price, date(2026, 8, 1), _SKYPILOT, "2026-08 to 2026-09")


RUNPOD: tuple[Entry, ...] = (
    _runpod_catalog("A100-80GB-PCIe", "1.39"),
    _runpod_catalog("H100-80GB-SXM", "3.29"),
    _runpod_catalog("RTX-4090", "0.74"),
    _runpod_catalog("RTX-A6000", "0.53"),
    _runpod_catalog("RTX-A5000", "0.27"),
    _runpod_catalog("RTX-6000-Ada", "0.84"),
    _runpod("A100-80GB-SXM", "1.59", date(2026, 8, 31), _BENCHMARK),
    _runpod("B200-180GB-SXM", "6.79", date(2026, 8, 31), _BENCHMARK),
    _runpod("RTX-PRO-4500", "0.72", date(2026, 8, 20), "a recorded pod"),
    _runpod("RTX-4090", "0.64", date(2026, 6, 24), "runpod-mcp pull request 46"),
    _runpod("RTX-2000-Ada", "0.24", date(2026, 1, 1), "third party", "2026"),
    _runpod("A100-80GB-PCIe", "1.64", date(2025, 9, 22), "SkyPilot issue 7311"),
    _runpod("A40", "0.44", date(2025, 3, 1), "SkyPilot issue 4914", "2025-03"),
)


def _lambda(name: str, gpu: str, price: str, count: int = 1, note: str = "") -> Entry:
    return Entry(
        system="lambda",
        name=name,
        gpu=gpu,
        gpu_count=count,
        spot=False,
        price=Decimal(price),
        unit="USD/hour",
        as_of=date(2026, 8, 31),
        source=_BENCHMARK,
        storage_included=True,
        note=note,
    )


LAMBDA: tuple[Entry, ...] = (
    _lambda("gpu_1x_a100_sxm4", "A100-40GB-SXM", "1.99"),
    _lambda("gpu_1x_gh200", "GH200-96GB", "2.29", note="its CPU is arm64"),
    _lambda("gpu_1x_h100_pcie", "H100-80GB-PCIe", "3.29"),
    _lambda("gpu_1x_h100_sxm5", "H100-80GB-SXM", "4.29"),
    _lambda("8xH100", "H100-80GB", "31.92", 8),
    _lambda("8xB200", "B200-180GB-SXM", "53.52", 8),
)

VASTAI: tuple[Entry, ...] = (
    Entry(
        system="vastai",
        name="H100-80GB-SXM",
        gpu="H100-80GB-SXM",
        gpu_count=1,
        spot=False,
        price=Decimal("1.7333"),
        unit="USD/hour",
        as_of=date(2026, 8, 22),
        source="one captured offer (getcomputable/gpu-index)",
        per_gpu=True,
    ),
)


def _robot(name: str, gpu: str, price: str, setup: str) -> Entry:
    return Entry(
        system="hetzner-robot",
        name=name,
        gpu=gpu,
        gpu_count=1,
        spot=False,
        price=Decimal(price),
        unit="EUR/hour",
        as_of=date(2026, 10, 8),
        source="Hetzner's price feed, net",
        storage_included=True,
        not_hourly=f"a dedicated server with a set-up fee of {setup} EUR, delivered in days",
    )


HETZNER_ROBOT: tuple[Entry, ...] = (
    _robot("GEX45", "RTX-PRO-4000-SFF", "0.3402", "209"),
    _robot("GEX63", "RTX-PRO-6000-Max-Q", "1.5982", "999"),
    _robot("GEX131", "RTX-PRO-6000-Max-Q", "2.3995", "1499"),
)

FOUND_ONE_BY_ONE: tuple[Entry, ...] = (*FOUNDING, *RUNPOD, *LAMBDA, *VASTAI, *HETZNER_ROBOT)
