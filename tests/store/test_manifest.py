"""Manifests: what is written is read back, and nothing hostile is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.store import Blob, CorruptManifest, Manifest, NewerFormat, parse_manifest
from gpuctl.store.manifest import (
    MAX_BLOB_BYTES,
    MAX_MANIFEST_BYTES,
    DirRecord,
    FileRecord,
    LinkRecord,
    order_in_key,
    step_in_name,
)

AT = datetime(2026, 11, 21, 13, 0, 0, 123456, tzinfo=UTC)
SHA_A = hashlib.sha256(b"a").hexdigest()
EMPTY = hashlib.sha256(b"").hexdigest()


def folder() -> Manifest:
    """A valid manifest of a folder."""
    return Manifest(
        run="demo-1a2b3c",
        attempt=2,
        seq=5,
        kind="checkpoint",
        name="epoch-5",
        version=1,
        step=5,
        at=AT,
        bytes=1,
        files=(
            FileRecord("sub/a", 0o644, 1763730000.5, 1, SHA_A, (Blob(SHA_A, 1),)),
            FileRecord("empty", 0o600, 0, 0, EMPTY, ()),
        ),
        dirs=(DirRecord("", 0o755), DirRecord("sub", 0o755)),
        links=(LinkRecord("latest", "sub"),),
    )


def document(change: Callable[[dict[str, Any]], object] = lambda _: None) -> bytes:
    """A valid manifest, changed, with a hash that fits again."""
    content: dict[str, Any] = json.loads(folder().to_json())
    del content["sha256"]
    change(content)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["sha256"] = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    return json.dumps(content).encode()


names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any valid manifest of a folder whose files lie in it directly."""
    files: list[FileRecord] = []
    for name in draw(st.lists(names, unique=True, max_size=4)):
        pieces = draw(st.lists(st.binary(min_size=1, max_size=9), max_size=3))
        files.append(
            FileRecord(
                name,
                draw(st.integers(0, 0o7777)),
                draw(st.integers(0, 2**33) | st.floats(0, 2**33)),
                sum(map(len, pieces)),
                hashlib.sha256(b"".join(pieces)).hexdigest(),
                tuple(Blob(hashlib.sha256(p).hexdigest(), len(p)) for p in pieces),
            )
        )
    return Manifest(
        run="r",
        attempt=draw(st.integers(1, 9999)),
        seq=draw(st.integers(1, 999_999)),
        kind=draw(st.sampled_from(["checkpoint", "output"])),
        name=draw(names),
        version=draw(st.integers(1, 100)),
        step=draw(st.none() | st.integers(0, 10**100)),
        at=draw(st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC))),  # noqa: DTZ001
        bytes=sum(file.size for file in files),
        files=tuple(files),
        dirs=(DirRecord("", 0o755),),
        links=(),
    )


@given(manifests())
def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    assert parse_manifest(manifest.to_json()) == manifest
    assert order_in_key(manifest.key) == manifest.order


def test_the_json_is_that_of_the_format() -> None:
    content = json.loads(folder().to_json())
    claimed = content.pop("sha256")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert claimed == hashlib.sha256(canonical.encode()).hexdigest()
    assert content["at"] == "2026-11-21T13:00:00.123456Z"
    assert content["format"] == 1
    assert folder().key == "manifests/a0002-000005.json"
    assert Blob(SHA_A, 1).key == f"blobs/{SHA_A[:2]}/{SHA_A}"


def test_a_moment_of_another_zone_is_written_in_utc() -> None:
    from dataclasses import replace

    elsewhere = AT.astimezone(timezone(timedelta(hours=5)))
    assert replace(folder(), at=elsewhere).to_json() == folder().to_json()


@given(st.integers(0), st.integers(0, 255))
def test_no_flipped_byte_is_believed(position: int, byte: int) -> None:
    good = folder().to_json()
    position %= len(good)
    changed = good[:position] + bytes([byte]) + good[position + 1 :]
    try:
        assert parse_manifest(changed) == folder()
    except (CorruptManifest, NewerFormat):
        assert changed != good


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_garbage_is_believed(content: bytes) -> None:
    with pytest.raises(CorruptManifest):
        parse_manifest(content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(json.loads(folder().to_json()).keys() - {"sha256"})), json_values)
