"""Train a small network on handwritten digits, in a way that survives losing the machine.

Knows nothing of gpuctl beyond two environment variables, and runs without it as well:

    python train.py --epochs 3 --out out --checkpoints ckpt
    python train.py --epochs 3 --out out --checkpoints ckpt --resume ckpt/epoch-02-step-000406.npz

What makes it resumable, and worth copying into a script of your own:

- A checkpoint holds *everything* that the next step depends on: weights, optimiser moments,
  the random generator, the position inside the epoch. So an interrupted training ends with the
  same weights, bit for bit, as one that was left alone (on the same kind of CPU).
- A checkpoint is written under a hidden name and renamed when it is whole.
- SIGTERM finishes the step at hand, writes one more checkpoint and exits 143.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import sys
import zipfile
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

LAYERS = (64, 1024, 384, 10)  # 8x8 pixels in, one score a digit out
BATCH = 64
PEAK_RATE = 1e-3
DECAY = 1e-2
BETAS = (0.9, 0.999)
SPLIT_SEED = 0
EXIT_TERMINATED = 143  # 128 + SIGTERM

Weights = list[np.ndarray]  # a matrix and a bias for each layer, in turn


@dataclass
class Digits:
    """Pixels from 0 to 1 as rows of 64, and which digit each row shows."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass
class Progress:
    """Where the training stands. Together with the arrays, all that a checkpoint needs."""

    seed: int
    epochs: int
    epoch: int = 0  # finished ones
    step: int = 0  # finished ones, over all epochs
    step_in_epoch: int = 0
    loss_sum: float = 0.0  # over the steps of the epoch at hand
    random: dict[str, Any] = field(default_factory=dict)  # generator at the start of the epoch
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Training:
    """Progress, weights, and AdamW's first and second moments."""

    progress: Progress
    weights: Weights
    first: Weights
    second: Weights


def load_data() -> Digits:
    """Load the 1,797 digits that ship in scikit-learn; each training digit also in 8 shifts."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    test, train = order[:360], order[360:]
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    padded = np.pad(images[train], ((0, 0), (1, 1), (1, 1)))
    shifted = [padded[:, 1 + d : 9 + d, 1 + r : 9 + r] for d, r in shifts]
    return Digits(
        train_x=np.concatenate(shifted).reshape(-1, 64),
        train_y=np.tile(labels[train], len(shifts)),
        test_x=images[test].reshape(-1, 64),
        test_y=labels[test],
    )


def start(seed: int, epochs: int) -> Training:
    """Return a training that has not made a step yet."""
    random = np.random.default_rng(seed)
    weights: Weights = []
    for inputs, outputs in pairwise(LAYERS):
        scale = math.sqrt(2 / inputs)
        weights.append((random.standard_normal((inputs, outputs)) * scale).astype(np.float32))
        weights.append(np.zeros(outputs, dtype=np.float32))
    progress = Progress(seed=seed, epochs=epochs, random=random.bit_generator.state)
    zeros = [np.zeros_like(array) for array in weights]
    return Training(progress, weights, zeros, [array.copy() for array in zeros])


def forward(weights: Weights, x: np.ndarray) -> list[np.ndarray]:
    """Return the input and every layer's output; the last one holds raw scores."""
    outputs = [x]
    for index in range(0, len(weights), 2):
        x = outputs[-1] @ weights[index] + weights[index + 1]
        outputs.append(x if index == len(weights) - 2 else np.maximum(x, 0))
    return outputs


