"""`scripts/preflight.py`: each missing thing is told, with what was found and what was needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuctl.run import preflight
from tests.clouds.rented import Card, Rented, needs_machines
from tests.remote.sshd import free_port
from tests.scripts.on_machine import SCRIPTS, on

ROOT = SCRIPTS.parent
TORCH = """
class cuda:
    is_available = staticmethod(lambda: {sees})
    device_count = staticmethod(lambda: 1)
    is_bf16_supported = staticmethod(lambda: False)
class version:
    cuda = {cuda!r}
__version__ = "2.8.0"
"""


@pytest.fixture(scope="module")
def t4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rented]:
    """A machine with one T4, no torch and no token."""
    made = Rented(
        tmp_path_factory.mktemp("t4"), card=Card("Tesla T4", 15360, compute_capability="7.5")
    )
    made.boot()
    for name, cuda, sees in (("sees", "12.8", True), ("blind", None, False)):
        (made.folder / "root" / name).mkdir()
        (made.folder / "root" / name / "torch.py").write_text(TORCH.format(cuda=cuda, sees=sees))
    yield made
    made.remove()


def asked(rented: Rented, *options: str) -> tuple[int, Any]:
    """Pipe the file into the machine's Python, as one does who copies nothing."""
    line = f"python3 - {' '.join(options)} --json < {SCRIPTS / 'preflight.py'}"
    said = on(rented, "sh", "-c", line)
    return said.code, json.loads(said.text)


def test_it_is_the_file_that_gpuctl_run_uses() -> None:
    assert (SCRIPTS / "preflight.py").samefile(str(preflight.__file__))


@needs_machines
def test_nothing_is_missing(t4: Rented) -> None:
    code, told = asked(t4, "--gpus 1 --min-vram 15 --disk-free 0.1 --cpus 1 --memory 0.1")
    assert (code, told["ok"], told["missing"]) == (0, True, [])
    [card] = told["facts"]["gpus"]
    assert (card["name"], card["vram_gb"], told["facts"]["cuda"]) == ("Tesla T4", 15.0, "12.8")


@needs_machines
@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ("--gpus 2", "found 1 GPUs, needed 2"),
        ("--min-vram 24", "found 15.0 GB of GPU memory (Tesla T4), needed 24 GB"),
        ("--bf16", "found Tesla T4 without bf16 (compute capability 7.5), needed bf16 (8.0)"),
        ("--disk-free 1e9", "GB of free disk, needed 1e+09 GB"),
        ("--cpus 9999", "CPUs, needed 9999"),
        ("--memory 99999", "GB of memory, needed 99999 GB"),
        ("--torch", "found no torch that python3 can import, needed one"),
        ("--token HF_TOKEN", "found no HF_TOKEN, needed one"),
        ("--reach http://127.0.0.1:PORT/", "found no way to http://127.0.0.1:PORT/"),
    ],
)
def test_each_missing_thing_is_told(t4: Rented, options: str, missing: str) -> None:
    port = str(free_port())
    code, told = asked(t4, options.replace("PORT", port))
    assert (code, told["ok"]) == (1, False)
    [why] = told["missing"]
    assert missing.replace("PORT", port) in why


@needs_machines
def test_torch_must_see_the_gpu(t4: Rented) -> None:
    line = f"PYTHONPATH=/root/%s python3 {SCRIPTS / 'preflight.py'} --gpus 1 --torch"
    assert on(t4, "sh", "-c", line % "sees").code == 0
    blind = on(t4, "sh", "-c", line % "blind")
    assert blind.code == 1
    assert "torch 2.8.0 (built for CPUs) that sees no GPU" in blind.text


@needs_machines
def test_a_token_of_the_hub_is_found_where_its_client_keeps_it(t4: Rented) -> None:
    place = t4.folder / "root/.cache/huggingface"
    place.mkdir(parents=True)
    (place / "token").write_text("hf_x\n")
    code, told = asked(t4, "--token HF_TOKEN --token WANDB_API_KEY")
    assert (code, told["missing"]) == (1, ["found no WANDB_API_KEY, needed one"])
    assert "hf_x" not in json.dumps(told)


@needs_machines
def test_the_agent_finds_the_same(t4: Rented) -> None:
    """`unmet` is one function; that its facts come from two places must make no difference."""
    agent = ROOT / "gpuctl/agent"
    line = f"import sys, json; sys.path.insert(0, {str(agent)!r}); import machine_agent as a; "
    said = on(t4, "python3", "-c", line + "print(json.dumps(a.probe('/root')))")
    probed = json.loads(said.text)
    _, told = asked(t4, "--path /root")
    facts = told["facts"]
    for key in ("cpus", "ram_gb", "cuda"):
        assert facts[key] == probed[key]
    assert facts["disk_free_gb"] == pytest.approx(probed["disk_free_gb"], rel=0.05)
    agents = [{key: card[key] for key in facts["gpus"][0]} for card in probed["gpus"]]
    assert facts["gpus"] == agents


def test_without_a_gpu_it_says_so_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preflight.main(["--min-vram", "8"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("no GPU; CUDA none; ")
    assert "found no GPU, needed one" in out
