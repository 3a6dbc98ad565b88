"""The SSH key that gpuctl makes for each GPUCTL_HOME, and the user's own.

``ssh/id_ed25519`` in the home, mode 0600, and its public half beside it. Machines get the public
text at creation. The user's own agent and keys are only tried after it.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from gpuctl.errors import UsageError

_COMMENT = "gpuctl"
_OWN_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")  # where ssh looks, in its order of strength


def key_path(home: Path) -> Path:
    """Return where the private key of a GPUCTL_HOME is, or will be."""
    return home / "ssh" / "id_ed25519"


def key_file(home: Path) -> Path:
    """Return the private key of a GPUCTL_HOME, made on first use.

    Raises:
        UsageError: it cannot be made, or others can read it.
    """
    file = key_path(home)
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make(file)
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        raise UsageError(
            f"The SSH key {file} cannot be made or read: {error.strerror or error}",
            next="Set GPUCTL_HOME to a folder that you can write.",
        ) from error
    if mode & 0o077:
        raise UsageError(
            f"The SSH key {file} can be read by others (mode {mode:04o})",
            next=f"If nobody else used it: chmod 600 {file}. "
            "Else remove it; machines that were rented with it cannot be reached any more then.",
        )
    return file


def public_key(home: Path) -> str:
    """Return one line for an authorized_keys file, without a newline.

    Raises:
        UsageError: the key cannot be made or read.
    """
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_private_key,
    )

    file = key_file(home)
    try:
        private = load_ssh_private_key(file.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} is not a usable SSH key: {error}",
            next="Remove it; gpuctl makes another. Machines that were rented with it cannot be "
            "reached any more then.",
        ) from error
    text = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return f"{text} {_COMMENT}"


def own_key_files(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The private keys that the user's own ssh would try, without an agent."""
    home = environ.get("HOME")
    if not home:
        return []
    files = [Path(home) / ".ssh" / name for name in _OWN_KEYS]
    return [file for file in files if file.is_file()]


def _make(file: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    draft = file.with_name(f".{secrets.token_hex(8)}.part")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(text)
            out.flush()
            os.fsync(handle)
        try:
            # link() makes the first of several starting processes win.
            os.link(draft, file)
        except FileExistsError:
            return
    finally:
        draft.unlink()
    file.with_name("id_ed25519.pub").write_bytes(public + f" {_COMMENT}\n".encode())
