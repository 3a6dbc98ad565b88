"""The hardware that a job needs: found and needed are told, and an unfit machine is not kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.agent.client import Probe
from gpuctl.agent.messages import Gpu
from gpuctl.run.preflight import Needs, unmet
from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import all_released, nothing_bills, run

A100 = ("NVIDIA A100-SXM4-40GB", 40960, "8.0")
T4 = ("Tesla T4", 15360, "7.5")
NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --query-gpu=uuid,*) echo "GPU-0, {offered[0]}, {offered[1]}, 10" ;;
  --query-gpu=name,memory.total,driver_version,compute_cap)
    echo "{found[0]}, {found[1]}, 570.1, {found[2]}" ;;
  --query-gpu=*) echo "0, 0" ;;
  "") echo "| NVIDIA-SMI 570.1   Driver Version: 570.1   CUDA Version: 12.8 |" ;;
esac
"""


def with_card(
    rehearsal: Rehearsal, offered: tuple[str, int, str], found: tuple[str, int, str] | None = None
) -> None:
    """Give this computer a card, as the market sees it; ``found``: as the machine then has it."""
    tools = rehearsal.folder / "tools"
    tools.mkdir()
    tool = tools / "nvidia-smi"
    tool.write_text(NVIDIA_SMI.format(offered=offered, found=found or offered))
    tool.chmod(0o755)
    rehearsal.settings["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("resources", "near"),
    [
        ("cpus: 4000", "CPUs"),
        ("memory: 90000", "of memory"),
        ("disk: 60000", "disk"),
    ],
)
def test_more_than_there_is(rehearsal: Rehearsal, resources: str, near: str) -> None:
    ended = run(rehearsal, f"run: echo never\nresources: {{{resources}}}\n")
    assert (ended.code, ended.run["state"], ended.outcomes) == (3, "failed", []), ended.err
    assert ended.error["kind"] == "NothingRentable"
    assert near in ended.error["next"], ended.error
    assert "intended" not in rehearsal.kinds()
    nothing_bills(rehearsal)


def test_a_gpu_where_there_is_none(rehearsal: Rehearsal) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this computer has a GPU")
    ended = run(rehearsal, "run: echo never\nresources: {gpu: A100-40GB}\n")
    assert (ended.code, ended.run["state"], ended.outcomes) == (3, "failed", []), ended.err
    assert "no NVIDIA GPU" in ended.error["message"]
    assert "CPU cores (--gpu none)" in ended.error["message"]
    assert "intended" not in rehearsal.kinds()


def test_a_smaller_gpu_than_asked(rehearsal: Rehearsal) -> None:
    with_card(rehearsal, T4)
    ended = run(rehearsal, "run: echo never\nresources: {gpu: A100-40GB}\n")
    assert (ended.code, ended.outcomes) == (3, []), ended.err
    assert "intended" not in rehearsal.kinds()


def test_the_gpu_that_was_asked_for(rehearsal: Rehearsal) -> None:
    with_card(rehearsal, A100)
    ended = run(
        rehearsal,
        "run: nvidia-smi --query-gpu=uuid,name\n"
        "resources: {gpu: A100-40GB}\npreflight: {bf16: true, min_vram: 40}\n",
    )
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert ended.run["attempts"][0]["machine"]["gpu"] == "A100-40GB-SXM"
    assert A100[0] in ended.err


@pytest.mark.parametrize(
    ("found", "preflight", "said"),
    [
        (T4, "bf16: true", ["found Tesla T4 without bf16 (compute capability 7.5)", "needed bf16"]),
        (T4, "min_vram: 40", ["found 15.0 GB of GPU memory (Tesla T4)", "needed 40 GB"]),
    ],
)
def test_a_machine_that_is_not_what_was_offered(
    rehearsal: Rehearsal, found: tuple[str, int, str], preflight: str, said: list[str]
) -> None:
    with_card(rehearsal, A100, found)
    ended = run(
        rehearsal,
        "setup: echo never\nrun: echo never\n"
        f"resources: {{gpu: A100-40GB}}\npreflight: {{{preflight}}}\n",
    )
    assert (ended.code, ended.run["state"], ended.outcomes) == (3, "failed", ["failed"]), ended.err
    for words in said:
        assert words in ended.run["attempts"][0]["reason"]
        assert words in ended.error["message"], ended.error
        assert words in ended.run["reason"]
    assert "never" not in ended.err
    all_released(rehearsal, ended)