def gradients(weights: Weights, x: np.ndarray, y: np.ndarray) -> tuple[float, Weights]:
    """Return the mean cross-entropy over a batch and its gradient for every array."""
    outputs = forward(weights, x)
    scores = outputs[-1] - outputs[-1].max(axis=1, keepdims=True)
    chances = np.exp(scores)
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = float(-np.log(chances[rows, y] + 1e-12).mean())
    chances[rows, y] -= 1
    error = chances / len(y)
    found: Weights = []
    for index in range(len(weights) - 2, -1, -2):
        below = outputs[index // 2]
        found[:0] = [below.T @ error, error.sum(axis=0)]
        error = (error @ weights[index].T) * (below > 0)
    return loss, found


def update(training: Training, grads: Weights, rate: float) -> None:
    """Make one AdamW step, in place. Counts it."""
    training.progress.step += 1
    b1, b2 = BETAS
    fix1 = 1 - b1**training.progress.step
    fix2 = 1 - b2**training.progress.step
    for weight, m, v, grad in zip(
        training.weights, training.first, training.second, grads, strict=True
    ):
        m += (1 - b1) * (grad - m)
        v += (1 - b2) * (grad * grad - v)
        weight -= rate * ((m / fix1) / (np.sqrt(v / fix2) + 1e-8) + DECAY * weight)


def accuracy(weights: Weights, data: Digits) -> float:
    """Return the share of test digits that are recognised."""
    return float((forward(weights, data.test_x)[-1].argmax(axis=1) == data.test_y).mean())


def save(training: Training, folder: Path) -> Path:
    """Write a checkpoint: under a hidden name first, renamed when it is whole and on disk.

    The last number in its name is the step, which is what `gpuctl checkpoints` shows.
    """
    progress = training.progress
    name = f"epoch-{progress.epoch:02d}-step-{progress.step:06d}.npz"
    draft = folder / f".{name}"
    with draft.open("wb") as file:
        np.savez(file, progress=np.array(json.dumps(asdict(progress))), **arrays(training))
        file.flush()
        os.fsync(file.fileno())
    return draft.rename(folder / name)


def arrays(training: Training) -> dict[str, np.ndarray]:
    """Return every array of a training by the name it has in a checkpoint."""
    kinds = {"weight": training.weights, "first": training.first, "second": training.second}
    return {f"{kind}{i}": array for kind, kept in kinds.items() for i, array in enumerate(kept)}


def restore(file: Path) -> Training:
    """Read a checkpoint. Exits with a sentence when it is not one of ours."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            progress = Progress(**json.loads(str(kept["progress"])))
            training = start(progress.seed, progress.epochs)
            for name, array in arrays(training).items():
                array[...] = kept[name]
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        sys.exit(f"{file} cannot be resumed from: {error}")
    training.progress = progress
    return training


class Termination:
    """Whether somebody has asked us to stop (SIGTERM)."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


def train(training: Training, data: Digits, checkpoints: Path, termination: Termination) -> bool:
    """Train until the last epoch is done. Returns False when it was asked to stop before."""
    progress = training.progress
    steps = math.ceil(len(data.train_y) / BATCH)
    while progress.epoch < progress.epochs:
        random = np.random.default_rng()
        random.bit_generator.state = progress.random
        order = random.permutation(len(data.train_y))
        while progress.step_in_epoch < steps:
            if termination.asked:
                print(f"SIGTERM: wrote {save(training, checkpoints).name}", flush=True)
                return False
            batch = order[progress.step_in_epoch * BATCH :][:BATCH]
            loss, grads = gradients(training.weights, data.train_x[batch], data.train_y[batch])
            done = progress.step / (progress.epochs * steps)
            update(training, grads, PEAK_RATE * (1 + math.cos(math.pi * done)) / 2)
            progress.step_in_epoch += 1
            progress.loss_sum += loss
        finish_epoch(progress, random, progress.loss_sum / steps, accuracy(training.weights, data))
        save(training, checkpoints)
        print(epoch_line(progress), flush=True)
    return True


def finish_epoch(
    progress: Progress, random: np.random.Generator, loss: float, right: float
) -> None:
    """Count the epoch and keep the generator as the next epoch must find it."""
    progress.epoch += 1
    progress.step_in_epoch = 0
    progress.loss_sum = 0.0
    progress.random = dict(random.bit_generator.state)
    progress.curve.append({"epoch": progress.epoch, "loss": loss, "accuracy": right})


def epoch_line(progress: Progress) -> str:
    """Say how the last epoch went."""
    last = progress.curve[-1]
    where = f"epoch {progress.epoch}/{progress.epochs}"
    return f"{where} loss {last['loss']:.4f} accuracy {last['accuracy']:.4f}"


def fingerprint(weights: Weights) -> str:
    """Return one SHA-256 over all weights: equal only when every bit is."""
    return hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()


def write_results(training: Training, out: Path) -> None:
    """Write the model, the numbers and the learning curve."""
    progress = training.progress
    np.savez(out / "model.npz", **{f"weight{i}": w for i, w in enumerate(training.weights)})
    metrics = {
        "accuracy": progress.curve[-1]["accuracy"],
        "loss": progress.curve[-1]["loss"],
        "epochs": progress.epoch,
        "steps": progress.step,
        "weights_sha256": fingerprint(training.weights),
        "curve": progress.curve,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    draw_curve(progress.curve, out / "learning-curve.png")


def draw_curve(curve: list[dict[str, float]], file: Path) -> None:
    """Draw loss and accuracy over the epochs."""
    from matplotlib.figure import Figure  # slow to import, and wanted only at the very end

    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    rights = losses.twinx()
    epochs = [point["epoch"] for point in curve]
    losses.semilogy(epochs, [point["loss"] for point in curve], "C0.-")
    rights.plot(epochs, [point["accuracy"] for point in curve], "C1.-")
    losses.set_xlabel("epoch")
    losses.set_ylabel("training loss", color="C0")
    rights.set_ylabel("test accuracy", color="C1")
    figure.savefig(file, dpi=120)


def arguments() -> argparse.Namespace:
    """Parse the command line; what gpuctl sets is the default."""
    environ = os.environ
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path(environ.get("GPUCTL_CHECKPOINT_DIR") or "checkpoints"),
        help="folder for a checkpoint an epoch (default: $GPUCTL_CHECKPOINT_DIR, or checkpoints)",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        default=environ.get("GPUCTL_RESUME_FROM") or None,
        help="checkpoint to carry on from (default: $GPUCTL_RESUME_FROM, if any)",
    )
    given = parser.parse_args()
    if given.epochs < 1:
        parser.error("--epochs must be at least 1")
    return given


def main() -> int:
    """Train, or carry on; write the results unless asked to stop before the end."""
    termination = Termination()
    given = arguments()
    training = start(given.seed, given.epochs)
    if given.resume:
        training = restore(given.resume)
        kept = training.progress
        if (kept.seed, kept.epochs) != (given.seed, given.epochs):
            sys.exit(
                f"{given.resume} belongs to another training: it has --seed {kept.seed} "
                f"--epochs {kept.epochs}, this one --seed {given.seed} --epochs {given.epochs}"
            )
        print(f"resumed from {given.resume.name}, {kept.epoch} epochs done", flush=True)
    given.checkpoints.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    # One thread: sums in another order would give other last bits on another number of cores.
    with threadpool_limits(limits=1):
        if not train(training, load_data(), given.checkpoints, termination):
            return EXIT_TERMINATED
    write_results(training, given.out)
    print(f"done: weights sha256 {fingerprint(training.weights)[:16]}…", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
