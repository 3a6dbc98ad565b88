"""The job's log: its format, its offsets, its files, and readers that come and go."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.agent import machine_agent
from gpuctl.agent.machine_agent import (
    AgentError,
    Log,
    encode_record,
    log_end,
    log_files,
    parse_records,
    read_log,
    unfinished_character,
)
from tests.agent.bench import Bench

pieces = st.lists(
    st.tuples(st.sampled_from(["out", "err", "agent"]), st.binary(max_size=200)), max_size=20
)


class TestRecords:
    @given(pieces, st.integers(0, 1 << 40), st.data())
    def test_any_cut_gives_the_whole_records_before_it(
        self, written: list[tuple[str, bytes]], start: int, data: st.DataObject
    ) -> None:
        records = [encode_record(1.5 + n, stream, raw) for n, (stream, raw) in enumerate(written)]
        content = b"".join(records)
        cut = data.draw(st.integers(0, len(content)))
        ends = list(itertools.accumulate(len(record) for record in records))
        whole = sum(end <= cut for end in ends)
        found = parse_records(content[:cut], start)
        assert [(r.stream, r.data) for r in found] == written[:whole]
        assert [r.next for r in found] == [start + end for end in ends[:whole]]

    @given(pieces, st.data())
    def test_reading_on_from_any_offset_loses_and_repeats_nothing(
        self, written: list[tuple[str, bytes]], data: st.DataObject
    ) -> None:
        content = b"".join(encode_record(2.5, stream, raw) for stream, raw in written)
        found: list[tuple[str, bytes]] = []
        offset = 0
        while offset < len(content):
            size = data.draw(st.integers(1, len(content)))
            some = parse_records(content[offset : offset + size], offset)
            if not some:  # too little of it: as a reader does that comes back later
                some = parse_records(content[offset:], offset)[:1]
            found += [(record.stream, record.data) for record in some]
            offset = some[-1].next
        assert found == written

    @given(st.binary(min_size=50, max_size=300))
    def test_what_is_no_record_is_said_to_be_none(self, content: bytes) -> None:
        with pytest.raises(ValueError, match=r"\d+"):
            parse_records(b"x" + content, 0)

    @given(st.text(), st.data())
    def test_no_character_is_cut_in_two(self, text: str, data: st.DataObject) -> None:
        raw = text.encode()
        cut = data.draw(st.integers(0, len(raw)))
        held = unfinished_character(raw[:cut])
        raw[: cut - held].decode()  # raises when a character was cut
        assert held <= 3

    @given(st.binary(max_size=50))
    def test_binary_output_is_held_back_by_three_bytes_at_most(self, raw: bytes) -> None:
        assert 0 <= unfinished_character(raw) <= 3


class TestFiles:
    def test_offsets_run_on_over_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine_agent, "LOG_FILE_BYTES", 1000)
        log = Log(str(tmp_path), 1 << 30)
        for number in range(100):
            log.write("out", b"line %d " % number + b"x" * 50)
        starts = log_files(str(tmp_path))
        assert len(starts) > 5
        assert log.end == log_end(str(tmp_path))
        assert len(read_log(str(tmp_path), 0, 1 << 30)) == 100
        # Every record's own offset leads to exactly the rest.
        records = read_log(str(tmp_path), 0, 1 << 30)
        for number in (1, 7, 50, 99):
            rest = read_log(str(tmp_path), records[number - 1].next, 1 << 30)
            assert rest == records[number:]
        assert read_log(str(tmp_path), log.end, 100) == []

    def test_the_limit_is_about_kept(self, tmp_path: Path) -> None:
        log = Log(str(tmp_path), 1 << 30)
        for _ in range(100):
            log.write("out", b"x" * 10_000)
        assert len(read_log(str(tmp_path), 0, 50_000)) == 4
        assert len(read_log(str(tmp_path), 0, 1)) == 1, "at least one"

    def test_a_long_log_drops_its_oldest_and_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine_agent, "LOG_FILE_BYTES", 1000)
        log = Log(str(tmp_path), 5000)
        for number in range(200):
            log.write("out", b"line %03d " % number + b"x" * 50)
        kept = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert 5000 <= kept <= 7000
        first, *rest = read_log(str(tmp_path), 0, 1 << 30)
        assert first.stream == "agent"
        dropped = log_files(str(tmp_path))[0]
        assert str(dropped).encode() in first.data
        assert first.next == dropped
        assert rest[-1].data.startswith(b"line 199")
        assert sum(len(encode_record(r.at, r.stream, r.data)) for r in rest) == kept

    @pytest.mark.parametrize("offset", [3, 1000])
    def test_an_offset_that_is_none_is_refused(self, tmp_path: Path, offset: int) -> None:
        log = Log(str(tmp_path), 1 << 30)
        log.write("out", b"hello")
        with pytest.raises(AgentError) as caught:
            read_log(str(tmp_path), offset, 100)
        assert caught.value.kind == "BadOffset"

    def test_a_full_disk_delays_the_log_and_loses_nothing(self, tmp_path: Path) -> None:
        # RLIMIT_FSIZE is a disk that is full for one process; it must not be this one.
        program = textwrap.dedent(f"""
            import resource, signal, sys
            sys.path.insert(0, {str(Path(machine_agent.__file__).parents[2])!r})
            from gpuctl.agent.machine_agent import Log
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            log = Log({str(tmp_path)!r}, 1 << 30)
            log.write("out", b"a" * 1000)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (1100, hard))
            for number in range(50):
                log.write("out", b"b%02d" % number * 40)
            assert log.end < 1100
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            log.retry()
        """)
        subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
        records = read_log(str(tmp_path), 0, 1 << 30)
        assert [r.data[:3] for r in records] == [b"aaa"] + [b"b%02d" % n for n in range(50)]

    def test_a_disk_that_stays_full_costs_the_oldest_and_says_how_much(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine_agent, "LOG_BACKLOG_BYTES", 1000)
        log = Log(str(tmp_path), 1 << 30)
        log.write("out", b"first")
        full = True
        real = os.write

        def write(fd: int, content: bytes) -> int:
            if full:
                real(fd, bytes(content)[:3])  # as a full disk does: a part fits
                raise OSError(28, "No space left on device")
            return real(fd, content)

        monkeypatch.setattr(os, "write", write)
        for number in range(100):
            log.write("out", b"line %03d " % number + b"x" * 50)
        full = False
        log.retry()
        records = read_log(str(tmp_path), 0, 1 << 30)
        assert records[0].data == b"first"
        assert b"bytes of output were lost: the disk was full" in records[-1].data
        assert records[-2].data.startswith(b"line 099")


class TestOutput:
    def test_everything_arrives_in_order_with_its_stream(self, every_bench: Bench) -> None:
        every_bench.submit("echo one; echo two >&2; printf 'no newline'")
        every_bench.ended()
        assert every_bench.log("out") == "one\nno newline"
        assert every_bench.log("err") == "two\n"

    def test_binary_output_stays_readable(self, bench: Bench) -> None:
        bench.submit(r"printf '\000\377\376caf\303'; sleep 0.3; printf '\251\n\033[31mred'")
        bench.ended()
        assert bench.log("out") == "\x00\\xff\\xfecafé\n\x1b[31mred"
        records = read_log(str(bench.dir / "log"), 0, 1 << 20)
        pieces = [record.data for record in records if record.stream == "out"]
        assert not [piece for piece in pieces if piece.endswith(b"\xc3")], "cut in two"
        code, line = bench.call("log", str(bench.dir), "--from", "0", "--max", "1")
        assert code == 0
        assert line["type"] == "log"

    def test_twenty_megabytes_without_a_reader(self, every_bench: Bench) -> None:
        line = "x" * 99
        every_bench.submit_python(f"import sys\nfor _ in range(200_000): print({line!r})")
        every_bench.ended(60)
        assert every_bench.log("out") == f"{line}\n" * 200_000
        assert len(log_files(str(every_bench.dir / "log"))) >= 3

    def test_a_process_that_holds_the_output_open_does_not_hold_up_the_end(
        self, bench: Bench
    ) -> None:
        bench.submit("(trap '' TERM HUP; sleep 600) & echo done", term_grace_seconds=0.5)
        assert bench.ended()["outcome"] == "completed"
        assert bench.log("out") == "done\n"


def test_the_files_of_an_agent_are_its_owners_alone(bench: Bench) -> None:
    bench.arm()
    bench.submit("echo hello")
    bench.ended()
    for path in [bench.dir, *bench.dir.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_output_pumping_is_cheap() -> None:
    """The pump must not become the job's brake: 100 MB cost well under a second of CPU."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    total = sum(
        len(encode_record(1.0, "out", bytes(65536))) - unfinished_character(bytes(65536))
        for _ in range(1600)
    )
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert total > 100e6
    assert after.ru_utime - before.ru_utime < 1.0
