"""Every broken train.yaml is answered in one line that says where, what and how, and at once.

The files are in tests/specs/broken; those that cannot be kept in a repository are made here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from gpuctl.errors import Exit, SpecError
from gpuctl.spec import json_schema, load_spec
from gpuctl.spec.document import LARGEST_FILE, Unreadable, parse
from gpuctl.spec.loading import is_verbatim

FOLDER = Path(__file__).parent / "specs" / "broken"
AT_MOST = 0.8  # seconds

# file: (line, key, words that the message must have)
BROKEN: dict[str, tuple[int | None, str, str]] = {
    "alias-to-itself": (2, "data.0", "part of"),
    "at-sign": (2, "", "quotes"),
    "bad-indent": (4, "", "not valid YAML"),
    "bf16-is-on": (4, "preflight.bf16", "did you mean true?"),
    "bf16-without-gpu": (3, "preflight.bf16", "resources.gpu asks for none"),
    "billion-laughs": (1, "d.3.3.8.8", "aliases"),
    "binary-tag": (2, "setup", "the tag '!!binary'"),
    "blank-run": (2, "run", "got nothing"),
    "budget-is-a-list": (2, "budget", "keys and values, got a list"),
    "checkpoints-dir-absolute": (3, "checkpoints.dir", "relative to the workdir"),
    "checkpoints-dir-climbs": (3, "checkpoints.dir", "inside the workdir"),
    "checkpoints-dir-is-workdir": (3, "checkpoints.dir", "below the workdir"),
    "checkpoints-keep-zero": (4, "checkpoints.keep", "at least 1"),
    "checkpoints-store-ftp": (4, "checkpoints.store", "s3://bucket/prefix"),
    "colon-in-text": (2, "", "needs quotes"),
    "control-character": (2, "", r"control character '\x07'"),
    "count-half": (4, "resources.count", "whole number"),
    "count-octal": (4, "resources.count", "got '010'"),
    "count-thousands-of-digits": (4, "resources.count", "whole number"),
    "count-without-gpu": (3, "resources.count", "resources.gpu asks for none"),
    "count-word": (4, "resources.count", "got 'two'"),
    "count-zero": (4, "resources.count", "at least 1"),
    "cpus-is-a-list": (3, "resources.cpus", "got a list"),
    "data-entry-is-text": (3, "data.0", "got 'corpus'"),
    "data-from-bad-bucket": (3, "data.0.from", "s3://bucket"),
    "data-from-http": (3, "data.0.from", "a local path or s3://"),
    "data-in-checkpoints": (4, "data.0.to", "checkpoints.dir"),
    "data-is-a-mapping": (2, "data", "expected a list"),
    "data-to-absolute": (3, "data.0.to", "relative to the workdir"),
    "data-to-climbs": (4, "data.0.to", "inside the workdir"),
    "data-to-climbs-inside": (4, "data.0.to", "inside the workdir"),
    "data-to-home": (3, "data.0.to", "relative to the workdir"),
    "data-to-nul": (3, "data.0.to", "NUL"),
    "data-to-option": (3, "data.0.to", "looks like an option"),
    "data-to-with-shell": (3, "data.0.to", "the character '$'"),
    "data-without-to": (3, "data.0.to", "is required"),
    "deadline-no-such-day": (3, "budget.deadline", "no such moment"),
    "deadline-only-day": (3, "budget.deadline", "time zone"),
    "deadline-without-zone": (3, "budget.deadline", "time zone"),
    "deep": (1, "", "levels deep"),
    "deep-mapping": (20, "", "levels deep"),
    "disk-huge": (3, "resources.disk", "more than 1,000 TB"),
    "disk-negative": (3, "resources.disk", "cannot be negative"),
    "disk-unknown-unit": (3, "resources.disk", "unknown unit 'gallons'"),
    "disk-zero": (3, "resources.disk", "more than 0"),
    "duplicate-key": (4, "name", "first on line 2"),
    "duplicate-nested-key": (4, "resources.disk", "first on line 3"),
    "duration-backwards": (3, "budget.max_duration", "largest unit first"),
    "duration-negative": (3, "budget.max_duration", "cannot be negative"),
    "duration-of-centuries": (3, "budget.max_duration", "366 days"),
    "duration-sexagesimal": (3, "budget.max_duration", "got '1:30'"),
    "duration-without-unit": (3, "budget.max_duration", "90s, 90m, 90h?"),
    "duration-zero": (3, "budget.max_duration", "more than 0"),
    "empty": (None, "", "is empty"),
    "empty-key": (2, "", "not valid YAML"),
    "empty-run": (2, "run", "is required"),
    "env-account-key": (3, "env.RUNPOD_API_KEY", "key of a cloud account"),
    "env-bad-name": (3, "env.2FAST", "no digit first"),
    "env-is-a-list": (2, "env", "keys and values"),
    "env-nested": (3, "env.A", "expected text"),
    "env-reserved-name": (4, "env.GPUCTL_RUN_ID", "set by gpuctl itself"),
    "env-without-value": (3, "env.EMPTY", "write ''"),
    "escape-out-of-range": (2, "", "out of range"),
    "gpu-is-a-mapping": (3, "resources.gpu", "the name of a GPU"),
    "gpu-is-a-number": (3, "resources.gpu", "'24GB+'"),
    "gpu-none-and-more": (3, "resources.gpu", "'none' means no GPU"),
    "gpu-unknown": (3, "resources.gpu", "RTX-4090"),
    "half-surrogate": (2, "name", "surrogate"),
    "image-with-shell": (3, "resources.image", "the name of an image"),
    "key-in-wrong-case": (2, "Resources", "did you mean 'resources'?"),
    "list-as-key": (2, "", "used as a key"),
    "list-on-top": (1, "", "got a list"),
    "max-recoveries-negative": (3, "on_interruption.max_recoveries", "cannot be negative"),
    "memory-nan": (3, "resources.memory", "got nan"),
    "merge-key": (3, "resources", "merge keys"),
    "min-vram-without-gpu": (3, "preflight.min_vram", "resources.gpu asks for none"),
    "misplaced-key": (2, "max_cost", "belongs at 'budget.max_cost'"),
    "money-huge": (3, "budget.max_cost", "an amount in USD"),
    "money-in-euro": (3, "budget.max_cost", "only USD"),
    "money-infinite": (3, "resources.max_price", "got inf"),
    "money-is-true": (3, "budget.max_cost", "got 'yes'"),
    "money-nan": (3, "budget.max_cost", "got nan"),
    "money-with-comma": (3, "budget.max_cost", "no commas"),
    "more-free-than-disk": (4, "preflight.disk_free", "a disk of 20 GB"),
    "name-is-a-number": (1, "name", "put it in quotes"),
    "name-too-long": (1, "name", "at most 63"),
    "name-with-newline": (1, "name", r"'a\nb'"),
    "name-with-shell": (1, "name", "letters, digits"),
    "negative-money": (3, "budget.max_cost", "cannot be negative"),
    "no-run": (None, "run", "is required"),
    "nodes-two": (4, "resources.nodes", "not built yet"),
    "only-comments": (None, "", "is empty"),
    "outputs-from-climbs": (3, "outputs.0.from", "inside the workdir"),
    "outputs-from-wildcard": (3, "outputs.0.from", "the character '*'"),
    "outputs-to-absolute": (3, "outputs.0.to", "relative to train.yaml's folder"),
    "outputs-to-climbs": (3, "outputs.0.to", "inside train.yaml's folder"),
    "outputs-unknown-key": (3, "outputs.0.to", "(and 1 more)"),
    "own-tag": (3, "env.TOKEN", "the tag '!secret'"),
    "provider-unknown": (3, "resources.providers.1", "did you mean 'vastai'?"),
    "providers-is-text": (3, "resources.providers", "such as [aws]"),
    "python-tag": (1, "run", "the tag '!!python/object/apply:os.system'"),
    "region-with-shell": (3, "resources.regions.0", "the name of a region"),
    "resources-is-text": (2, "resources", "got 'A100'"),
    "run-is-a-list": (1, "run", "one command"),
    "run-is-a-number": (1, "run", "put it in quotes"),
    "run-with-nul": (2, "run", "NUL"),
    "secrets-account-key": (3, "secrets.0", "key of a cloud account"),
    "secrets-also-in-env": (4, "secrets.0", "also in env"),
    "secrets-is-a-mapping": (2, "secrets", "a list of names"),
    "secrets-twice": (2, "secrets.1", "named twice"),
    "secrets-with-value": (2, "secrets.0", "only the name"),
    "settle-too-long": (4, "checkpoints.settle", "at most 1h"),
    "spot-is-maybe": (3, "resources.spot", "true, false or auto"),
    "spot-is-yes": (3, "resources.spot", "did you mean true?"),
    "tabs": (3, "", "a tab"),
    "text-on-top": (1, "", "got 'just some words'"),
    "three-mistakes": (1, "nme", "did you mean 'name'? (and 2 more)"),
    "two-documents": (2, "", "second document"),
    "unclosed-bracket": (3, "", "starts on line 2"),
    "unclosed-quote": (3, "", "starts on line 2"),
    "unknown-alias": (1, "", "undefined alias"),
    "unknown-key": (3, "resources.gpus", "did you mean 'gpu'?"),
    "unknown-top-key": (1, "nmae", "did you mean 'name'?"),
    "workdir-is-s3": (2, "workdir", "on this computer"),
    "workdir-of-others": (2, "workdir", "only '~/'"),
    "wrong-int-tag": (2, "resources.count", "!!int"),
}

# What only the tool itself can judge: several keys at once, or what else exists in the world.
BEYOND_THE_SCHEMA = {
    *("bf16-without-gpu", "count-without-gpu", "min-vram-without-gpu", "more-free-than-disk"),
    *(
        "nodes-two",
        "data-in-checkpoints",
        "secrets-also-in-env",
        "secrets-twice",
    ),
    *("gpu-unknown", "provider-unknown", "gpu-none-and-more", "env-account-key"),
    *("secrets-account-key", "deadline-no-such-day", "deadline-only-day"),
    *("deadline-without-zone", "disk-huge", "money-huge", "duration-of-centuries"),
    *("duration-zero", "duration-backwards", "settle-too-long", "blank-run", "run-with-nul"),
    *("checkpoints-store-ftp", "data-from-http", "data-from-bad-bucket", "workdir-is-s3"),
    *("workdir-of-others", "outputs-to-climbs", "outputs-from-climbs", "data-to-climbs"),
    *("data-to-climbs-inside", "checkpoints-dir-climbs", "checkpoints-dir-is-workdir"),
    *("data-to-with-shell", "data-to-option", "outputs-from-wildcard", "data-to-nul"),
    *("money-infinite", "money-nan", "memory-nan"),  # JSON has neither
}


def message_for(path: Path) -> str:
    """Load a broken file and return what is said, having checked what is true of every message."""
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        load_spec(path, environ={"HOME": "/home/somebody"})
    took = time.process_time() - start
    message = str(caught.value)
    assert message == caught.value.message
    assert message.isprintable(), "one line, and nothing that plays with the terminal"
    assert len(message) < 500
    assert caught.value.exit_code == Exit.USAGE
    assert not caught.value.may_bill
    assert took < AT_MOST
    return message


def test_every_broken_file_is_in_the_table() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_says_file_line_key_and_what_was_expected(name: str) -> None:
    line, key, words = BROKEN[name]
    path = FOLDER / f"{name}.yaml"
    where = ": ".join(part for part in (f"{path}:{line}" if line else str(path), key) if part)
    message = message_for(path)
    assert message.startswith(where + ": ")
    assert words in message.removeprefix(where + ": ")


@pytest.mark.parametrize("name", ["secrets-with-value", "secrets-is-a-mapping", "env-account-key"])
def test_never_repeats_what_may_be_a_secret(name: str) -> None:
    assert "not_a_real_one" not in message_for(FOLDER / f"{name}.yaml")


def structurally_broken() -> Iterator[str]:
    """The broken files that can be read as YAML and that an editor's schema can judge."""
    for name in sorted(set(BROKEN) - BEYOND_THE_SCHEMA):
        try:
            parse((FOLDER / f"{name}.yaml").read_text())
        except Unreadable:
            continue
        yield name


