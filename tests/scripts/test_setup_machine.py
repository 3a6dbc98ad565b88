"""`scripts/setup-machine.sh` on emulated machines: a second time changes nothing."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds.rented import Card, Rented, needs_machines
from tests.scripts.on_machine import SCRIPTS, Said, on

pytestmark = needs_machines

SETUP = SCRIPTS / "setup-machine.sh"
# Installs what it is asked for by putting it into PATH; the rest of apt is not for a test.
APT = """#!/bin/sh
echo "$@" >> /root/apt.log
case "$*" in *install*git-lfs*) printf '%s' '{lfs}' > {bin}/git-lfs; chmod +x {bin}/git-lfs ;; esac
"""
LFS = '#!/bin/sh\n[ "$1" = install ] && git config --global filter.lfs.process "git-lfs"\n'
TORCH = "class cuda:\n    is_available = staticmethod(lambda: {sees})\n"
VERSIONS = ("2.7.1+cu128", "2.8.0+cu128", "2.8.0+cpu", "2.8.0+cu130")


def wheels(folder: Path, *, sees: bool = True) -> str:
    """An index with a folder for each CUDA, as PyTorch's is; return its address."""
    for version in VERSIONS:
        place = folder / version.partition("+")[2] / "torch"
        place.mkdir(parents=True, exist_ok=True)
        name = f"torch-{version}-py3-none-any.whl"
        info = f"torch-{version}.dist-info"
        with zipfile.ZipFile(place / name, "w") as wheel:
            wheel.writestr("torch/__init__.py", TORCH.format(sees=sees))
            wheel.writestr(f"{info}/METADATA", f"Name: torch\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
            wheel.writestr(f"{info}/RECORD", "")
        links = [f'<a href="{one.name}">{one.name}</a>' for one in place.glob("*.whl")]
        (place / "index.html").write_text("\n".join(links))
    return folder.as_uri()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Rented]:
    """A bare machine with one A10G."""
    yield from bare(tmp_path, Card("NVIDIA A10G", 22888, compute_capability="8.6"))


@pytest.fixture
def machine_without_gpu(tmp_path: Path) -> Iterator[Rented]:
    """A bare machine without a GPU."""
    yield from bare(tmp_path, None)


def bare(folder: Path, card: Card | None) -> Iterator[Rented]:
    place = folder / "machine"
    apt = APT.format(lfs=LFS, bin=place / "bin")
    made = Rented(place, card=card, programs={"apt-get": apt})
    made.boot()
    yield made
    made.remove()


def setup(machine: Rented, index: str, *options: str) -> Said:
    return on(machine, "sh", SETUP, "--venv", "/root/venv", "--index", index, *options)


def disk(machine: Rented) -> dict[str, tuple[int, int]]:
    """Everything in its /root: path -> (size, when it changed)."""
    root = machine.folder / "root"
    return {
        str(file.relative_to(root)): (file.lstat().st_size, file.lstat().st_mtime_ns)
        for file in root.rglob("*")
        if file.name != ".said"
    }


@pytest.mark.slow
def test_the_second_time_changes_nothing(machine: Rented, tmp_path: Path) -> None:
    index = wheels(tmp_path / "index")
    before = disk(machine)
    rehearsed = setup(machine, index, "--dry-run")
    assert rehearsed.code == 0, rehearsed.text
    assert disk(machine) == before, "a dry run changed something"
    first = setup(machine, index)
    assert first.code == 0, first.text
    assert "ready; 4 changed" in first.text
    assert first.lines("did") == rehearsed.lines("would")
    assert "torch for cu128" in first.text
    venv = machine.folder / "root/venv"
    assert list(venv.glob("lib/*/site-packages/torch-2.8.0+cu128.dist-info"))
    asked = (machine.folder / "root/apt.log").read_text()
    assert "install git-lfs" in asked
    assert "tmux" not in asked, "it is there already"

    after = disk(machine)
    second = setup(machine, index)
    assert second.code == 0, second.text
    assert second.text.rstrip().endswith("ready; nothing changed")
    assert second.lines("did") == []
    assert disk(machine) == after
    other = setup(machine, index, "--torch", "torch==2.7.1")
    assert other.lines("did") == ["install torch==2.7.1 for cu128 (found 2.8.0+cu128)"], other.text


@pytest.mark.slow
def test_without_a_gpu_it_takes_the_wheel_for_cpus(
    machine_without_gpu: Rented, tmp_path: Path
) -> None:
    """As cloud-init starts it: without a home, without options."""
    index = wheels(tmp_path / "index")
    line = f"unset HOME; SETUP_VENV=/root/venv SETUP_TORCH_INDEX={index} sh {SETUP}"
    done = on(machine_without_gpu, "sh", "-c", line)
    assert done.code == 0, done.text
    assert "install torch for cpu" in done.lines("did")


@pytest.mark.slow
def test_a_torch_that_sees_no_gpu_is_told(machine: Rented, tmp_path: Path) -> None:
    done = setup(machine, wheels(tmp_path / "index", sees=False))
    assert done.code == 1
    assert "torch 2.8.0+cu128 sees no GPU" in done.text


def test_an_old_driver_is_told_before_anything_changes(tmp_path: Path) -> None:
    for rented in bare(tmp_path, Card("Tesla K80", 11441, driver="470.256.02")):
        done = setup(rented, "file:///nowhere")
        assert done.code == 1
        assert "driver 470.256.02 is too old" in done.text
        assert done.lines("did") == []


def test_the_newest_driver_gets_the_newest_cuda(tmp_path: Path) -> None:
    for rented in bare(tmp_path, Card("NVIDIA H100 80GB HBM3", 81559, driver="580.65.06")):
        done = setup(rented, "file:///nowhere", "--dry-run")
        assert done.code == 0, done.text
        assert "install torch for cu130" in done.lines("would")
