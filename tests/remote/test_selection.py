"""What of a tree is sent, measured against git itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpuctl.errors import UsageError
from gpuctl.remote.selection import everything, select

NAMES = ("a", "b", "ab", "a.b", "b.py", "d", ".h", "a b", "é", "à", "B")
PIECES = (
    "a",
    "b",
    "ab",
    "*",
    "?",
    "a*",
    "*.py",
    "*.b",
    "[ab]",
    "[!a]",
    "d",
    ".h",
    "a b",
    "é",
    "à",
    "**",
)


def names(root: Path) -> set[str]:
    selection = select(root)
    return {file.path for file in selection.files} | {link.path for link in selection.links}


def git_names(root: Path, below: str = ".") -> set[str]:
    """What git calls part of the tree: tracked (nothing here) and untracked, not ignored."""
    said = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=root / below,
        capture_output=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"},
    ).stdout
    return {os.fsdecode(name) for name in said.split(b"\0") if name}


def init(root: Path) -> None:
    # What `git init` makes, without the price of a process per example.
    for folder in ("objects", "refs/heads", "info"):
        (root / ".git" / folder).mkdir(parents=True)
    (root / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (root / ".git/config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = false\n")


def build(root: Path, tree: dict[str, str]) -> None:
    for path, content in tree.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    segments = draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3))
    return (
        draw(st.sampled_from(["", "", "!"]))
        + draw(st.sampled_from(["", "", "/"]))
        + "/".join(segments)
        + draw(st.sampled_from(["", "", "/", " "]))
    )


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, str]:
    found = draw(st.lists(paths, min_size=1, max_size=14, unique=True))
    folders = {path[:i] for path in found for i in range(1, len(path))}
    tree = {"/".join(path): "x" for path in found if path not in folders}
    places = sorted({"", *("/".join(folder) + "/" for folder in folders)})
    for place in draw(st.lists(st.sampled_from(places), max_size=3, unique=True)):
        lines = draw(st.lists(patterns(), min_size=1, max_size=5))
        tree[place + ".gitignore"] = "\n".join(lines)
    return tree


@given(tree=trees())
@example({"a/b": "", "a/c.py": "", ".gitignore": "*\n!*/\n!*.py\n"})
@example({"a/b": "", "a/c/d": "", ".gitignore": "a/*\n!a/c\n"})
@example({"a/b": "", "a/c/b": "", ".gitignore": "/a/b\n", "a/c/.gitignore": "!b"})
@example({"a/b/c": "", ".gitignore": "a/\n!a/b/c"})
@example({"foo/x.py": "", "foo/x": "", ".gitignore": "foo/**\n!foo/**/\n!*.py"})
@example({"a/b/c/d": "", "a/b/e": "", ".gitignore": "a/b/**/"})
@example({"é": "", "xà": "", ".gitignore": "?\n*à"})
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sends_what_git_would_list(tree: dict[str, str]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        init(folder)
        build(folder, tree)
        assert names(folder) == git_names(folder)
    finally:
        shutil.rmtree(folder)


@given(tree=trees(), below=st.sampled_from(NAMES))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_folder_of_a_working_copy_obeys_the_files_above_it(
    tree: dict[str, str], below: str
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        init(folder)
        build(folder, tree)
        if (folder / below).is_dir():
            theirs = git_names(folder, below)
            ours = names(folder / below)
            whole = subprocess.run(["git", "check-ignore", "-q", below], cwd=folder, check=False)
            if whole.returncode == 0:  # named in so many words although git ignores all of it
                assert ours >= theirs
            else:
                assert ours == theirs
    finally:
        shutil.rmtree(folder)


def test_git_itself_is_never_sent_not_even_a_nested_one(tmp_path: Path) -> None:
    build(tmp_path, {".git/config": "", "sub/.git/config": "", "sub/.git.txt": "", "kept": ""})
    (tmp_path / "worktree").mkdir()
    (tmp_path / "worktree/.git").write_text("gitdir: /elsewhere")
    assert names(tmp_path) == {"kept", "sub/.git.txt"}


def test_gpuctlignore_has_the_last_word(tmp_path: Path) -> None:
    build(
        tmp_path,
        {
            ".gitignore": "data/\n",
            ".gpuctlignore": "!data/\nnotes.txt\n",
            "data/tokens": "",
            "data/notes.txt": "",
            "notes.txt": "",
            "sub/.gpuctlignore": "!notes.txt",
            "sub/notes.txt": "",
        },
    )
    sent = names(tmp_path) - {".gitignore", ".gpuctlignore", "sub/.gpuctlignore"}
    assert sent == {"data/tokens", "sub/notes.txt"}


def test_links_are_listed_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    build(outside, {"secret": "s"})
    root = tmp_path / "root"
    build(root, {"real/file": "f"})
    (root / "to-folder").symlink_to(outside)
    (root / "loop").symlink_to(".")
    (root / "dangling").symlink_to("./nowhere/")
    selection = select(root)
    assert [file.path for file in selection.files] == ["real/file"]
    targets = {link.path: link.target for link in selection.links}
    assert targets == {"to-folder": str(outside), "loop": ".", "dangling": "./nowhere/"}


def test_counts_sizes_and_keeps_empty_folders(tmp_path: Path) -> None:
    build(tmp_path, {"one": "12345", "two/three": "123"})
    (tmp_path / "empty").mkdir()
    selection = select(tmp_path)
    assert selection.total_bytes == 8
    assert [folder.path for folder in selection.dirs] == ["empty", "two"]


def test_odd_names_survive(tmp_path: Path) -> None:
    odd = [b"new\nline", b"not-utf8-\xff", b" lead", b"-rf", b"tab\t"]
    for name in odd:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x")
    (tmp_path / ".gitignore").write_bytes(b"*.skip\r\nnot-utf8-?.skip")
    assert {os.fsencode(name) for name in names(tmp_path)} == {*odd, b".gitignore"}


def test_a_trailing_newline_in_a_name_is_part_of_it(tmp_path: Path) -> None:
    build(tmp_path, {".gitignore": "foo\n", "foo\n": "", "foo": ""})
    assert names(tmp_path) == {".gitignore", "foo\n"}


def test_pipes_and_sockets_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert select(tmp_path).files == []
    assert everything(tmp_path).files == []


def test_an_ignore_file_that_is_a_link_or_a_folder_counts_for_nothing(tmp_path: Path) -> None:
    build(tmp_path, {"rules": "*", "a": "", "sub/b": ""})
    (tmp_path / ".gitignore").symlink_to("rules")
    (tmp_path / "sub/.gitignore").mkdir()
    assert names(tmp_path) == {".gitignore", "a", "rules", "sub/b"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_a_sentence(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    try:
        with pytest.raises(UsageError, match=r"locked cannot be read: Permission denied") as caught:
            select(tmp_path)
        assert caught.value.next is not None
        (tmp_path / ".gpuctlignore").write_text("locked\n")
        assert names(tmp_path) == {".gpuctlignore"}
    finally:
        locked.chmod(0o700)


def test_a_missing_tree_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        select(tmp_path / "absent")


def test_everything_ignores_nothing(tmp_path: Path) -> None:
    build(tmp_path, {".gitignore": "*", "a": "", ".git/config": ""})
    assert [file.path for file in everything(tmp_path).files] == [".git/config", ".gitignore", "a"]
