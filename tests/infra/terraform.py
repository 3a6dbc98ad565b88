"""Terraform for tests: found or skipped, with its providers from folders and never fetched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.clouds.conformance.environments import python_with

INFRA = Path(__file__).resolve().parents[2] / "infra"
AWS, HCLOUD = "hashicorp/aws", "hetznercloud/hcloud"
HCLOUD_VERSION = "1.68.0"
_REGISTRY = "registry.terraform.io"  # only the name of a folder here
_STUB = Path(__file__).with_name("hcloud_schema_stub.py")
_SOURCE = re.compile(r'^\s*source\s*=\s*"([a-z]+/[a-z]+)"', re.MULTILINE)
_SECONDS = 300
_PLUGIN_DIR = "TF_PLUGIN_DIR"


@dataclass(frozen=True)
class Root:
    """A folder that Terraform works in, made ready.

    Args:
        folder: with the root module.
        environ: for Terraform besides its own settings; nothing else of this process's is seen.
    """

    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, code: int | None = 0) -> str:
        """Run a command and return what it said on stdout.

        Args:
            code: the exit status that it must have; None for any.
        """
        done = subprocess.run(
            ["terraform", *arguments, "-no-color"],
            cwd=self.folder,
            env={**_settings(self.folder), **self.environ},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr if code != 0 else done.stdout

    def init(self) -> None:
        """Make it ready; skips visibly where a provider is missing."""
        mirrors = [f"-plugin-dir={mirror}" for mirror in plugin_folders(self.folder)]
        self.run("init", "-input=false", *mirrors)


def need_terraform() -> None:
    """Skip visibly where there is no Terraform."""
    if shutil.which("terraform") is None:
        pytest.skip("there is no terraform here: nothing of infra/ was checked with it")


def copy_of_infra(folder: Path) -> Path:
    """Return a copy of infra/ to work in: init leaves things behind."""
    shutil.copytree(
        INFRA, folder / "infra", ignore=shutil.ignore_patterns(".terraform*", "terraform.tfstate*")
    )
    return folder / "infra"


def providers_of(folder: Path) -> list[str]:
    """Return the providers that a root module names."""
    return sorted(set(_SOURCE.findall((folder / "versions.tf").read_text())))


def plugin_folders(folder: Path) -> list[str]:
    """Return where the providers of a root module are found; skips visibly where one is not."""
    found = {AWS: _aws_mirror, HCLOUD: lambda: _hcloud_mirror(folder)}
    return [found[name]() for name in providers_of(folder)]


def _aws_mirror() -> str:
    mirror = os.environ.get(_PLUGIN_DIR, "")
    if not mirror or not list(Path(mirror).glob(f"*/{AWS}/*")):
        pytest.skip(f"{_PLUGIN_DIR} names no folder with Terraform's AWS provider")
    return mirror


def _hcloud_mirror(folder: Path) -> str:
    """Make the stand-in findable: a script where the provider would be."""
    python = python_with("hcloud-schema-stub", "tf==1.2.0")
    mirror = folder / ".hcloud-schema-stub"
    place = mirror / _REGISTRY / HCLOUD / HCLOUD_VERSION / "linux_amd64"
    place.mkdir(parents=True, exist_ok=True)
    program = place / f"terraform-provider-hcloud_v{HCLOUD_VERSION}"
    program.write_text(f"#!/bin/sh\nHOME='{mirror}' exec '{python}' -I '{_STUB}'\n")
    program.chmod(0o755)
    return str(mirror)


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TF_CLI_CONFIG_FILE": os.devnull,  # a preset may lead elsewhere, or nowhere
        "TF_IN_AUTOMATION": "1",
        "CHECKPOINT_DISABLE": "1",
    }
