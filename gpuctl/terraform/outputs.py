"""The machines that Terraform made, as its outputs tell. infra/README.md has their shape."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from gpuctl.errors import UsageError

OUTPUT = "gpuctl_machine"
_OURS = re.compile(rf"{OUTPUT}(_.+)?")
_SECONDS = 120.0  # the state may be far away
_Word = Annotated[str, Field(pattern=r"^[^-\s][^\s\x00-\x1f]*$", max_length=255)]


class TerraformMachine(BaseModel):
    """One machine of Terraform's, as the output `gpuctl_machine` describes it."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # modules may tell more

    provider: _Word
    id: _Word  # as the provider's adapter writes it
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    host: _Word
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    user: _Word
    # USD an hour, the whole machine; None: nobody said.
    price_hour: Annotated[Decimal, Field(ge=0, lt=10**6, allow_inf_nan=False)] | None
    gpu: str | None
    gpu_count: Annotated[int, Field(ge=0, le=64)]
    region: str
    spot: bool
    expires_at: AwareDatetime  # its hard end
    host_keys: tuple[str, ...] = ()  # empty: pinned on first use
    key_file: str | None = None  # here; None: the home's key, and SSH's own

    @field_validator("price_hour", mode="before")
    @classmethod
    def _exact(cls, value: Any) -> Any:
        return str(value) if isinstance(value, float) else value

    @field_validator("expires_at")
    @classmethod
    def _in_utc(cls, value: AwareDatetime) -> AwareDatetime:
        return value.astimezone(UTC)


def read_folder(folder: Path, environ: Mapping[str, str]) -> list[TerraformMachine]:
    """Return the machines of a Terraform folder: runs `terraform output -json` there.

    Raises:
        UsageError: there is no terraform, it fails, or its outputs hold no machine.
    """
    if not folder.is_dir():
        raise UsageError(f"--terraform: {folder} is not a folder")
    program = next((name for name in ("terraform", "tofu") if shutil.which(name)), None)
    if program is None:
        raise UsageError(
            "There is no terraform on this computer",
            next="Where there is one: `terraform output -json | gpuctl adopt --terraform -`.",
        )
    try:
        done = subprocess.run(
            [program, f"-chdir={folder}", "output", "-json", "-no-color"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**environ, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"},
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"`{program} output` gave no answer within {_SECONDS:g} s",
            next=f"Try `{program} -chdir={folder} output -json` by hand.",
        ) from error
    if done.returncode != 0:
        raise UsageError(
            f"`{program} output` failed in {folder}: {_last_line(done.stderr)}",
            next=f"`{program} -chdir={folder} init` and `apply` come first.",
        )
    return read_outputs(done.stdout, f"the outputs of {folder}", folder)


def read_outputs(text: str, where: str, folder: Path | None = None) -> list[TerraformMachine]:
    """Return the machines in what `terraform output -json` printed.

    Args:
        where: what the text is, for what goes wrong.
        folder: what a relative ``key_file`` starts from; the working folder by default.

    Raises:
        UsageError: it is not JSON, has no machine, or a key of one is wrong.
    """
    try:
        outputs = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"What came is not JSON: {error}", next=_HOW) from error
    if not isinstance(outputs, dict):
        raise UsageError("What came are not Terraform's outputs, but something else", next=_HOW)
    found = {name: value for name, value in outputs.items() if _OURS.fullmatch(name)}
    if not found:
        there = ", ".join(sorted(outputs)) or "none at all"
        raise UsageError(
            f"There is no output {OUTPUT} in {where}; found {there}",
            next=f'Add `output "{OUTPUT}" {{ value = module.trainer.{OUTPUT} }}` and apply.',
        )
    machines = [_machine(name, value, where, folder or Path.cwd()) for name, value in found.items()]
    names = [machine.name for machine in machines]
    if len(set(names)) < len(names):
        raise UsageError(f"Two machines in {where} have one name: {', '.join(names)}")
    return machines


def _machine(output: str, value: Any, where: str, folder: Path) -> TerraformMachine:
    # `terraform output -json` wraps values; `terraform output -json gpuctl_machine` does not.
    content = value["value"] if isinstance(value, dict) and "value" in value else value
    try:
        machine = TerraformMachine.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join([output, *map(str, first["loc"])])
        raise UsageError(
            f"{key} in {where}: {first['msg']}", next="infra/README.md has the shape."
        ) from None
    if machine.key_file is None:
        return machine
    file = folder / Path(machine.key_file).expanduser()
    if not file.is_file():
        raise UsageError(f"{output}.key_file in {where}: there is no {file} on this computer")
    return machine.model_copy(update={"key_file": str(file.absolute())})


def _last_line(said: str) -> str:
    lines = [line.strip(" │╷╵") for line in said.splitlines()]
    return next((line for line in lines if line), "it did not say why")[:300]


_HOW = "Pipe it in: `terraform output -json | gpuctl adopt --terraform -`."
