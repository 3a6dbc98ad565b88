"""What of a tree is sent: everything that git would call part of it.

`.gitignore` works as in git: nested, and also from the folders above up to the top of the working
copy. `.gpuctlignore` has the same syntax and the last word, so ``!data/`` there sends what git
ignores. `.git` is never sent. What is tracked although it is ignored is ignored here: the index
is not read.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from gpuctl.errors import UsageError

_BOM = b"\xef\xbb\xbf"
_AS_CHARACTERS = {10: 0, **{byte: 0xE000 + byte for byte in range(0x80, 0x100)}}
_ALL_FOLDERS_BELOW = re.compile(r"/\*\*/ *$")
_PARENT_MARK = "ps_d"  # the group in which pathspec reports that a folder above matched


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. ``path`` is relative to the tree, with ``/``; odd bytes as os.fsdecode."""

    path: str
    size: int
    mtime_ns: int
    mode: int


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder below the tree."""

    path: str
    mode: int


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link, to whatever; it is never followed."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What is sent, each list sorted by path."""

    files: Sequence[File]
    dirs: Sequence[Folder]
    links: Sequence[Link]

    @property
    def total_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(file.size for file in self.files)


def select(root: Path) -> Selection:
    """List what of the tree is sent.

    Raises:
        UsageError: the tree, or something in it that is not ignored, cannot be read.
    """
    return _listed(root, _rules_above(root.resolve()))


def everything(root: Path) -> Selection:
    """List all of a tree, ignoring nothing.

    Raises:
        UsageError: something in it cannot be read.
    """
    return _listed(root, None)


# --------------------------------------------------------------------------- rules


@dataclass(frozen=True, slots=True)
class _Rule:
    """One line of an ignore file."""

    regex: re.Pattern[str]
    ignores: bool

    def applies(self, path: str, *, is_dir: bool) -> bool:
        """Whether the line names this very path, not merely a folder above it.

        Folders above have been judged already when their contents come up, so a match of theirs
        must not count a second time: that is how ``*`` and ``!*/`` work together in git.
        """
        found = self.regex.search(path)
        if found and not found.groupdict().get(_PARENT_MARK):
            return True
        if not is_dir:
            return False
        with_slash = path + "/"
        return any(
            found.groupdict().get(_PARENT_MARK) and found.end() == len(with_slash)
            for found in self.regex.finditer(with_slash)
        )


@dataclass(frozen=True, slots=True)
class _Rules:
    """The ignore files that count in one folder, the outermost first."""

    # For each file: how many characters of a path (relative to the top) lead to its folder,
    # and its lines, the last first.
    git: tuple[tuple[int, tuple[_Rule, ...]], ...] = ()
    ours: tuple[tuple[int, tuple[_Rule, ...]], ...] = ()
    prefix: str = ""  # of the tree's root below the top of the working copy, ends with "/"

    def ignores(self, path: str, *, is_dir: bool) -> bool:
        """Whether git, or .gpuctlignore, leaves out this path (relative to the tree's root)."""
        whole = _bytewise(os.fsencode(self.prefix + path))
        for files in (self.ours, self.git):
            for depth, rules in reversed(files):
                for rule in rules:
                    if rule.applies(whole[depth:], is_dir=is_dir):
                        return rule.ignores
        return False

    def inside(self, folder: Path, path: str) -> _Rules:
        """The rules in a folder of the tree; ``path`` is "" or ends with "/"."""
        depth = len(os.fsencode(self.prefix + path))
        git, ours = _read(folder / ".gitignore"), _read(folder / ".gpuctlignore")
        return _Rules(
            (*self.git, (depth, git)) if git else self.git,
            (*self.ours, (depth, ours)) if ours else self.ours,
            self.prefix,
        )


def _rules_above(root: Path) -> _Rules:
    """The rules of the working copy around the tree; none when it ignores the whole tree."""
    top = next((place for place in (root, *root.parents) if (place / ".git").exists()), root)
    rules = _Rules()
    if excluded := _read(top / ".git" / "info" / "exclude"):
        rules = _Rules(git=((0, excluded),))
    place, path = top, ""
    for name in root.relative_to(top).parts:
        rules = rules.inside(place, path)
        place, path = place / name, f"{path}{name}/"
        if rules.ignores(path[:-1], is_dir=True):
            return _Rules()  # it was named in so many words, so it is wanted
    return _Rules(rules.git, rules.ours, path)


def _read(file: Path) -> tuple[_Rule, ...]:
    try:
        # As git: an ignore file that is a link counts for nothing.
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return ()
        raise _unreadable(file, error) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return ()
    with os.fdopen(handle, "rb") as opened:
        content = opened.read().removeprefix(_BOM)
    return tuple(reversed(list(_compiled(map(_bytewise, content.split(b"\n"))))))


def _bytewise(raw: bytes) -> str:
    """A character a byte, for git matches bytes: "?" is half of an "é".

    No byte above ASCII becomes a blank, which pathspec would strip off a pattern's end, and no
    newline is left, before which "$" would match.
    """
    return raw.decode("latin-1").translate(_AS_CHARACTERS)


def _compiled(lines: Iterable[str]) -> Iterator[_Rule]:
    for line in lines:
        # To git "a/**/" is every folder below a; to pathspec it is a itself.
        line = _ALL_FOLDERS_BELOW.sub("/**/*/", line)
        try:
            pattern = GitIgnoreSpecPattern(line)
        except ValueError:  # git, too, passes over a line that means nothing
            continue
        if pattern.include is not None and pattern.regex is not None:
            yield _Rule(pattern.regex, pattern.include)


# --------------------------------------------------------------------------- the walk


@dataclass(slots=True)
class _Found:
    files: list[File] = field(default_factory=list)
    dirs: list[Folder] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


def _listed(root: Path, rules: _Rules | None) -> Selection:
    found = _Found()
    waiting = [("", rules)]
    while waiting:
        path, outer = waiting.pop()
        folder = root / path
        try:
            with os.scandir(folder) as entries:
                here = outer.inside(folder, path) if outer is not None else None
                for entry in entries:
                    waiting.extend(_look(entry, path, here, found))
        except OSError as error:
            raise _unreadable(Path(error.filename or folder), error) from error
    found.files.sort(key=lambda file: file.path)
    found.dirs.sort(key=lambda folder: folder.path)
    found.links.sort(key=lambda link: link.path)
    return Selection(found.files, found.dirs, found.links)


def _look(
    entry: os.DirEntry[str], parent: str, rules: _Rules | None, found: _Found
) -> Iterator[tuple[str, _Rules | None]]:
    """Sort one entry in; yield it when it is a folder to go into."""
    path = parent + entry.name
    is_dir = entry.is_dir(follow_symlinks=False)
    if rules is not None and (entry.name == ".git" or rules.ignores(path, is_dir=is_dir)):
        return
    try:
        state = entry.stat(follow_symlinks=False)
        if is_dir:
            found.dirs.append(Folder(path, stat.S_IMODE(state.st_mode)))
            yield path + "/", rules
        elif stat.S_ISLNK(state.st_mode):
            target = os.readlink(entry.path)  # noqa: PTH115 - Path would turn ./a into a
            found.links.append(Link(path, target))
        elif stat.S_ISREG(state.st_mode):
            mode = stat.S_IMODE(state.st_mode)
            found.files.append(File(path, state.st_size, state.st_mtime_ns, mode))
    except FileNotFoundError:
        return  # removed while we looked: it is not part of the tree any more


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{path} cannot be read: {error.strerror}",
        next="Make it readable, or name it in .gpuctlignore.",
    )
