from __future__ import annotations

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpuctl.errors import UsageError
from gpuctl.remote.keys import key_file, own_key_files, public_key


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    first = public_key(tmp_path)
    file = key_file(tmp_path)
    assert first.startswith("ssh-ed25519 AAAA")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert file.with_suffix(".pub").read_text() == f"{first}\n"
    assert public_key(tmp_path) == first


def test_openssh_reads_it(tmp_path: Path) -> None:
    file = key_file(tmp_path)
    try:
        done = subprocess.run(
            ["ssh-keygen", "-y", "-f", str(file)], capture_output=True, timeout=30
        )
    except FileNotFoundError:
        pytest.skip("no ssh-keygen binary: install openssh-client")
    assert done.stdout.split()[:2] == public_key(tmp_path).encode().split()[:2]


def test_many_at_once_get_the_same_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: public_key(tmp_path), range(16)))) == 1
    assert {one.name for one in (tmp_path / "ssh").iterdir()} == {"id_ed25519", "id_ed25519.pub"}


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key_file(tmp_path).chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others") as caught:
        key_file(tmp_path)
    assert caught.value.next is not None
    assert "chmod 600" in caught.value.next


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    file = key_file(tmp_path)
    file.write_text("not a key")
    with pytest.raises(UsageError, match=str(file)):
        public_key(tmp_path)


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        key_file(tmp_path / "file")


def test_own_keys_are_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa").write_text("")
    assert own_key_files({"HOME": str(tmp_path)}) == [tmp_path / ".ssh" / "id_rsa"]
    assert own_key_files({}) == []
