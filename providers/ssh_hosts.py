"""The hosts of the `ssh` provider: a YAML file, or names from the user's ssh configuration.

    hosts:
      - gpubox                      # a name that `ssh gpubox` understands
      - name: workstation
        host: 192.168.1.20          # default: the name
        user: me
        port: 22
        key: ~/.ssh/id_lab
        price_hour: 0.35            # USD, default 0
        region: office              # default: the name
        folder: /data/gpuctl        # where machines are made there, default ~/.gpuctl
        python: ~/conda/bin/python  # what jobs get a Python on top of, default python3
        known_hosts: ~/lab_hosts    # its host key is there, under its name; nothing else is trusted

The list alone, without ``hosts:``, does too. ``GPUCTL_SSH_HOSTS`` names the file (default
``hosts.yaml`` in GPUCTL_HOME), or the names themselves, separated by commas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from providers.base import InvalidRequest

SETTING = "GPUCTL_SSH_HOSTS"
DEFAULT_CLAIM = "/var/tmp/gpuctl-claim"  # noqa: S108 - made exclusively; see ssh_host.py
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_Word = Annotated[str, Field(pattern=r"^[^-\s][^\s\x00-\x1f]*$", max_length=255)]
_RemotePath = Annotated[str, Field(pattern=r"^[~/][^\x00-\x1f]*$", max_length=1024)]


class HostEntry(BaseModel):
    """One host as its user describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=False)

    name: Annotated[str, Field(pattern=_NAME)]
    host: _Word | None = None
    user: _Word | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    key: str | None = None
    price_hour: Annotated[Decimal, Field(ge=0, allow_inf_nan=False)] = Decimal(0)
    region: _Word | None = None
    folder: _RemotePath = "~/.gpuctl"
    python: Annotated[str, Field(pattern=r"^[^-\s\x00-\x1f][^\x00-\x1f]*$")] = "python3"
    claim: Annotated[str, Field(pattern=r"^/[^\x00-\x1f]*$")] = DEFAULT_CLAIM
    known_hosts: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class _HostsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hosts: list[HostEntry]

    @model_validator(mode="before")
    @classmethod
    def _list_alone(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value
        if not isinstance(value, list):
            raise ValueError("write a list of hosts below it, as in docs/own-hosts.md")
        return {"hosts": value}


def read_hosts(environ: Mapping[str, str], home: Path) -> Sequence[HostEntry]:
    """Return the hosts that the settings name; none when there are no settings.

    Raises:
        InvalidRequest: the file cannot be read or is not understood; says file, line and key.
    """
    given = (environ.get(SETTING) or "").strip()
    if not given:
        file = home / "hosts.yaml"
        return _from_file(file) if file.exists() else ()
    if "/" in given or given.endswith((".yaml", ".yml")):
        return _from_file(Path(given).expanduser())
    names = [name.strip() for name in given.split(",") if name.strip()]
    wrong = [name for name in names if not re.match(_NAME, name)]
    if wrong:
        raise InvalidRequest(
            f"{SETTING}: {wrong[0]!r} is no name of a host. Write names from ~/.ssh/config, "
            "separated by commas, or the path of a YAML file."
        )
    return _unique([HostEntry(name=name) for name in names], SETTING)


def _from_file(file: Path) -> Sequence[HostEntry]:
    try:
        text = file.read_text(encoding="utf-8")
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"The hosts file {file} cannot be read: {why}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        why = getattr(error, "problem", None) or "it is no YAML"
        raise InvalidRequest(f"{where}: {why}.") from error
    try:
        return _unique(_HostsFile.model_validate(content).hosts, str(file))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = [part for part in first["loc"] if isinstance(part, str | int)]
        if isinstance(content, list):
            path = path[1:]  # nobody wrote `hosts:`
        key = ".".join(map(str, path)) or "hosts"
        line = _line_of(document, path)
        why = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"{file}, line {line}: {key}: {why}.") from None


def _line_of(node: yaml.Node | None, path: Sequence[str | int]) -> int:
    """Return the line of a key, or of what is nearest above it."""
    line = node.start_mark.line + 1 if node else 1
    for part in path:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    line, found = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = node.value[part]
            line = found.start_mark.line + 1
        if found is None:
            break
        node = found
    return line


def _unique(hosts: Sequence[HostEntry], where: str) -> Sequence[HostEntry]:
    names = [host.name for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"{where}: the host {twice[0]!r} is there twice.")
    return hosts
