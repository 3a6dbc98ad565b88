"""`init`, `doctor`, `providers` and `completion`: getting started."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gpuctl.cli.opening import opened
from gpuctl.cli.options import example, json_option
from gpuctl.cli.output import Partial, emit, write
from gpuctl.cli.terminal import Terminal, line, table
from gpuctl.errors import GpuctlError, NoCredentials, UsageError


@click.command(
    epilog=example("gpuctl init", "gpuctl init ~/project --force", "gpuctl init --schema")
)
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--schema", is_flag=True, help="Print the JSON Schema of train.yaml; write nothing.")
@click.option("--force", is_flag=True, help="Replace a train.yaml that is there.")
@json_option
def init(folder: Path, schema: bool, force: bool, as_json: bool) -> None:
    """Write a first train.yaml for the project in FOLDER. Nothing of the project is executed."""
    if schema:
        from gpuctl.spec import json_schema

        if as_json:
            emit(json_schema())
        else:
            write(json.dumps(json_schema(), indent=2) + "\n")
        return
    from gpuctl.starter import starter_yaml

    file = folder / "train.yaml"
    try:
        text = starter_yaml(folder)
        # "x" makes sure that nothing is replaced which appeared in between.
        with file.open("w" if force else "x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError as error:
        raise UsageError(
            f"{file} is there already", next="`gpuctl init --force` replaces it."
        ) from error
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}") from error
    if as_json:
        emit({"file": str(file.absolute())})
        return
    line(f"Wrote {file}. Look it over, then:")
    line(f"  gpuctl run {file}")


@click.command(
    epilog=example(
        "gpuctl doctor",
        "gpuctl doctor --provider local --json",
        "gpuctl doctor --aws-policy > gpuctl-policy.json",
    )
)
@click.option("--provider", "providers", multiple=True, metavar="P", help="Only these. Repeatable.")
@click.option(
    "--aws-policy",
    is_flag=True,
    help="Print the IAM policy with the least rights that gpuctl needs on AWS, and stop.",
)
@json_option
def doctor(providers: tuple[str, ...], aws_policy: bool, as_json: bool) -> None:
    """Check home, ledger, guards, clock, and every provider's key, rights and balance.

    Rents nothing. Exit 4 when the key of a provider that was named does not work, 1 when
    something on this computer is wrong.
    """
    if aws_policy:
        from providers.aws_policy import policy

        if as_json:
            emit(policy())
        else:
            write(json.dumps(policy(), indent=2) + "\n")
        return
    from gpuctl.fleet.health import check_all

    with Terminal() as terminal, opened(terminal.say, guard=False) as fleet:
        checks = check_all(fleet, providers)
    document = {
        "ok": all(one.ok for one in checks),
        "checks": [
            {"name": one.name, "ok": one.ok, "detail": one.detail, "provider": one.provider}
            for one in checks
        ],
    }
    if not as_json:
        table(
            ["", "WHAT", "OF", "DETAIL"],
            [
                ("ok" if one.ok else "WRONG", one.name, one.provider or "this computer", one.detail)
                for one in checks
            ],
        )
    bad_keys = [one for one in checks if one.credentials and not one.ok and providers]
    if bad_keys:
        raise Partial(
            NoCredentials(
                "; ".join(f"{one.provider}: {one.detail}" for one in bad_keys),
                next="Put a valid key into the environment or .env; .env.example lists the names.",
            ),
            document,
        )
    wrong_here = [one for one in checks if one.provider is None and not one.ok]
    if wrong_here:
        raise Partial(
            GpuctlError("; ".join(f"{one.name}: {one.detail}" for one in wrong_here)), document
        )
    if as_json:
        emit(document)


@click.command(epilog=example("gpuctl providers", "gpuctl providers --json"))
@json_option
def providers(as_json: bool) -> None:
    """Show what each provider can do, and which ones have credentials here. Asks nobody."""
    with opened(guard=False) as fleet:
        from gpuctl.fleet.catalog import catalog

        rows = catalog(fleet)
    if as_json:
        emit({"providers": [row.facts() for row in rows]})
        return
    table(
        ["PROVIDER", "USABLE", "KIND", "GPUS", "SPOT", "STOP", "OWN TIMER", "SELLS"],
        [
            (
                row.name,
                row.usable,
                row.kind,
                _yes(row.gpus),
                _yes(row.spot),
                _yes(row.stop),
                _yes(row.ttl),
                row.sells,
            )
            for row in rows
        ],
    )


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


@click.command(
    epilog=example(
        "gpuctl completion bash >> ~/.bashrc",
        "gpuctl completion zsh >> ~/.zshrc",
        "gpuctl completion fish > ~/.config/fish/completions/gpuctl.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    from gpuctl.cli.entry import cli

    kind = get_completion_class(shell)
    assert kind is not None  # click brings all three
    maker = kind(cli, {}, "gpuctl", "_GPUCTL_COMPLETE")
    # source() would ask bash for its version first, and warn about one that it does not find.
    script = maker.source_template % maker.source_vars()
    if as_json:
        emit({"shell": shell, "script": script})
    else:
        write(script + "\n")
