"""The local copy of a job's output: read from both ends, a piece at a time, whatever is torn."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gpuctl.home import Home
from gpuctl.run.journal import Entry, Journal

RUN = "demo-1a2b3c"

ENTRIES = st.lists(st.tuples(st.booleans(), st.sampled_from("oea"), st.text(max_size=30))).map(
    lambda drawn: [
        Entry(
            attempt=1 + sum(new for new, _, _ in drawn[: i + 1]),
            next=10 * (i + 1),
            at=1763730000.5,
            stream={"o": "out", "e": "err", "a": "agent"}[stream],
            text=text,
        )
        for i, (_, stream, text) in enumerate(drawn)
    ]
)
AT_ONCE = st.integers(1, 300)


def written(folder: str, entries: list[Entry], torn: bytes = b"") -> Journal:
    journal = Journal(Home(Path(folder), "a1b2c3d4e5f6"), RUN)
    for entry in entries:
        journal.append(entry)
    journal.close()
    if torn:
        journal.path.parent.mkdir(parents=True, exist_ok=True)
        with journal.path.open("ab") as file:
            file.write(torn)
    return journal


def forwards(journal: Journal, at_once: int) -> list[Entry]:
    found: list[Entry] = []
    offset = 0
    while True:
        entries, after = journal.read(offset, at_once=at_once)
        found += entries
        if after == offset:
            return found
        offset = after


@given(ENTRIES, AT_ONCE, st.sampled_from([b"", b"{", b'{"attempt": 9, "next": 9', b"\xff"]))
def test_it_reads_the_same_from_both_ends(entries: list[Entry], at_once: int, torn: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = written(folder, entries, torn)
        assert forwards(journal, at_once) == entries
        end = journal.end(at_once=at_once)
        assert list(journal.backwards(end, at_once=at_once)) == entries[::-1]
        for attempt in range(1, 4):
            last = [one.next for one in entries if one.attempt == attempt]
            assert journal.next_offset(attempt) == max(last, default=0)


@given(ENTRIES, ENTRIES)
def test_what_follows_a_torn_line_is_not_lost(before: list[Entry], after: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written(folder, before, b'{"attempt": 1, "te')
        journal = written(folder, after)
        if after:
            assert forwards(journal, 100) == before + after


def test_there_need_not_be_any(tmp_path: Path) -> None:
    journal = Journal(Home(tmp_path, "a1b2c3d4e5f6"), RUN)
    assert journal.read() == ([], 0)
    assert (journal.end(), list(journal.backwards(0)), journal.next_offset(1)) == (0, [], 0)
