"""Where the token of a Hetzner project is: HCLOUD_TOKEN, else the hcloud command's contexts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from providers.base import AuthFailed

ENDPOINT = "https://api.hetzner.cloud/v1"


def endpoint(environ: Mapping[str, str]) -> str:
    """Return the root of the API, without a slash at the end."""
    return (environ.get("HCLOUD_ENDPOINT", "").strip() or ENDPOINT).rstrip("/")


def token(environ: Mapping[str, str]) -> str | None:
    """Return the token, or None when there is none.

    Raises:
        AuthFailed: the hcloud command's file is there and cannot be used.
    """
    if found := environ.get("HCLOUD_TOKEN", "").strip():
        return found
    file = _file(environ)
    if file is None or not file.is_file():
        return None
    return _in_context(_read(file), environ.get("HCLOUD_CONTEXT", "").strip(), file)


def _file(environ: Mapping[str, str]) -> Path | None:
    if named := environ.get("HCLOUD_CONFIG", "").strip():
        return Path(named).expanduser()
    home = environ.get("HOME", "")
    return Path(home, ".config", "hcloud", "cli.toml") if home else None


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        # The text of the error is not shown: it may quote a line with a token.
        raise AuthFailed(
            f"{file} cannot be read ({type(error).__name__}). Correct it, or set HCLOUD_TOKEN."
        ) from None


def _in_context(config: Mapping[str, Any], wanted: str, file: Path) -> str | None:
    name = wanted or config.get("active_context")
    if not name:
        return None
    contexts = config.get("contexts")
    for context in contexts if isinstance(contexts, list) else ():
        if isinstance(context, Mapping) and context.get("name") == name:
            return str(context.get("token") or "").strip() or None
    raise AuthFailed(f"{file} has no context {name!r}. Create it with `hcloud context create`.")
