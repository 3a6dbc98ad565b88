"""What goes wrong with files, disks and locks, and what a person reads then."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gpuctl.errors import LedgerError
from gpuctl.ledger import Ledger
from gpuctl.ledger.faults import writer_pid
from tests.ledger.facts import StepClock, created, intended, name

ROOT = Path(__file__).resolve().parents[2]
ME = name("demo")
NOBODY = 65534

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def filled(path: Path, clock: StepClock, machines: int = 40) -> None:
    with Ledger.open(path, clock=clock) as ledger, ledger.transaction():
        for number in range(machines):
            ledger.record("intended", machine=name("m", number), **intended())
            ledger.record("created", machine=name("m", number), **created())


def used(path: Path, clock: StepClock) -> None:
    """Open a ledger and do with it what any command may do."""
    with Ledger.open(path, clock=clock, patience=0.3) as ledger:
        ledger.machines()
        ledger.events()
        ledger.record("in_doubt", machine=name("m", 0), message="")


# -------------------------------------------------------------------------------- locks


@pytest.fixture
def holder(path: Path, ledger: Ledger) -> Iterator[int]:
    """Another process that keeps the write lock; its pid."""
    ledger.record("intended", machine=ME, **intended())
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"held\n"
    yield process.pid
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


def test_locked_for_too_long(ledger: Ledger, holder: int, path: Path) -> None:
    with pytest.raises(LedgerError, match=r"is locked: another gpuctl .*for more than 0.3 s") as e:
        ledger.record("in_doubt", machine=ME, message="")
    assert e.value.next
    if Path("/proc/locks").exists() and writer_pid(path) is not None:
        assert f"(process {holder})" in e.value.message
        assert f"ps -p {holder}" in e.value.next
    assert len(ledger.machines()) == 1, "reading needs no lock"


def test_the_lock_is_free_again(ledger: Ledger, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="is locked"):
            ledger.record("intended", machine=ME, **intended())
        other.execute("ROLLBACK")
    ledger.record("intended", machine=ME, **intended())
    assert len(ledger.events()) == 1


def test_nobody_writes_so_nobody_is_named(ledger: Ledger, path: Path) -> None:
    assert ledger.events() == []
    assert writer_pid(path) is None
    assert writer_pid(path.with_name("none.db")) is None


# ----------------------------------------------------------------------------- read-only


@contextmanager
def ordinary_user() -> Iterator[Path]:
    """A folder of an ordinary user, and being that user: root may write everywhere."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        root = os.geteuid() == 0
        if root:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            folder.chmod(0o755)
            if root:
                os.seteuid(0)


def test_a_read_only_folder(clock: StepClock) -> None:
    with ordinary_user() as folder:
        folder.chmod(0o555)
        with pytest.raises(
            LedgerError, match=r"cannot be written: the folder .* is read-only"
        ) as e:
            Ledger.open(folder / "ledger.db", clock=clock)
        assert e.value.next


def test_a_ledger_in_a_folder_that_became_read_only(clock: StepClock) -> None:
    with ordinary_user() as folder:
        filled(folder / "ledger.db", clock)
        folder.chmod(0o555)
        with pytest.raises(LedgerError, match=r"cannot be written: the folder .* is read-only"):
            used(folder / "ledger.db", clock)


def test_a_read_only_file(clock: StepClock) -> None:
    with ordinary_user() as folder:
        path = folder / "ledger.db"
        filled(path, clock)
        path.chmod(0o400)
        with pytest.raises(LedgerError, match="cannot be written: the file is read-only"):
            used(path, clock)


def test_a_folder_that_may_not_be_entered(clock: StepClock) -> None:
    with ordinary_user() as folder:
        filled(folder / "ledger.db", clock)
        folder.chmod(0)
        with pytest.raises(LedgerError, match="cannot be written"):
            used(folder / "ledger.db", clock)


def test_no_folder(tmp_path: Path, clock: StepClock) -> None:
    with pytest.raises(LedgerError, match=f"there is no folder {tmp_path}/none"):
        Ledger.open(tmp_path / "none" / "ledger.db", clock=clock)


def test_a_folder_in_its_place(path: Path, clock: StepClock) -> None:
    path.mkdir()
    with pytest.raises(LedgerError, match="cannot be written: it is a folder"):
        Ledger.open(path, clock=clock)


# ------------------------------------------------------------------------------ disk full


def fill_up(ledger: Ledger) -> tuple[int, LedgerError]:
    """Record until it fails; return how many were recorded, and the error."""
    for number in range(10_000):
        try:
            ledger.record("intended", machine=name("m", number), **intended(notes="x" * 4000))
        except LedgerError as error:
            return number, error
    raise AssertionError("it never became full")


