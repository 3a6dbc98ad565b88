"""Which key becomes which file, and the other way."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpuctl.buckets
from gpuctl.buckets.naming import items_below, key_below, key_of_file, key_of_output, part_size
from gpuctl.errors import StoreError, UsageError
from gpuctl.store.bucket import Address, Entry, parse_address


def entry(key: str) -> Entry:
    return Entry(key, 1, datetime.now(UTC), "", False)


@given(st.lists(st.text(min_size=1, max_size=20), max_size=6), st.sampled_from(["", "p", "p/"]))
def test_no_key_leads_out_of_the_target(names: list[str], prefix: str) -> None:
    address = Address("b", prefix)
    try:
        items = items_below(address, [entry(address.folder + name) for name in names])
    except StoreError:
        return
    for item in items:
        parts = item.path.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert "\0" not in item.path


@given(st.text(min_size=1), st.sampled_from(["", "p", "p/"]))
def test_a_key_leads_back_to_its_file(path: str, prefix: str) -> None:
    address = Address("b", prefix)
    try:
        key = key_below(address, path)
    except StoreError:
        return
    assert key == address.folder + path
    assert len(key.encode()) <= 1024
    assert not {"", ".", ".."} & set(path.split("/"))


@pytest.mark.parametrize(
    ("key", "as_file", "as_output"),
    [
        ("", "f.txt", "f.txt"),
        ("p/", "p/f.txt", "p/f.txt"),
        ("p", "p", "p/f.txt"),
        ("p.x", "p.x", "p.x"),
    ],
)
def test_where_a_file_lands(key: str, as_file: str, as_output: str) -> None:
    assert key_of_file(Address("b", key), "f.txt") == as_file
    assert key_of_output(Address("b", key), "f.txt") == as_output


@given(st.integers(min_value=0, max_value=5 << 40))
def test_there_are_never_too_many_parts(size: int) -> None:
    part = part_size(size, 64 << 20)
    assert 64 << 20 <= part <= 5 << 30
    assert -(-size // part) <= 10_000


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3:///k", "S3://bucket", "s3://Bucket/k", "s3://bucket/a//b", "s3://b/..", "x"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_what_runs_on_the_machine_is_python_3_8() -> None:
    for path in sorted(Path(gpuctl.buckets.__path__[0]).glob("far_*.py")):
        ast.parse(path.read_text(), feature_version=(3, 8))
