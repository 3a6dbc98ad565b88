"""What a login shell is given, tried on a real one."""

from __future__ import annotations

import shutil
import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.remote.ssh_command import command_line

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


def through(shell: str, line: bytes) -> list[bytes]:
    """What a shell prints for it: the marker's line, and the rest."""
    done = subprocess.run([shell, "-c", line], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(b"\n", 1)


@settings(deadline=None, max_examples=40)
@given(st.lists(WORDS, max_size=4), st.sampled_from(["sh", "bash"]))
def test_every_word_arrives(words: list[str], shell: str) -> None:
    if shutil.which(shell) is None:
        return
    line = command_line(["printf", "<%s>", *words] if words else ["printf", "none"])
    marker, rest = through(shell, line)
    assert marker.startswith(b"gpuctl-command ")
    assert rest.decode() == ("".join(f"<{word}>" for word in words) or "none")


@settings(deadline=None, max_examples=20)
@given(WORDS)
def test_a_script_arrives(text: str) -> None:
    quoted = text.replace("'", "'\\''")
    assert through("sh", command_line(f"printf %s '{quoted}'"))[1].decode() == text
