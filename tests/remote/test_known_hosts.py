from __future__ import annotations

import contextlib
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuctl.errors import UsageError
from gpuctl.remote.known_hosts import HostKey, HostKeyChanged, KnownHost

NAME = "gpuctl-a-abcdef-01234567"


def key(content: bytes, kind: str = "ssh-ed25519") -> HostKey:
    """A host key with that content."""
    return HostKey(kind, struct.pack(">I", len(kind)) + kind.encode() + content)


def test_the_first_key_is_pinned_and_another_refused(tmp_path: Path) -> None:
    KnownHost(tmp_path, NAME).check(key(b"a"))
    KnownHost(tmp_path, NAME).check(key(b"a"))
    with pytest.raises(HostKeyChanged, match="not the machine that it was") as caught:
        KnownHost(tmp_path, NAME).check(key(b"b"))
    assert key(b"b").fingerprint in caught.value.message
    assert key(b"a").fingerprint in caught.value.message
    assert KnownHost(tmp_path, NAME).accepted() == (key(b"a"),)


def test_another_machine_has_another_key(tmp_path: Path) -> None:
    KnownHost(tmp_path, NAME).check(key(b"a"))
    KnownHost(tmp_path, "gpuctl-b-abcdef-01234567").check(key(b"b"))


def test_a_key_that_was_handed_over_counts_and_is_kept_for_ssh(tmp_path: Path) -> None:
    KnownHost(tmp_path, NAME).check(key(b"old"))
    known = KnownHost(tmp_path, NAME, [f"1.2.3.4 {key(b'new').line} comment"])
    with pytest.raises(HostKeyChanged, match="handed over"):
        known.check(key(b"old"))
    known.check(key(b"new"))
    assert known.file.read_text() == f"{NAME} {key(b'new').line}\n"


def test_forgetting(tmp_path: Path) -> None:
    known = KnownHost(tmp_path, NAME)
    known.check(key(b"a"))
    known.forget()
    known.forget()
    known.check(key(b"b"))


def test_one_of_many_at_once_is_pinned(tmp_path: Path) -> None:
    def pin(number: int) -> bool:
        try:
            KnownHost(tmp_path, NAME).check(key(bytes([number])))
        except HostKeyChanged:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(pin, range(16))) == 1


def test_a_damaged_file_names_its_line(tmp_path: Path) -> None:
    known = KnownHost(tmp_path, NAME)
    known.check(key(b"a"))
    known.file.write_text(f"# a comment\n\n{NAME} ssh-ed25519 !!!\n")
    with pytest.raises(UsageError, match="line 3"):
        known.check(key(b"a"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", ".", "a/b", "a b", "", "ü"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    known = KnownHost(tmp_path, name)
    known.check(key(b"a"))
    assert known.file.parent == tmp_path / "known_hosts"
    assert known.file.is_file()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_handed_over_is_a_key_or_a_usage_error(tmp_path: Path, text: str) -> None:
    with contextlib.suppress(UsageError):
        assert len(KnownHost(tmp_path, NAME, [text]).accepted()) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=100))
def test_every_key_survives_its_line(tmp_path: Path, content: bytes) -> None:
    assert KnownHost(tmp_path, NAME, [key(content).line]).accepted() == (key(content),)
