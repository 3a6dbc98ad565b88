"""`ssh`: a shell on a machine, its ports, and what the system's own ssh needs to get in."""

from __future__ import annotations

from collections.abc import Sequence

import click

from gpuctl.cli import shapes
from gpuctl.cli.machines import living
from gpuctl.cli.opening import opened
from gpuctl.cli.options import example, json_option
from gpuctl.cli.output import emit, write
from gpuctl.cli.terminal import Terminal, line
from gpuctl.errors import UsageError
from gpuctl.fleet.context import Fleet
from gpuctl.ledger import MachineRow


@click.command(
    epilog=example(
        "gpuctl ssh demo",
        "gpuctl ssh demo -L 6006",
        "gpuctl ssh demo -- nvidia-smi -l",
        "gpuctl ssh --config --write",
    )
)
@click.argument("machine", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "-L",
    "here",
    multiple=True,
    metavar="PORT",
    help="Let a port here lead to the machine: 6006, or 8080:localhost:80. Repeatable.",
)
@click.option(
    "-R",
    "there",
    multiple=True,
    metavar="PORT",
    help="Let a port of the machine lead here: 5000, or 8080:localhost:80. Repeatable.",
)
@click.option(
    "--config",
    is_flag=True,
    help="Print what ssh, scp, rsync and editors need; without MACHINE for all machines.",
)
@click.option("--write", "keep", is_flag=True, help="With --config: keep it in a file instead.")
@json_option
def ssh(
    machine: str | None,
    command: tuple[str, ...],
    here: tuple[str, ...],
    there: tuple[str, ...],
    config: bool,
    keep: bool,
    as_json: bool,
) -> None:
    """Open a shell on a machine, or run COMMAND there. MACHINE is any unique part of its name.

    With --json nothing is opened: how to reach the machine is printed.
    """
    from gpuctl.remote.forwarding import forwarding

    forwards = [word for spec in here for word in forwarding("-L", spec)]
    forwards += [word for spec in there for word in forwarding("-R", spec)]
    if config:
        if command or forwards:
            raise UsageError("--config opens nothing, so it takes no command, -L or -R")
        if keep and machine:
            raise UsageError("The file has all machines: leave the name away, or --write")
        _configure(machine, keep, as_json)
        return
    if keep:
        raise UsageError("--write goes with --config", next="`gpuctl ssh --config --write`")
    if machine is None:
        raise click.UsageError("Missing argument 'MACHINE'.")
    if as_json and command:
        raise UsageError(
            "--json opens nothing, so it takes no command",
            next="`gpuctl exec MACHINE --json -- COMMAND` runs one.",
        )
    with opened() as fleet:
        row = living(fleet, machine)
        if as_json:
            emit({"machine": shapes.machine(row, fleet.clock.now())})
            return
        code = _open(fleet, row, _words(command), forwards)
    raise click.exceptions.Exit(code)


def _words(command: Sequence[str]) -> Sequence[str]:
    """Return what to run: a line in one argument goes through a shell, as with ssh."""
    if len(command) == 1 and len(command[0].split()) > 1:
        return ("sh", "-c", command[0])
    return command


def _open(fleet: Fleet, row: MachineRow, command: Sequence[str], forwards: Sequence[str]) -> int:
    from gpuctl.fleet.ready import reopen
    from providers.base import SshAccess

    if forwards and row.access is not None and row.access.get("kind") == "local":
        raise UsageError(
            f"{row.name} is on this computer: its ports are this computer's own already",
            machine=row.name,
            next="Leave -L and -R away, and open the port at localhost.",
        )
    ready = reopen(fleet, row)
    try:
        if not isinstance(ready.machine.access, SshAccess):
            return ready.connection.interactive(command)
        from gpuctl.remote.ssh import SshConnection

        assert isinstance(ready.connection, SshConnection)
        return ready.connection.interactive(command, forwards=forwards)
    finally:
        ready.connection.close()


def _configure(machine: str | None, keep: bool, as_json: bool) -> None:
    from gpuctl.fleet.ssh_config import (
        config_path,
        config_text,
        include_line,
        ssh_host,
        ssh_hosts,
        write_config,
    )

    with Terminal() as terminal, opened(terminal.say) as fleet:
        if machine is not None:
            hosts = [ssh_host(fleet, living(fleet, machine))]
        else:
            if keep:
                write_config(fleet)
            hosts, left_out = ssh_hosts(fleet)
            for word in left_out:
                terminal.warn(word)
        file, include = config_path(fleet), include_line(fleet)
    if as_json:
        emit(
            {
                "hosts": [{"machine": one.name, "alias": one.alias} for one in hosts],
                "config": config_text(hosts),
                "file": str(file) if keep else None,
                "include": include if keep else None,
            }
        )
    elif keep:
        named = ", ".join(one.alias or one.name for one in hosts) or "no machine"
        line(f"{file} has {named} now, and follows what gpuctl rents and ends.")
        line("Put this line on top of ~/.ssh/config, once:")
        line(f"  {include}")
    else:
        write(config_text(hosts))
