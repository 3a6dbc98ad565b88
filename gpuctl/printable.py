"""Text from a machine, made harmless for a terminal."""

from __future__ import annotations

import re

# Colours and cursor movements (CSI), window titles and links (OSC, DCS and their kin).
_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)", re.DOTALL
)
# What is left of the controls, and what turns text around or is no character at all.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return text that can only be read: no colours, no cursor movements, nothing reordered.

    Newlines and tabs stay. A carriage return becomes a newline, so that a machine cannot write
    over what gpuctl says. Other controls are shown as ``\\x1b``.
    """
    text = _SEQUENCES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _UNSAFE.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
