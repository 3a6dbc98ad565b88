"""How much `pip install gpuctl` brings: packages and megabytes, without extras and without pip.

Builds a fresh virtual environment in a temporary folder and installs this checkout into it, as a
user would. Needs the network (or a pip that finds its packages elsewhere).

    python benchmarks/footprint.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL_PACKAGES = 45
GOAL_MB = 160.0
PARTS = ("pyproject.toml", "README.md", "LICENSE", "gpuctl", "providers")
BESIDE = {"pip", "setuptools", "wheel"}  # what a new environment has by itself
SIZES = """
import importlib.metadata as metadata, json, os
print(json.dumps({
    one.metadata["Name"]: sum(
        os.path.getsize(one.locate_file(file))
        for file in one.files or () if os.path.exists(one.locate_file(file))
    )
    for one in metadata.distributions()
}))
"""


def main() -> None:
    """Install, count, print."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "bin", "python")
        venv.create(folder, with_pip=True)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        # A copy: the build would leave its own folder in the checkout, and take what lies there.
        checkout = Path(folder, "checkout")
        for name in PARTS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, checkout / name)
            else:
                checkout.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, checkout)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, str(checkout)], check=True, env=environ)
        said = subprocess.run(
            [str(python), "-c", SIZES], check=True, capture_output=True, env=environ, cwd=folder
        )
    sizes: dict[str, int] = json.loads(said.stdout)
    ours = {name: size for name, size in sizes.items() if name.lower() not in BESIDE}
    total = sum(ours.values()) / 1e6
    print(
        f"{len(ours)} packages (goal <= {GOAL_PACKAGES}), {total:.1f} MB (goal <= {GOAL_MB:g} MB)"
    )
    for name, size in sorted(ours.items(), key=lambda item: -item[1])[:10]:
        print(f"  {name:24}{size / 1e6:>8.1f} MB")
    if len(ours) > GOAL_PACKAGES or total > GOAL_MB:
        sys.exit("That is more than the goal.")


if __name__ == "__main__":
    main()
