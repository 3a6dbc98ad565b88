"""What a server is given for its first boot: its host key, its timer, its Python.

It is sent as cloud-init's user data, which Hetzner keeps and every process on the machine can
read. So nothing in it opens anything else: the host key is the machine's own, new for each.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

PYTHON = "/root/.gpuctl-python"
"""The machine's own Python environment, on top of the system's: what a job installs goes there."""

_KEY_TYPE = b"ssh-ed25519"
_RAW_BYTES = 32
_PIP = f"""#!/bin/sh
# pip of this machine. The system's arrives while the machine boots.
timeout 600 cloud-init status --wait >/dev/null 2>&1
exec {PYTHON}/bin/python -m pip "$@"
"""
# `bootcmd` runs before anything is installed, and at every boot.
_TIMER = """\
left=$(({end} - $(date +%s)))
[ "$left" -gt 0 ] || left=1
systemd-run --unit=gpuctl-end --on-active="$left"s --timer-property=AccuracySec=1s poweroff ||
  (sleep "$left"; poweroff) </dev/null >/dev/null 2>&1 &
"""


@dataclass(frozen=True, slots=True)
class HostKey:
    """A new host key. ``label`` is its public half as a label's value can hold it."""

    private: str  # OpenSSH's format
    public: str  # "ssh-ed25519 AAAA..."
    label: str


def new_host_key() -> HostKey:
    """Return a host key that nobody has."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)
    private = key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()
    ).decode()
    return HostKey(private, _line(raw), base64.b32encode(raw).decode().rstrip("="))


def host_key_of(label: object) -> str | None:
    """Return the public host key that a label holds, or None where it holds none."""
    text = str(label or "")
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return None
    return _line(raw) if len(raw) == _RAW_BYTES else None


def user_data(key: HostKey, end: datetime) -> str:
    """Return the user data of a new server.

    Its timer is set at every boot. It only switches the server off, which ends what it does and
    not what it costs: no credential that Hetzner has is narrow enough to be put there.

    Args:
        end: its hard end.
    """
    config: Mapping[str, object] = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": key.private, "ed25519_public": key.public},
        "ssh_pwauth": False,
        # Before sshd, and without a network: whoever gets in finds it.
        "bootcmd": [
            ["sh", "-c", _TIMER.format(end=int(end.timestamp()))],
            ["python3", "-m", "venv", "--without-pip", "--system-site-packages", PYTHON],
        ],
        "write_files": [
            {"path": f"{PYTHON}/bin/{name}", "permissions": "0755", "content": _PIP}
            for name in ("pip", "pip3")
        ],
        "packages": ["python3-pip"],
    }
    return f"#cloud-config\n{json.dumps(config)}\n"  # JSON is YAML


def _line(raw: bytes) -> str:
    blob = b"".join(len(one).to_bytes(4, "big") + one for one in (_KEY_TYPE, raw))
    return f"{_KEY_TYPE.decode()} {base64.b64encode(blob).decode()}"
