"""The command ``gpuctl``: a table of commands, each imported only when it is used.

Only click and the standard library are imported here: ``gpuctl --version`` and
``gpuctl --help`` must cost what importing click costs.
"""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from gpuctl import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

TOPICS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Rent": {
        "quote": ("gpuctl.cli.quote", "quote", "Offers from every provider, cheapest first."),
        "provision": ("gpuctl.cli.provision", "provision", "Rent one machine and reach it."),
        "adopt": ("gpuctl.cli.adopt", "adopt", "Borrow the machines that Terraform made."),
    },
    "Run": {
        "run": ("gpuctl.cli.run", "run", "The whole job of a train.yaml, to its end."),
        "resume": ("gpuctl.cli.run", "resume", "Carry a run on."),
        "cancel": ("gpuctl.cli.run", "cancel", "End a run and release its machines."),
        "runs": ("gpuctl.cli.runs", "runs", "The runs of this home."),
        "status": ("gpuctl.cli.runs", "status", "One run with its attempts."),
        "logs": ("gpuctl.cli.runs", "logs", "What a run's job wrote."),
        "checkpoints": ("gpuctl.cli.runs", "checkpoints", "What of a run is durable."),
    },
    "See and reach": {
        "list": ("gpuctl.cli.machines", "list_machines", "The machines of this home."),
        "ssh": ("gpuctl.cli.ssh", "ssh", "A shell on a machine, and its ports."),
        "exec": ("gpuctl.cli.machines", "exec_", "Run a command on a machine."),
        "upload": ("gpuctl.cli.data", "upload", "Send a file or a folder to a machine."),
        "download": ("gpuctl.cli.data", "download", "Fetch a file or a folder from a machine."),
        "extend": ("gpuctl.cli.machines", "extend", "Renew a machine's lease."),
    },
    "End and account": {
        "terminate": ("gpuctl.cli.ending", "terminate", "Destroy machines and prove it."),
        "forget": ("gpuctl.cli.forgetting", "forget", "Give up on proof, on your own word."),
        "reap": ("gpuctl.cli.ending", "reap", "Destroy what is ours and nobody looks after."),
        "audit": ("gpuctl.cli.ending", "audit", "Everything that still bills, and whose it is."),
        "cost": ("gpuctl.cli.money", "cost", "What was spent, on what."),
    },
    "Set up": {
        "init": ("gpuctl.cli.setup", "init", "Write a first train.yaml."),
        "doctor": ("gpuctl.cli.setup", "doctor", "Check credentials, home, ledger and guards."),
        "providers": ("gpuctl.cli.setup", "providers", "What each provider can do."),
        "completion": ("gpuctl.cli.setup", "completion", "Completion for a shell."),
    },
}
"""Topic -> command -> (module, attribute, one line of help)."""

COMMANDS = {name: place for commands in TOPICS.values() for name, place in commands.items()}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name, or say which one comes near."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the commands by topic."""
        for topic, commands in TOPICS.items():
            with formatter.section(topic):
                formatter.write_dl([(name, place[2]) for name, place in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command without importing any."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=place[2])
            for name, place in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExample:\n  gpuctl quote --gpu RTX-4090 --spot --hours 4",
)
@click.version_option(__version__, prog_name="gpuctl", message="%(prog)s %(version)s")
def cli() -> None:
    """Rent the cheapest GPU that finishes the job, and leave nothing billing."""
    from gpuctl.cli.environment import load_dotenv_file

    load_dotenv_file()


def run(argv: Sequence[str]) -> int:
    """Run one command line and return the exit code. Every error ends here."""
    try:
        code = cli.main(list(argv), prog_name="gpuctl", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        from gpuctl.cli.failure import report

        return report(error, argv)
    return code if isinstance(code, int) else 0


def main() -> NoReturn:
    """Be the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a job wrote may not fit the terminal's encoding; that must not end a command.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:  # set with -W or PYTHONWARNINGS
        # What libraries warn of is for programmers. They filter it themselves, but not safely
        # when several are imported at a time.
        warnings.simplefilter("ignore")
    sys.exit(run(sys.argv[1:]))
