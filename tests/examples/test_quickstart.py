"""The quickstart trains for real, and being interrupted changes nothing about its result.

It runs as its user would run it: as a plain script, in a virtual environment with its own
requirements (made once in .make/, and again when requirements.txt changes).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "quickstart"
REQUIREMENTS = EXAMPLE / "requirements.txt"
EPOCHS = 4
STEPS_AN_EPOCH = 203  # 1437 digits in 9 positions, 64 at a time

pytestmark = pytest.mark.timeout(900)  # the first test installs scikit-learn


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter of a virtual environment with the example's requirements."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / ".make" / f"quickstart-{key}"
    stamp = folder / "installed"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes, one installation
        if not stamp.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, "-r", REQUIREMENTS], check=True, timeout=800)
            stamp.touch()
    return folder / "bin" / "python"


class Folders:
    """Where one training writes."""

    def __init__(self, root: Path) -> None:
        self.out = root / "out"
        self.checkpoints = root / "checkpoints"

    def newest(self) -> Path | None:
        """The newest checkpoint that is visible; names sort by epoch and step."""
        return max(self.checkpoints.glob("epoch-*.npz"), default=None)

    def metrics(self) -> dict[str, Any]:
        """What the training says about its result."""
        loaded: dict[str, Any] = json.loads((self.out / "metrics.json").read_text())
        return loaded


def begin(
    python: Path,
    folders: Folders,
    *flags: str,
    script: Sequence[str] = (str(EXAMPLE / "train.py"),),
    **environ: str,
) -> subprocess.Popen[str]:
    """Start a training the way gpuctl does: folder and checkpoint come by the environment."""
    given = {
        "GPUCTL_CHECKPOINT_DIR": str(folders.checkpoints),
        "GPUCTL_RESUME_FROM": str(folders.newest() or ""),
    }
    return subprocess.Popen(
        [str(python), *script, "--epochs", str(EPOCHS), "--out", str(folders.out), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **given, **environ},
    )


def lines_until(process: subprocess.Popen[str], start: str) -> Iterator[str]:
    """Yield what the process prints, up to and with the line that begins with ``start``."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line.rstrip("\n")
        if line.startswith(start):
            return
    pytest.fail(f"it ended without printing {start!r}: {process.communicate()[1]}")


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for success; return the rest of what it prints."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="session")
def undisturbed(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A training that nobody interrupted."""
    folders = Folders(tmp_path_factory.mktemp("undisturbed"))
    finish(begin(python, folders))
    return folders


def test_it_learns_and_writes_what_train_yaml_promises(undisturbed: Folders) -> None:
    metrics = undisturbed.metrics()
    assert metrics["accuracy"] > 0.95
    assert metrics["steps"] == EPOCHS * STEPS_AN_EPOCH
    losses = [point["loss"] for point in metrics["curve"]]
    assert len(losses) == EPOCHS
    assert losses == sorted(losses, reverse=True)
    assert (undisturbed.out / "model.npz").stat().st_size > 1_000_000
    picture = (undisturbed.out / "learning-curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 5_000
    names = sorted(path.name for path in undisturbed.checkpoints.iterdir())
    assert names == [
        f"epoch-{epoch:02d}-step-{epoch * STEPS_AN_EPOCH:06d}.npz" for epoch in range(1, EPOCHS + 1)
    ]


def test_killed_in_the_middle_again_and_again_ends_with_the_same_weights(
    python: Path, undisturbed: Folders, tmp_path: Path
) -> None:
    folders = Folders(tmp_path)
    for epoch in range(1, EPOCHS):
        process = begin(python, folders)
        seen = list(lines_until(process, f"epoch {epoch}/{EPOCHS} "))
        process.kill()  # in the middle of the next epoch
        process.wait()
        if epoch > 1:
            assert seen[0].startswith("resumed from epoch-"), seen
            assert len(seen) == 2, "it did an epoch again that a checkpoint already held"
    rest = finish(begin(python, folders))
    assert f"epoch {EPOCHS}/{EPOCHS} " in rest
    assert folders.metrics() == undisturbed.metrics()  # weights' SHA-256 and every loss


# Starts train.py as it is, except that it sends itself SIGTERM while it makes step N.
TERMINATED_AT = """
import os, signal, sys
import train
step, plain = int(sys.argv.pop(1)), train.gradients
def gradients(*given):
    global step
    step -= 1
    if step == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(*given)
train.gradients = gradients
sys.exit(train.main())
"""


def test_sigterm_finishes_the_step_and_keeps_the_middle_of_an_epoch(
    python: Path, undisturbed: Folders, tmp_path: Path
) -> None:
    folders = Folders(tmp_path)
    done = 0
    for more in (150, 3, 300, STEPS_AN_EPOCH):
        process = begin(
            python, folders, script=("-c", TERMINATED_AT, str(more)), PYTHONPATH=str(EXAMPLE)
        )
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143, err
        done += more
        newest = folders.newest()
        assert newest is not None
        assert newest.name == f"epoch-{done // STEPS_AN_EPOCH:02d}-step-{done:06d}.npz"
        assert out.endswith(f"SIGTERM: wrote {newest.name}\n")
    assert "epoch 4/4 " in finish(begin(python, folders))
    assert folders.metrics() == undisturbed.metrics()


def test_a_finished_training_resumes_to_its_results(
    python: Path, undisturbed: Folders, tmp_path: Path
) -> None:
    process = begin(python, Folders(tmp_path), GPUCTL_RESUME_FROM=str(undisturbed.newest()))
    assert "done: weights sha256" in finish(process)
    assert Folders(tmp_path).metrics() == undisturbed.metrics()


@pytest.mark.parametrize("damage", ["truncated", "text", "missing"])
def test_a_damaged_checkpoint_is_refused_in_a_sentence(
    python: Path, undisturbed: Folders, tmp_path: Path, damage: str
) -> None:
    broken = tmp_path / "epoch-01.npz"
    whole = undisturbed.newest()
    assert whole is not None
    if damage == "truncated":
        broken.write_bytes(whole.read_bytes()[:100_000])
    elif damage == "text":
        broken.write_text("not a checkpoint")
    process = begin(python, Folders(tmp_path), GPUCTL_RESUME_FROM=str(broken))
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert err.startswith(f"{broken} cannot be resumed from: ")
    assert "Traceback" not in err


def test_a_checkpoint_of_another_training_is_refused(
    python: Path, undisturbed: Folders, tmp_path: Path
) -> None:
    newest = str(undisturbed.newest())
    process = begin(python, Folders(tmp_path), "--seed", "2", GPUCTL_RESUME_FROM=newest)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "belongs to another training" in err


def test_runs_as_a_plain_script_from_its_readme(python: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if "GPUCTL" not in name}
    done = subprocess.run(
        [python, EXAMPLE / "train.py", "--epochs", "1", "--out", "out", "--checkpoints", "ckpt"],
        cwd=tmp_path, env=clean, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "metrics.json").exists()
    assert [path.name for path in (tmp_path / "ckpt").iterdir()] == ["epoch-01-step-000203.npz"]


def test_train_yaml_names_files_that_are_there() -> None:
    spec = yaml.safe_load((EXAMPLE / "train.yaml").read_text())
    assert "gpu" not in spec["resources"]
    assert f"-r {REQUIREMENTS.name}" in spec["setup"]
    assert spec["run"].startswith("python train.py ")
    assert spec["outputs"] == [{"from": "out", "to": "./artifacts"}]
