"""Whether a machine is what a job needs: found and needed, a sentence for each shortfall.

One file for two users. `gpuctl run` asks `unmet` about the facts that the agent brings, before
anything is sent. As a program it takes the facts itself, and also looks at what only the machine
can tell: torch, the network, tokens. So it needs the standard library only (Python 3.8); copy it
to any machine, or run it there without copying:

    ssh machine python3 - --gpus 1 --min-vram 24 --bf16 --torch --hub < preflight.py

Exit codes: 0 nothing is missing, 1 something is, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, Sequence  # noqa: UP035 - it runs on Python 3.8 too

_VRAM_SLACK = 0.9  # cards report a little less than their nominal size
_TOOL_SECONDS = 20.0
_TORCH_SECONDS = 120.0  # the first import of torch on a cold disk
_REACH_SECONDS = 10.0
HUB = "https://huggingface.co"
_TORCH = (
    "import json, torch; c = torch.cuda.is_available(); "
    "print(json.dumps({'version': torch.__version__, 'cuda': c, 'built_for': torch.version.cuda, "
    "'devices': torch.cuda.device_count() if c else 0, "
    "'bf16': bool(c and torch.cuda.is_bf16_supported())}))"
)


@dataclass(frozen=True)
class Needs:
    """What the hardware must have; ``None`` and 0 mean no requirement."""

    gpu_count: int = 0
    min_vram_gb: float | None = None
    bf16: bool = False
    cuda: bool = False
    disk_free_gb: float | None = None
    cpus: int | None = None
    memory_gb: float | None = None


@dataclass(frozen=True)
class Card:
    """One GPU."""

    name: str
    vram_gb: float
    compute_capability: str | None


@dataclass(frozen=True)
class Facts:
    """What a machine has. GB are 10^9 bytes, of a GPU's memory 2^30."""

    cpus: int
    ram_gb: float
    disk_free_gb: float
    gpus: Sequence[Card]
    cuda: str | None  # the newest that the driver runs