def test_a_key_of_any_type_is_refused_or_valid(key: str, value: object) -> None:
    content = document(lambda whole: whole.__setitem__(key, value))
    try:
        manifest = parse_manifest(content)
    except (CorruptManifest, NewerFormat):
        return
    assert parse_manifest(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "sub/../../x", "sub/..", "sub//x", "./x", "sub/", "a\0b", "."]
)
@pytest.mark.parametrize("kind", ["files", "dirs", "links"])
def test_a_path_that_leaves_is_refused(path: str, kind: str) -> None:
    with pytest.raises(CorruptManifest):
        parse_manifest(document(lambda whole: whole[kind][-1].__setitem__("path", path)))


def _file(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda whole: whole["files"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_file(size=2), "add up"),
        (lambda whole: whole.update(bytes=2), "add up"),
        (_file(sha256=EMPTY), "only blob"),
        (_file(blobs=[]), "add up"),
        (lambda whole: whole["files"][1].update(sha256=SHA_A), "only blob"),
        (_file(blobs=[{"sha256": SHA_A, "size": True}]), "whole number"),
        (_file(blobs=[{"sha256": SHA_A, "size": MAX_BLOB_BYTES + 1}]), "whole number"),
        (_file(blobs=[{"sha256": "../../x", "size": 1}]), "SHA-256"),
        (_file(mode=0o10000), "whole number"),
        (_file(mtime="now"), "not a number"),
        (_file(mtime=1e300), "not a moment"),
        (_file(path="nowhere/a"), "not in 'dirs'"),
        (_file(path="empty"), "twice"),
        (_file(path="latest"), "twice"),
        (_file(path="latest/a"), "not in 'dirs'"),
        (lambda whole: whole.update(dirs=[]), "neither"),
        (lambda whole: whole["dirs"].pop(0), "itself"),
        (lambda whole: whole["links"][0].update(target=""), "nowhere"),
        (lambda whole: whole.update(attempt=0), "whole number"),
        (lambda whole: whole.update(attempt=10_000), "whole number"),
        (lambda whole: whole.update(attempt=1.0), "whole number"),
        (lambda whole: whole.update(kind="other"), "none of"),
        (lambda whole: whole.update(name="../x"), "climbs"),
        (lambda whole: whole.update(name="a/b"), "name of an entry"),
        (lambda whole: whole.update(at="yesterday"), "'at'"),
        (lambda whole: whole.update(at="2026-13-21T13:00:00Z"), "'at'"),
        (lambda whole: whole.update(extra=1), "unknown key"),
        (lambda whole: whole.pop("step"), "lacks"),
        (lambda whole: whole.update(files={}), "not a list"),
        (lambda whole: whole.update(dirs=[1]), "not an object"),
        (lambda whole: whole.update(name="\ud800"), "UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused_and_said(
    change: Callable[[dict[str, Any]], object], why: str
) -> None:
    with pytest.raises(CorruptManifest, match=why):
        parse_manifest(document(change))


def test_an_unchanged_document_is_believed() -> None:
    assert parse_manifest(document()) == folder()


def test_a_blob_has_one_size() -> None:
    sha = hashlib.sha256(b"x").hexdigest()
    blobs = [{"sha256": sha, "size": 1}, {"sha256": sha, "size": 2}]

    def change(whole: dict[str, Any]) -> None:
        whole["files"][0].update(size=3, blobs=blobs)
        whole["bytes"] = 3

    with pytest.raises(CorruptManifest, match="two sizes"):
        parse_manifest(document(change))


def test_a_wrong_hash_is_refused() -> None:
    content = document().replace(b'"version": 1', b'"version": 2')
    with pytest.raises(CorruptManifest, match="hash"):
        parse_manifest(content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"format": NaN}',
        b'{"format": 1' + b"0" * 5000 + b"}",
        b" " * (MAX_MANIFEST_BYTES + 1),
    ],
    ids=["deep", "nan", "long number", "huge"],
)
def test_what_would_exhaust_us_is_refused(content: bytes) -> None:
    with pytest.raises(CorruptManifest):
        parse_manifest(content)


def test_a_newer_format_says_what_to_do() -> None:
    with pytest.raises(NewerFormat) as caught:
        parse_manifest(b'{"format": 2}')
    assert "newer gpuctl" in (caught.value.next or "")


@pytest.mark.parametrize(
    ("name", "step"),
    [("epoch-5", 5), ("checkpoint-0010.pt2", 2), ("last", None), ("v2-step-300", 300), ("٣", None)],
)
def test_the_step_is_the_last_number(name: str, step: int | None) -> None:
    assert step_in_name(name) == step


@pytest.mark.parametrize("key", ["manifests/a1-1.json", "manifests/a0001-000001.json.bak", "x"])
def test_other_keys_have_no_order(key: str) -> None:
    assert order_in_key(key) is None