@pytest.mark.parametrize("name", list(structurally_broken()))
def test_the_schema_rejects_what_is_structurally_broken(name: str) -> None:
    value = parse((FOLDER / f"{name}.yaml").read_text(), verbatim=is_verbatim).value
    assert not Draft202012Validator(json_schema()).is_valid(value)


@pytest.mark.parametrize("name", sorted(BEYOND_THE_SCHEMA))
def test_what_is_beyond_the_schema_is_named_rightly(name: str) -> None:
    value = parse((FOLDER / f"{name}.yaml").read_text(), verbatim=is_verbatim).value
    assert Draft202012Validator(json_schema()).is_valid(value)


# ------------------------------------------------------------- files that are made on the spot

GOOD = b"run: python train.py\n"
MADE: dict[str, tuple[bytes, int | None, str]] = {
    "program": (b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 40, 2, "not UTF-8"),
    "nul-bytes": (b"run: x\nname: a\x00b\n", 2, "NUL bytes"),
    "ten-megabytes": (b"# x\n" * 2_500_000, None, "too large for a train.yaml: 10,000,000 bytes"),
    "just-too-large": (GOOD + b"#" * LARGEST_FILE, None, "too large"),
    "utf-16-le": ("\ufeffrun: x\n".encode("utf-16-le"), None, "UTF-16"),
    "utf-16-be": ("\ufeffrun: x\n".encode("utf-16-be"), None, "UTF-16"),
    "latin-1": ("run: x\nname: caf\xe9\n".encode("latin-1"), 2, "byte 0xe9"),
    "many-values": (GOOD + b"data:\n" + b"- x\n" * 50_000, None, "more than 5,000 values"),
    "many-blank-lines": (b"\n" * (LARGEST_FILE - 10) + b"rum: x\n", LARGEST_FILE - 9, "'run'"),
    "many-words": (GOOD + b"rum: " + b"a b\n  " * 42_000, 2, "did you mean 'run'?"),
    "many-brackets": (b"run: " + b"[" * 250_000, 1, "levels deep"),
    "one-long-key": (GOOD + b"k" * 250_000 + b": 1\n", None, ""),
    "one-long-value": (GOOD + b"name: " + b"n" * 250_000, 2, "at most 63"),
    "many-escapes": (GOOD + b'name: "a' + b"\\n" * 120_000 + b'"\n', 2, "at most 63"),
    "many-anchors": (
        GOOD + b"".join(b"k%d: &a%d 1\n" % (i, i) for i in range(9_000)),
        None,
        "5,000",
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_bytes_that_are_no_train_yaml(name: str, tmp_path: Path) -> None:
    content, line, words = MADE[name]
    path = tmp_path / "train.yaml"
    path.write_bytes(content)
    message = message_for(path)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}:")
    assert words in message


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may read everything; be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(GOOD)
    path.chmod(0o000)
    with ordinary_user():
        message = message_for(path)
    assert message == f"{path}: cannot be read: permission denied"


def a_folder(path: Path) -> None:
    path.mkdir()


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def nothing(path: Path) -> None:
    assert not path.exists()


def a_dead_link(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def an_endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_folder, "is a folder"),
        (a_loop, "symbolic links"),
        (a_pipe, "not a regular file"),
        (nothing, "there is no such file; `gpuctl init`"),
        (a_dead_link, "there is no such file"),
        (an_endless_device, "not a regular file"),
    ],
)
def test_things_that_are_no_file(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    make(path)
    message = message_for(path)
    assert message.startswith(f"{path}: ")
    assert words in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 300, "file name too long"),
        ("file/train.yaml", "not a directory"),
        ("a\0b", "not a file name"),
        ("two\nlines", r"two\nlines: there is no such file"),
        ("\udcff", r"\udcff: there is no such file"),
    ],
)
def test_names_that_lead_nowhere(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert words in message_for(tmp_path / name)