class _Card(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def vram_gb(self) -> float: ...
    @property
    def compute_capability(self) -> str | None: ...


class Found(Protocol):
    """Facts, from here or from the agent."""

    @property
    def cpus(self) -> int:
        """CPUs that may be used."""

    @property
    def ram_gb(self) -> float:
        """Memory that may be used."""

    @property
    def disk_free_gb(self) -> float:
        """Free space where the job works."""

    @property
    def gpus(self) -> Sequence[_Card]:
        """The cards."""

    @property
    def cuda(self) -> str | None:
        """The newest CUDA that the driver runs."""


# --------------------------------------------------------------------- judging; pure


def unmet(needs: Needs, found: Found) -> list[str]:
    """Return one sentence for each need that the machine does not meet: found and needed."""
    complaints: list[str] = []
    if len(found.gpus) < needs.gpu_count:
        complaints.append(f"found {len(found.gpus)} GPUs, needed {needs.gpu_count}")
    wants_gpu = needs.gpu_count > 0 or needs.min_vram_gb is not None or needs.bf16
    if wants_gpu and not found.gpus and needs.gpu_count == 0:
        complaints.append("found no GPU, needed one")
    for gpu in found.gpus:
        complaints += _unmet_by_card(needs, gpu.name, gpu.vram_gb, gpu.compute_capability)
    if (needs.cuda or needs.bf16) and found.gpus and found.cuda is None:
        complaints.append("found no CUDA driver, needed one")
    if needs.disk_free_gb is not None and found.disk_free_gb < needs.disk_free_gb:
        complaints.append(
            f"found {found.disk_free_gb:.1f} GB of free disk, needed {needs.disk_free_gb:g} GB"
        )
    if needs.cpus is not None and found.cpus < needs.cpus:
        complaints.append(f"found {found.cpus} CPUs, needed {needs.cpus}")
    if needs.memory_gb is not None and found.ram_gb < needs.memory_gb * _VRAM_SLACK:
        complaints.append(f"found {found.ram_gb:.1f} GB of memory, needed {needs.memory_gb:g} GB")
    return complaints


def _unmet_by_card(
    needs: Needs, name: str, vram_gb: float, compute_capability: str | None
) -> list[str]:
    complaints: list[str] = []
    if needs.min_vram_gb is not None and vram_gb < needs.min_vram_gb * _VRAM_SLACK:
        complaints.append(
            f"found {vram_gb:.1f} GB of GPU memory ({name}), needed {needs.min_vram_gb:g} GB"
        )
    if needs.bf16 and not _has_bf16(name, vram_gb, compute_capability):
        capability = compute_capability or "unknown"
        complaints.append(
            f"found {name} without bf16 (compute capability {capability}), needed bf16 (8.0)"
        )
    return complaints


def _has_bf16(name: str, vram_gb: float, compute_capability: str | None) -> bool:
    if compute_capability:
        try:
            return float(compute_capability) >= 8.0
        except ValueError:
            return False
    try:
        from providers.gpus import identify
    except ImportError:
        return False  # alone on a machine: a driver that old comes with cards that old
    known = identify(name, vram_gb)
    return known is not None and known.bf16


# ------------------------------------------------------------- looking at this machine


def facts(path: str) -> Facts:
    """Look at this machine, as the agent's probe does; ``path``: whose free disk counts."""
    return Facts(_cpus(), round(_memory() / 1e9, 3), _disk_free_gb(path), _cards(), _cuda())


def _said_by(*argv: str, seconds: float = _TOOL_SECONDS) -> str | None:
    """Return what a command prints; None when it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _cards() -> list[Card]:
    rows = _query("name", "memory.total", "compute_cap") or [
        [*row, ""]
        for row in _query("name", "memory.total")  # drivers before 2021
    ]
    return [
        Card(name, round(_number(memory) / 1024, 1), cap if _number(cap) else None)
        for name, memory, cap in rows
    ]


def _query(*fields: str) -> list[list[str]]:
    said = _said_by(
        "nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"
    )
    rows = [[value.strip() for value in line.split(",")] for line in (said or "").splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0  # "[N/A]": the card does not tell


def _cuda() -> str | None:
    found = re.search(r"CUDA (?:UMD )?Version\s*:\s*([0-9.]+)", _said_by("nvidia-smi") or "")
    return found.group(1) if found else None


def _first_line(path: str) -> str:
    try:
        with Path(path).open() as file:
            return file.readline().strip()
    except OSError:
        return ""


def _cpus() -> int:
    """CPUs that we may use: by affinity and by the container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        usable = min(usable, -(-int(quota) // int(period)))
    return max(usable, 1)


def _memory() -> int:
    """Bytes that we may use: the machine's, or the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _first_line(path)
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def _disk_free_gb(path: str) -> float:
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return round(shutil.disk_usage(place).free / 1e9, 3)


def torch_facts(python: str) -> dict[str, Any] | None:
    """Ask a Python what its torch can do; None when it has none that can be imported."""
    said = _said_by(python, "-c", _TORCH, seconds=_TORCH_SECONDS)
    try:
        told = json.loads((said or "").strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return told if isinstance(told, dict) else None


def torch_complaints(torch: dict[str, Any] | None, python: str, gpus: int) -> list[str]:
    """Return what is wrong with the torch of a machine that has so many GPUs. Pure."""
    if torch is None:
        return [f"found no torch that {python} can import, needed one"]
    if gpus and not torch["cuda"]:
        built = f"built for CUDA {torch['built_for']}" if torch["built_for"] else "built for CPUs"
        return [f"found torch {torch['version']} ({built}) that sees no GPU, needed one that does"]
    if gpus and torch["devices"] < gpus:
        return [f"found torch that sees {torch['devices']} of {gpus} GPUs"]
    return []


def unreached(url: str) -> str | None:
    """Say why a server cannot be reached from here; None when it answers, whatever it says."""
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - checked by `_web`
        with urllib.request.urlopen(request, timeout=_REACH_SECONDS):  # noqa: S310
            return None
    except urllib.error.HTTPError:
        return None  # it is there
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return f"found no way to {url} ({reason}), needed one"


def has_token(name: str) -> bool:
    """Whether a token is in the environment, or the hub's own where its client keeps it."""
    if os.environ.get(name):
        return True
    if name != "HF_TOKEN":
        return False
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    file = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    return bool(_first_line(str(file)))


# ----------------------------------------------------------------------- the program


def main(argv: Sequence[str]) -> int:
    """Look at this machine and say what is missing."""
    given = _arguments(argv)
    needs = Needs(
        gpu_count=given.gpus,
        min_vram_gb=given.min_vram,
        bf16=given.bf16,
        cuda=given.cuda or given.gpus > 0,
        disk_free_gb=given.disk_free,
        cpus=given.cpus,
        memory_gb=given.memory,
    )
    found = facts(given.path)
    missing = unmet(needs, found)
    told: dict[str, Any] = {"facts": {**asdict(found), "python": sys.version.split()[0]}}
    if given.torch:
        told["facts"]["torch"] = torch = torch_facts(given.python)
        missing += torch_complaints(torch, given.python, len(found.gpus))
    missing += [why for why in map(unreached, given.reach) if why]
    missing += [f"found no {name}, needed one" for name in given.token if not has_token(name)]
    sys.stdout.write(_as_json(told, missing) if given.json else _as_text(found, missing))
    return 1 if missing else 0


def _as_json(told: dict[str, Any], missing: list[str]) -> str:
    return json.dumps({"ok": not missing, "missing": missing, **told}) + "\n"


def _as_text(found: Facts, missing: list[str]) -> str:
    cards = ", ".join(f"{gpu.name} ({gpu.vram_gb:g} GB)" for gpu in found.gpus) or "no GPU"
    first = (
        f"{cards}; CUDA {found.cuda or 'none'}; {found.cpus} CPUs, {found.ram_gb:.1f} GB memory, "
        f"{found.disk_free_gb:.1f} GB disk free"
    )
    return "\n".join([first, *(missing or ["nothing is missing"]), ""])


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="preflight.py",
        description="Say what this machine lacks. Exit code 0: nothing; 1: something.",
        epilog="Example: preflight.py --gpus 1 --min-vram 24 --bf16 --torch --hub --json",
    )
    add = parser.add_argument
    add("--gpus", type=int, default=0, metavar="N", help="this many GPUs at least")
    add("--min-vram", type=float, metavar="GB", help="memory of each GPU, at least")
    add("--bf16", action="store_true", help="GPUs that compute in bf16")
    add("--cuda", action="store_true", help="a CUDA driver (implied by --gpus)")
    add("--disk-free", type=float, metavar="GB", help="free disk, at least")
    add("--path", default=".", help="whose disk is meant (default: here)")
    add("--cpus", type=int, metavar="N", help="this many CPUs at least")
    add("--memory", type=float, metavar="GB", help="memory, at least")
    add("--torch", action="store_true", help="a torch that sees the GPUs")
    add("--python", default="python3", help="whose torch is meant (default: python3)")
    add("--reach", type=_web, action="append", default=[], metavar="URL", help="a server, by HTTP")
    hub = os.environ.get("HF_ENDPOINT") or HUB
    add("--hub", dest="reach", action="append_const", const=hub, help=f"the hub ({hub})")
    add("--token", action="append", default=[], metavar="NAME", help="a token, such as HF_TOKEN")
    add("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(argv)


def _web(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"expected http:// or https://, got {text!r}")
    return text


def run() -> NoReturn:
    """Be the program."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