def test_no_more_pages(path: Path, clock: StepClock) -> None:
    with Ledger.open(path, clock=clock) as ledger:
        ledger._connection.execute("PRAGMA max_page_count = 60")
        recorded, error = fill_up(ledger)
        assert recorded > 3
        assert "the disk is full" in error.message
        assert "Nothing of this step was recorded" in error.message
        assert error.next
        assert len(ledger.machines()) == len(ledger.events()) == recorded
        ledger._connection.execute("PRAGMA max_page_count = 100000")
        ledger.record("intended", machine=ME, **intended())
    with Ledger.open(path, clock=clock) as ledger:
        assert len(ledger.events()) == recorded + 1
        assert ledger.check() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where mounting is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    command = [mount, "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False, timeout=30).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=30)


def test_a_full_disk(small_disk: Path, clock: StepClock) -> None:
    path = small_disk / "ledger.db"
    with Ledger.open(path, clock=clock) as ledger:
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * 1_000_000)
        recorded, error = fill_up(ledger)
        assert recorded > 3
        assert "the disk is full" in error.message
        assert len(ledger.machines()) == recorded
        ballast.unlink()
        ledger.record("intended", machine=ME, **intended())
        assert len(ledger.events()) == recorded + 1
        assert ledger.check() == []


def test_a_new_ledger_on_a_full_disk(small_disk: Path, clock: StepClock) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(b"x" * 3_000_000)
    with pytest.raises(LedgerError, match="the disk is full"):
        Ledger.open(small_disk / "ledger.db", clock=clock)
    assert [one.name for one in small_disk.iterdir()] == ["ballast"], "no half of one is left"


def test_a_write_that_fails(path: Path, clock: StepClock) -> None:
    """A limit on the size of files: the write itself fails, on any system and for any user."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Ledger.open(path, clock=clock) as ledger:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
            recorded, error = fill_up(ledger)
            assert recorded > 3
            assert "could not be" in error.message
            assert "Nothing of this step was recorded" in error.message
            assert len(ledger.machines()) == recorded
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            ledger.record("intended", machine=ME, **intended())
            assert len(ledger.events()) == recorded + 1
            assert ledger.check() == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# ------------------------------------------------------------------------------- damage


def damaged_error(path: Path, clock: StepClock) -> LedgerError:
    with pytest.raises(LedgerError, match=r"is damaged: .*may still be billing") as caught:
        used(path, clock)
    assert caught.value.may_bill
    assert "gpuctl audit" in str(caught.value.next)
    return caught.value


@pytest.mark.parametrize("content", [b"", b"x", b"not a database at all, but long enough" * 100])
def test_not_a_database(path: Path, clock: StepClock, content: bytes) -> None:
    path.write_bytes(content)
    error = damaged_error(path, clock)
    assert "There is no backup copy" in str(error.next)
    assert path.read_bytes() == content


@pytest.mark.parametrize("kept", [0, 1, 100, 4096, 5000, 0.5, 0.99])
def test_cut_off(path: Path, clock: StepClock, kept: float) -> None:
    filled(path, clock)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    damaged_error(path, clock)


def complained(path: Path, clock: StepClock) -> bool:
    try:
        with Ledger.open(path, clock=clock) as ledger:
            return bool(ledger.check())
    except LedgerError as error:
        return "is damaged" in error.message


def test_every_overwritten_page_that_is_used_is_noticed(path: Path, clock: StepClock) -> None:
    filled(path, clock)
    data = path.read_bytes()
    noticed = 0
    for start in range(0, len(data), 4096):
        path.write_bytes(data[:start] + b"\xa5" * 4096 + data[start + 4096 :])
        noticed += complained(path, clock)
    assert noticed == len(data) // 4096


def test_the_newest_copy_is_named(path: Path, clock: StepClock) -> None:
    filled(path, clock)
    with Ledger.open(path, clock=clock) as ledger:
        ledger.back_up()
        clock.sleep(60)
        copy = ledger.back_up()
    path.write_bytes(b"torn" * 2000)
    assert str(copy) in str(damaged_error(path, clock).next)


def test_an_event_that_is_not_what_was_written(ledger: Ledger) -> None:
    ledger._connection.execute("INSERT INTO events VALUES (1, 'then', 'gone', 'x', NULL, '{')")
    with pytest.raises(LedgerError, match="is damaged: event 1 cannot be read"):
        ledger.events()
    with pytest.raises(LedgerError, match="is damaged: event 1 cannot be read"):
        ledger.rebuild()


def test_a_row_that_is_not_what_was_written(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    ledger._connection.execute("UPDATE machines SET price_hour = 'cheap'")
    with pytest.raises(LedgerError, match=f"is damaged: the machine '{ME}' cannot be read"):
        ledger.machines()
    ledger.rebuild()
    assert len(ledger.machines()) == 1


@pytest.mark.parametrize("column", ["access", "keeper", "confirmed_by"])
def test_json_that_is_not_what_was_written(ledger: Ledger, column: str) -> None:
    ledger.record("intended", machine=ME, **intended())
    ledger._connection.execute(f"UPDATE machines SET {column} = '{{\"host'")  # noqa: S608
    row = ledger.machine(ME)
    assert row is not None
    with pytest.raises(LedgerError, match=f"damaged: what it says of {ME} cannot") as caught:
        getattr(row, column)
    assert caught.value.may_bill
