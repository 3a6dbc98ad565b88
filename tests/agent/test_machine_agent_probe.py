"""Facts of a machine; the GPUs are those of an nvidia-smi that is a script."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuctl.agent import machine_agent
from tests.agent.bench import Bench

HEADER = "| NVIDIA-SMI 570.124.06     Driver Version: 570.124.06     CUDA Version: 12.8     |"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to write a script that is then found as nvidia-smi."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "nvidia-smi"


def install(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_two_cards(bench: Bench, nvidia_smi: Path) -> None:
    install(
        nvidia_smi,
        f"""case "$1" in
--query-gpu=name,memory.total,driver_version,compute_cap)
  echo "NVIDIA A100-SXM4-40GB, 40960, 570.124.06, 8.0"
  echo "NVIDIA GeForce RTX 4090, 24564, 570.124.06, 8.9" ;;
"") echo "{HEADER}" ;;
*) exit 2 ;;
esac""",
    )
    code, facts = bench.call("probe", str(bench.root / "not" / "there" / "yet"))
    assert code == 0
    assert facts["cuda"] == "12.8"
    assert facts["gpus"] == [
        {
            "name": "NVIDIA A100-SXM4-40GB",
            "vram_gb": 40.0,
            "compute_capability": "8.0",
            "driver": "570.124.06",
        },
        {
            "name": "NVIDIA GeForce RTX 4090",
            "vram_gb": 24.0,
            "compute_capability": "8.9",
            "driver": "570.124.06",
        },
    ]
    assert facts["disk_free_gb"] > 0
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))


def test_an_old_driver_that_does_not_know_the_compute_capability(
    bench: Bench, nvidia_smi: Path
) -> None:
    install(
        nvidia_smi,
        """case "$1" in
*compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2 ;;
--query*) echo "Tesla K80, 11441, 450.1" ;;
esac""",
    )
    _, facts = bench.call("probe", "/")
    assert facts["gpus"] == [
        {"name": "Tesla K80", "vram_gb": 11.2, "compute_capability": None, "driver": "450.1"}
    ]
    assert facts["cuda"] is None


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "printf '\\377\\n'"])
def test_a_driver_in_trouble_is_no_gpu(bench: Bench, nvidia_smi: Path, script: str) -> None:
    install(nvidia_smi, script)
    _, facts = bench.call("probe", "/")
    assert facts["gpus"] == []


def test_a_driver_that_hangs_is_given_up_on() -> None:
    assert machine_agent.run_tool(["sleep", "600"], 0.2) == ""


def test_a_container_s_limits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"/sys/fs/cgroup/cpu.max": "150000 100000", "/sys/fs/cgroup/memory.max": "1000000000"}
    monkeypatch.setattr(machine_agent, "read_first", lambda path: limits.get(path, ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert machine_agent.cpu_count() == 2
    assert machine_agent.ram_bytes() == 10**9


def test_it_starts_quickly_without_the_network_library() -> None:
    """The verbs are called every minute of every run: nothing heavy is imported for them."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(machine_agent.__file__).parent)!r});"
        "import machine_agent; print('ssl' in sys.modules, 'urllib.request' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=30
    )
    assert done.stdout == b"False False\n"
