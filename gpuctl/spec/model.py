"""What a train.yaml can say: `RunSpec`, key by key. docs/train-yaml.md is the same for users.

The values inside are what code wants: GB as float, durations as timedelta, money as Decimal,
local paths absolute. `RunSpec.to_json` keeps them exactly, `RunSpec.from_json` reads them back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from gpuctl.errors import SpecError
from gpuctl.names import slug
from gpuctl.spec.fields import (
    BelowWorkdir,
    Command,
    CpuCount,
    Deadline,
    Duration,
    Flag,
    Gb,
    GpuCount,
    Gpus,
    Image,
    InWorkdir,
    Keep,
    LocalFolder,
    LocalOrS3,
    Name,
    NodeCount,
    ProviderName,
    Recoveries,
    Region,
    Secret,
    Settle,
    Spot,
    Target,
    Usd,
    Variable,
    VariableValue,
)
from gpuctl.spec.keys import fields_by_key
from gpuctl.spec.paths import Place
from gpuctl.spec.problems import KeyPath, dotted, one_line


class Section(BaseModel):
    """A group of keys. Unknown keys are refused; a key without a value is a key not given."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        known = fields_by_key(cls)
        return {key: each for key, each in value.items() if each is not None or key not in known}


class Resources(Section):
    """What to rent."""

    gpu: Gpus = Field(
        default=(),
        description="GPUs that will do, any of: a name (A100-40GB, RTX-4090) or a size (24GB+: any "
        "GPU with at least that much memory). Absent or 'none': CPU only.",
    )
    count: GpuCount = Field(default=1, description="GPUs a machine.")
    nodes: NodeCount = Field(default=1, description="Machines a run. Only 1 works today.")
    cpus: CpuCount | None = Field(default=None, description="CPU cores, at least.")
    memory: Gb | None = Field(default=None, description="RAM in GB, at least.")
    disk: Gb = Field(default=40.0, description="Disk in GB.")
    spot: Spot = Field(
        default="auto",
        description="true: only machines that may be taken away; false: only those that may not; "
        "auto: whichever finishes the job cheaper.",
    )
    providers: tuple[ProviderName, ...] = Field(
        default=(), description="Ask only these. Absent: everybody with credentials."
    )
    regions: tuple[Region, ...] = Field(default=(), description="Only these regions. Absent: all.")
    image: Image | None = Field(
        default=None,
        description="A container image, or on VMs a VM image or a docker: reference. Absent: the "
        "provider's own PyTorch image, or Ubuntu.",
    )
    max_price: Usd | None = Field(
        default=None, description="The most the whole machine may cost, in USD an hour."
    )


class Budget(Section):
    """When to stop, whatever the job is doing. The run then ends cleanly."""

    max_cost: Usd | None = Field(
        default=None, description="USD for the whole run, over all attempts."
    )
    max_duration: Duration | None = Field(
        default=None, description="Rented time, summed over all attempts, such as 4h."
    )
    deadline: Deadline | None = Field(
        default=None,
        description="A moment with a time zone (2026-11-22T18:00:00Z), or a duration from the "
        "start of the run (12h).",
    )


class Data(Section):
    """One thing to send to the machine."""

    source: LocalOrS3 = Field(
        alias="from",
        description="A file or folder, relative to train.yaml's folder, or s3://bucket/prefix.",
    )
    target: InWorkdir = Field(
        alias="to",
        description="Where it lands, relative to the workdir. With '/' at the end a file keeps its "
        "name.",
    )


class Preflight(Section):
    """What a machine must prove before set-up starts; if it cannot, the next offer is taken."""

    min_vram: Gb | None = Field(default=None, description="Memory of each GPU in GB, at least.")
    bf16: Flag = Field(default=False, description="Whether the GPU must compute in bfloat16.")
    disk_free: Gb | None = Field(default=None, description="Free disk in GB, at least.")
    run: Command | None = Field(
        default=None,
        description="A command that must exit with 0. If it does not, the job has failed.",
    )


class Checkpoints(Section):
    """What is kept while the job runs, so that losing a machine loses little."""

    dir: BelowWorkdir = Field(
        default="checkpoints",
        description="The folder, relative to the workdir, whose entries are checkpoints. The job "
        "finds it in $GPUCTL_CHECKPOINT_DIR.",
    )
    store: LocalOrS3 | None = Field(
        default=None,
        description="Where they are kept: s3://bucket/prefix, or a folder relative to train.yaml's "
        "folder. Absent: a folder in GPUCTL_HOME.",
    )
    keep: Keep = Field(default=3, description="How many of the newest are kept.")
    settle: Settle = Field(
        default=timedelta(seconds=2),
        description="How long an entry must be quiet before it is taken. One that is renamed into "
        "place is taken at once.",
    )


