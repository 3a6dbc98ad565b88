"""Start-up, `.env`, and every way out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpuctl import __version__
from gpuctl.cli import failure, runs
from gpuctl.cli.entry import COMMANDS, TOPICS
from tests.cli.conftest import Gpuctl

HEAVY = ("boto3", "paramiko", "hcloud", "requests", "pydantic", "tenacity", "yaml", "rich")
MODULES = "import sys; from gpuctl.cli.entry import run; code = run(sys.argv[1:]); "


def modules_after(*argv: str, home: Path) -> set[str]:
    """Every module that a command imports, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MODULES + "sys.stderr.write(' '.join(sys.modules))", *argv],
        capture_output=True,
        text=True,
        env={**os.environ, "GPUCTL_HOME": str(home)},
        check=True,
    )
    return set(done.stderr.split())


def test_version(gpuctl: Gpuctl) -> None:
    assert gpuctl("--version").out == f"gpuctl {__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["--version"]])
def test_help_and_version_import_nothing_but_click(argv: list[str], tmp_path: Path) -> None:
    imported = modules_after(*argv, home=tmp_path)
    ours = {name for name in imported if name.startswith(("gpuctl", "providers"))}
    assert ours == {"gpuctl", "gpuctl.cli", "gpuctl.cli.entry"}
    assert not imported & set(HEAVY)


@pytest.mark.parametrize("argv", [["list"], ["list", "--json"], ["runs"], ["status", "x"]])
def test_what_reads_the_ledger_imports_no_library(argv: list[str], tmp_path: Path) -> None:
    assert not modules_after(*argv, home=tmp_path) & set(HEAVY)


def test_help_lists_every_command_under_its_topic(gpuctl: Gpuctl) -> None:
    text = gpuctl("--help").out
    for topic, commands in TOPICS.items():
        section = text[text.index(f"{topic}:") :]
        for name in commands:
            assert re.search(rf"^  {name} ", section, re.MULTILINE)


def test_a_misspelt_command_names_the_one_that_comes_near(gpuctl: Gpuctl) -> None:
    answer = gpuctl("terminat", "--json")
    assert answer.code == 2
    assert "Did you mean 'terminate'?" in answer.json["error"]["message"]


def test_wrong_usage_is_a_document_too(gpuctl: Gpuctl) -> None:
    answer = gpuctl("quote", "--count", "many", "--json")
    assert answer.code == 2
    assert answer.json["error"]["kind"] == "Usage"
    assert "--count" in answer.json["error"]["message"]
    assert answer.json["error"]["may_bill"] is False


def test_json_behind_the_dashes_is_not_ours(gpuctl: Gpuctl) -> None:
    answer = gpuctl("exec", "nobody", "--", "ls", "--json")
    assert (answer.code, answer.out) == (2, "")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_can_be_imported_and_has_an_example(gpuctl: Gpuctl, name: str) -> None:
    answer = gpuctl(name, "--help")
    assert answer.code == 0
    assert f"gpuctl {name}" in answer.out.partition("Example:")[2]
    assert "--json" in answer.out


# --------------------------------------------------------------------------- .env


def test_dotenv_is_read_and_the_environment_wins(
    gpuctl: Gpuctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("GPUCTL_LOCAL_PRICE_HOUR=2.5\n")
    offers = gpuctl("quote", "--provider", "local", "--json").json["offers"]
    assert offers[0]["price_hour"] == 2.5
    monkeypatch.setenv("GPUCTL_LOCAL_PRICE_HOUR", "1.25")
    offers = gpuctl("quote", "--provider", "local", "--json").json["offers"]
    assert offers[0]["price_hour"] == 1.25


@pytest.fixture(autouse=True)
def _no_price_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # What `.env` puts into this process's environment must not reach the next test.
    monkeypatch.setenv("GPUCTL_LOCAL_PRICE_HOUR", "")
    monkeypatch.delenv("GPUCTL_LOCAL_PRICE_HOUR")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\xff\x00", "not text in UTF-8"),
        (b"A=1\0\n", "NUL"),
        (b"A=1\nthis is = not ' a line\nB=2\n", ".env:2: expected NAME=value"),
        (b"#" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_a_broken_dotenv_is_one_clear_line(gpuctl: Gpuctl, content: bytes, said: str) -> None:
    Path(".env").write_bytes(content)
    answer = gpuctl("list", "--json")
    assert answer.code == 2
    assert said in answer.json["error"]["message"]
    assert "Traceback" not in answer.err


def test_a_broken_line_of_dotenv_is_never_quoted(gpuctl: Gpuctl) -> None:
    Path(".env").write_text("KEY 'sk-canary-123456\n")
    answer = gpuctl("list")
    assert answer.code == 2
    assert "canary" not in answer.err + answer.out


def test_a_folder_called_dotenv_is_left_alone(gpuctl: Gpuctl) -> None:
    Path(".env").mkdir()
    assert gpuctl("list").code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_dotenv_says_so(gpuctl: Gpuctl) -> None:
    Path(".env").write_text("A=1")
    Path(".env").chmod(0)
    answer = gpuctl("list")
    assert answer.code == 2
    assert "cannot be read: Permission denied" in answer.err


# ---------------------------------------------------------------------- ways out


def test_a_bug_is_one_line_and_a_file_without_secrets(
    gpuctl: Gpuctl, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-123456")

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("with canary-123456 in it")

    monkeypatch.setattr(runs, "opened", broken)
    answer = gpuctl("runs", "--json")
    assert answer.code == 1
    assert answer.json["error"]["kind"] == "Bug"
    assert "bug in gpuctl: ZeroDivisionError" in answer.json["error"]["message"]
    assert "Traceback" not in answer.err
    (file,) = (home / "crashes").iterdir()
    details = file.read_text()
    assert "Traceback" in details
    assert "canary" not in details
    assert "<SOME_API_KEY>" in details
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, EOFError])
def test_ctrl_c_anywhere_is_130(
    gpuctl: Gpuctl, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(runs, "opened", interrupted)
    answer = gpuctl("runs", "--json")
    assert answer.code == 130
    assert answer.json["error"]["kind"] == "Interrupted"


def test_a_home_that_cannot_be_made_says_what_to_do(
    gpuctl: Gpuctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUCTL_HOME", str(tmp_path / "file" / "home"))
    answer = gpuctl("list", "--json")
    assert answer.code == 2
    assert "GPUCTL_HOME" in answer.json["error"]["next"]


def test_nobody_reading_stdout_is_no_traceback(home: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "gpuctl", "quote", "--offline", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_stdout_says_so(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpuctl", "list", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_are_taken_out_of_details_and_short_or_plain_values_stay() -> None:
    environ = {"A_TOKEN": "abcdefgh", "B_SECRET": "xy", "USER": "somebody"}
    text = failure.without_secrets("abcdefgh xy somebody", environ)
    assert text == "<A_TOKEN> xy somebody"


def test_completion_scripts_name_the_program(gpuctl: Gpuctl) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_GPUCTL_COMPLETE" in gpuctl("completion", shell).out
    assert gpuctl("completion", "tcsh").code == 2


def test_completion_completes_commands(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from gpuctl.cli.entry import main; main()"],
        env={**os.environ, "_GPUCTL_COMPLETE": "bash_complete", "COMP_WORDS": "gpuctl re",
             "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["plain,resume", "plain,reap"]


def test_each_json_document_is_one_line(gpuctl: Gpuctl) -> None:
    answer = gpuctl("providers", "--json")
    assert json.loads(answer.out) == answer.json
