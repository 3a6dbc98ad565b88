"""Where RunPod's key and address come from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from providers.base import AuthFailed, InvalidRequest

API = "https://api.runpod.io"
_KEY_NAMES = ("apikey", "api_key")
_LOCAL = ("127.0.0.1", "localhost", "::1")


def find_key(environ: Mapping[str, str]) -> str | None:
    """Return the account's key: RUNPOD_API_KEY, else what runpodctl or RunPod's SDK saved.

    Raises:
        AuthFailed: there is one, and it cannot be read or is none.
    """
    key = environ.get("RUNPOD_API_KEY", "").strip()
    source = "RUNPOD_API_KEY"
    if not key:
        file = _saved(environ)
        source = str(file)
        key = _key_in(file) if file.is_file() else ""
    if not key:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise AuthFailed(f"{source} holds something that is no key: spaces or odd characters.")
    return key


def is_there(environ: Mapping[str, str]) -> bool:
    """Whether there is a key to try, even one that cannot be read."""
    try:
        return find_key(environ) is not None
    except AuthFailed:
        return True  # whoever uses it is told what is wrong with it


def api_root(environ: Mapping[str, str]) -> str:
    """Return the API's address, without a path.

    Raises:
        InvalidRequest: RUNPOD_API_URL is something else than the root of this API.
    """
    given = environ.get("RUNPOD_API_URL", "").strip().rstrip("/") or API
    address = urlsplit(given)
    path = address.path.rstrip("/")
    if address.hostname == "rest.runpod.io" or path == "/v1":
        raise InvalidRequest(
            "RUNPOD_API_URL names RunPod's REST API v1, which was switched off on 2026-11-15. "
            f"Unset it, or set it to {API}."
        )
    secure = address.scheme == "https" or (
        address.scheme == "http" and address.hostname in _LOCAL  # an emulation
    )
    if not secure or not address.hostname or path not in ("", "/v2") or address.query:
        raise InvalidRequest(f"RUNPOD_API_URL should look like {API}: https, and no path.")
    return given.removesuffix("/v2")


def ssh_port(environ: Mapping[str, str]) -> int:
    """Return the port of sshd in the image.

    Raises:
        InvalidRequest: GPUCTL_RUNPOD_SSH_PORT is no port.
    """
    text = environ.get("GPUCTL_RUNPOD_SSH_PORT", "").strip() or "22"
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise InvalidRequest("GPUCTL_RUNPOD_SSH_PORT is no port: a number from 1 to 65535.")
    return int(text)


def _saved(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home()) / ".runpod" / "config.toml"


def _key_in(file: Path) -> str:
    try:
        saved = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        # Its lines are not quoted: they hold the key.
        raise AuthFailed(f"{file} cannot be read ({type(error).__name__}).") from None
    profile = saved.get("default")
    for holder in (saved, profile if isinstance(profile, dict) else {}):
        for name, value in holder.items():
            if name.lower() in _KEY_NAMES and isinstance(value, str):
                return value.strip()
    return ""
