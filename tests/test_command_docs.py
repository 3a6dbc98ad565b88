"""A command or option without help, or missing from docs/commands.md, fails here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from gpuctl.cli.entry import COMMANDS, TOPICS, cli

MANUAL = Path(__file__).parent.parent / "docs" / "commands.md"
TEXT = MANUAL.read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(r"^### `gpuctl ([a-z]+)`\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
)


def command_of(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def options_of(name: str) -> list[click.Option]:
    return [one for one in command_of(name).params if isinstance(one, click.Option)]


def examples_in(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith("gpuctl ")]


def test_the_manual_has_every_command_and_no_other_in_the_order_of_the_help() -> None:
    assert list(SECTIONS) == list(COMMANDS)
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE)[: len(TOPICS)] == list(TOPICS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_help_and_one_line_for_the_list(name: str) -> None:
    assert command_of(name).help
    assert 10 < len(COMMANDS[name][2]) < 60


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_has_help_and_is_in_the_manual(name: str) -> None:
    for option in options_of(name):
        assert option.help, f"gpuctl {name} {option.opts[0]} has no help"
        for spelling in (*option.opts, *option.secondary_opts):
            if spelling.startswith("--"):
                assert f"`{spelling}" in SECTIONS[name], f"gpuctl {name}: {spelling} is missing"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_manual_names_no_option_that_is_not_there(name: str) -> None:
    known = {spelling for one in options_of(name) for spelling in (*one.opts, *one.secondary_opts)}
    named = set(re.findall(r"^- `(--[a-z-]+)", SECTIONS[name], re.MULTILINE))
    assert named <= known


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_first_example_of_the_help_is_in_the_manual(name: str) -> None:
    epilog = command_of(name).epilog or ""
    examples = examples_in(epilog)
    assert examples, f"gpuctl {name} --help has no example"
    assert examples[0] in SECTIONS[name]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_example_is_a_command_line_that_parses(name: str) -> None:
    for line in examples_in((command_of(name).epilog or "") + "\n" + SECTIONS[name]):
        words = shlex.split(line.split(" >")[0])
        assert words[1] in COMMANDS, line
        command_of(words[1]).make_context(words[1], words[2:]).close()
