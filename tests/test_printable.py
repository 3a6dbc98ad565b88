"""Text from strangers on a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text\n\twith tabs", "plain text\n\twith tabs"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[1;1Hfake prompt", "fake prompt"),
        ("10%\r20%\r\n", "10%\n20%\n"),
        ("bell\x07 back\x08space", "bell\\x07 back\\x08space"),
        ("\x9b31m", "\\x9b31m"),
        ("\x1b\x1b[0m[31m", "\\x1b[31m"),
        ("abc\u202edef", "abc\\u202edef"),
        ("\udcff", "\\udcff"),
        ("日本 café 🎉", "日本 café 🎉"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert printable(text) == shown


anything = st.text(
    alphabet=st.one_of(st.characters(), st.sampled_from("\x1b[]\x07\\0;mJ\r\n\x9b")), max_size=60
)


@given(anything)
def test_no_control_is_left(text: str) -> None:
    for character in printable(text):
        assert character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
    printable(text).encode()


@given(anything)
def test_once_is_enough(text: str) -> None:
    assert printable(printable(text)) == printable(text)