class Output(Section):
    """One result to fetch when the job has ended."""

    source: InWorkdir = Field(
        alias="from", description="A file or folder, relative to the workdir."
    )
    target: Target = Field(
        alias="to",
        description="A folder, relative to train.yaml's folder and inside it, or "
        "s3://bucket/prefix.",
    )


class OnInterruption(Section):
    """What to do when a machine is taken away."""

    max_recoveries: Recoveries = Field(
        default=5, description="How many machines may be lost before the run gives up."
    )


class RunSpec(Section):
    """One training job, as train.yaml describes it."""

    name: Name = Field(
        default="run",
        description="What the run is called. Absent: the name of train.yaml's folder.",
    )
    resources: Resources = Field(default=Resources(), description="What to rent.")
    budget: Budget = Field(default=Budget(), description="When to stop, whatever the job is doing.")
    workdir: LocalFolder = Field(
        default=".",
        description="The folder that is sent to the machine, relative to train.yaml's folder. "
        ".gitignore and .gpuctlignore are honoured.",
    )
    data: tuple[Data, ...] = Field(default=(), description="What else is sent to the machine.")
    env: Mapping[Variable, VariableValue] = Field(
        default={}, description="Environment variables of the job, as written; nothing is expanded."
    )
    secrets: tuple[Secret, ...] = Field(
        default=(), description="Names of variables whose values come from your environment."
    )
    preflight: Preflight = Field(
        default=Preflight(), description="What a machine must prove before set-up starts."
    )
    setup: Command | None = Field(default=None, description="A command that prepares the machine.")
    run: Command = Field(description="The command that trains. The only key that is required.")
    checkpoints: Checkpoints = Field(
        default=Checkpoints(), description="What is kept while the job runs."
    )
    outputs: tuple[Output, ...] = Field(default=(), description="What is fetched at the end.")
    on_interruption: OnInterruption = Field(
        default=OnInterruption(), description="What to do when a machine is taken away."
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_place(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, dict) or not isinstance(info.context, Place):
            return value
        defaults = {"name": slug(info.context.folder.name), "workdir": "."}
        return value | {key: each for key, each in defaults.items() if value.get(key) is None}

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for key, message in _conflicts(self):
            raise PydanticCustomError("conflict", "{message}", {"message": message, "key": key})
        return self

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, exact. It holds the names of secrets, never their values."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned. Paths in it are taken as they are.

        Raises:
            SpecError: it is not what `to_json` of this version returns, or names a provider that
                is no longer installed.
        """
        try:
            return cls.model_validate(dict(stored))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = dotted(first["loc"])
            raise SpecError(
                one_line(f"the stored spec cannot be used: {key}: {first['msg']}"),
                next="Use the gpuctl version and provider packages that started this run.",
            ) from None


def missing_secrets(spec: RunSpec, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the secrets that have no value, or an empty one, in an environment."""
    return tuple(name for name in spec.secrets if not environ.get(name))


# ------------------------------------------------------------------- impossible combinations


def _conflicts(spec: RunSpec) -> Iterator[tuple[KeyPath, str]]:
    yield from _gpu_conflicts(spec)
    resources, preflight = spec.resources, spec.preflight
    if resources.nodes > 1:
        yield (
            ("resources", "nodes"),
            "more than one machine a run is not built yet; use 1, and resources.count for more "
            "GPUs on it",
        )
    if preflight.disk_free is not None and preflight.disk_free > resources.disk:
        yield (
            ("preflight", "disk_free"),
            f"{preflight.disk_free:g} GB cannot be free on a disk of {resources.disk:g} GB; "
            "raise resources.disk",
        )
    for index, secret in enumerate(spec.secrets):
        if secret in spec.env:
            yield ("secrets", index), f"{secret} is also in env; keep it in one of them"
        if secret in spec.secrets[:index]:
            yield ("secrets", index), f"{secret} is named twice"
    folder = _parts(spec.checkpoints.dir)
    for index, item in enumerate(spec.data):
        if _parts(item.target)[: len(folder)] == folder:
            yield (
                ("data", index, "to"),
                "data inside checkpoints.dir would be taken for checkpoints; put it elsewhere",
            )


def _gpu_conflicts(spec: RunSpec) -> Iterator[tuple[KeyPath, str]]:
    if spec.resources.gpu:
        return
    advice = "but resources.gpu asks for none; add it, such as gpu: 24GB+"
    if spec.resources.count > 1:
        yield ("resources", "count"), f"{spec.resources.count} GPUs are wanted, {advice}"
    if spec.preflight.min_vram is not None:
        yield ("preflight", "min_vram"), f"GPU memory is wanted, {advice}"
    if spec.preflight.bf16:
        yield ("preflight", "bf16"), f"bfloat16 on a GPU is wanted, {advice}"


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))