# ------------------------------------------------------------------------ pure


def probe(**facts: object) -> Probe:
    told: dict[str, object] = {
        "python": "3.11.2", "os": "Linux", "cpus": 8, "ram_gb": 32.0, "disk_free_gb": 100.0,
    }  # fmt: skip
    return Probe.model_validate({**told, **facts})


def card(name: str, vram_gb: float, capability: str | None) -> Gpu:
    return Gpu(name=name, vram_gb=vram_gb, compute_capability=capability)


AMOUNT = st.floats(1, 1000)


@given(AMOUNT, AMOUNT)
def test_free_disk(found: float, needed: float) -> None:
    complaints = unmet(Needs(disk_free_gb=needed), probe(disk_free_gb=found))
    assert bool(complaints) is (found < needed)
    for words in complaints:
        assert f"found {found:.1f} GB" in words
        assert f"needed {needed:g} GB" in words


@given(st.integers(1, 64), st.integers(1, 64))
def test_cpus(found: int, needed: int) -> None:
    complaints = unmet(Needs(cpus=needed), probe(cpus=found))
    assert complaints == ([] if found >= needed else [f"found {found} CPUs, needed {needed}"])


@given(AMOUNT, AMOUNT)
def test_memory_may_be_a_tenth_less_than_its_name(found: float, needed: float) -> None:
    complaints = unmet(Needs(memory_gb=needed), probe(ram_gb=found))
    assert bool(complaints) is (found < needed * 0.9)


@given(st.integers(0, 8), st.integers(1, 8))
def test_cards_are_counted(found: int, needed: int) -> None:
    cards = (card("NVIDIA H100 80GB HBM3", 80, "9.0"),) * found
    complaints = unmet(Needs(gpu_count=needed, cuda=True), probe(gpus=cards, cuda="12.8"))
    assert bool(complaints) is (found < needed)


@pytest.mark.parametrize(
    ("needs", "gpu", "cuda", "said"),
    [
        (Needs(1, bf16=True), card("Tesla T4", 15, "7.5"), "12.2", "without bf16"),
        (Needs(1, bf16=True), card("Tesla T4", 15, None), "12.2", "capability unknown"),
        (Needs(1, bf16=True), card("NVIDIA A100-SXM4-40GB", 40, None), "11.0", None),
        (Needs(1, bf16=True), card("NVIDIA A100-SXM4-40GB", 40, "odd"), "11.0", "without bf16"),
        (Needs(1, min_vram_gb=24), card("NVIDIA GeForce RTX 4090", 23.9, "8.9"), "12.8", None),
        (Needs(1, cuda=True), card("NVIDIA L4", 22.5, "8.9"), None, "no CUDA driver"),
        (Needs(min_vram_gb=8), None, None, "found no GPU"),
        (Needs(1, cuda=True), None, None, "found 0 GPUs, needed 1"),
    ],
)
def test_a_card(needs: Needs, gpu: Gpu | None, cuda: str | None, said: str | None) -> None:
    complaints = unmet(needs, probe(gpus=(gpu,) if gpu else (), cuda=cuda))
    assert bool(complaints) is (said is not None)
    if said is not None:
        assert said in "; ".join(complaints)


def test_no_card_is_asked_about_when_none_is_needed(tmp_path: Path) -> None:
    assert unmet(Needs(), probe(cpus=1, ram_gb=0.5, disk_free_gb=0.1)) == []
