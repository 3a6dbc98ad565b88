"""What an EC2 machine does when it boots: its user data. Pure, but for the keys it makes.

Nothing here is an account's secret: whoever is on the machine can read its user data. The host
key is the machine's own, made here so that nobody can stand in for it on the first connection.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from datetime import datetime

POWEROFF = "systemctl poweroff --force || poweroff -f"
"""EC2 ends a machine that does this (shutdown behaviour "terminate"); `halt` would bill on."""

PYTHON = "/root/.gpuctl-python"
"""A Python environment on top of the system's: what a job installs goes there."""

PATH = ("/opt/pytorch/bin", f"{PYTHON}/bin")
"""First in a job's PATH: the Python of AWS's PyTorch images where there is one, else our own."""

_PIP = f"""\
#!/bin/sh
# pip of this machine. The system's may arrive while the machine boots.
timeout 600 cloud-init status --wait >/dev/null 2>&1
exec {PYTHON}/bin/python -m pip "$@"
"""
_TIMER = """\
left=$(({end} - $(date +%s)))
[ "$left" -gt 0 ] || left=1
systemctl stop gpuctl-end.timer 2>/dev/null
systemd-run --unit=gpuctl-end --on-active="$left"s --timer-property=AccuracySec=1s \
sh -c '{poweroff}' ||
  (sleep "$left"; {poweroff}) </dev/null >/dev/null 2>&1 &
"""
# The agent's guard does not outlive a boot, nor a job that kills whatever is called python; the
# lease that it guards is on the disk.
_REARM = """\
for folder in /root/.gpuctl/*/; do
  [ -f "$folder/lease.json" ] || continue
  echo '{end}' | python3 "$folder/machine_agent.py" rearm "$folder"
done
"""
# KillMode: what it starts goes on when it has ended.
_REARM_EVERY = (
    "systemd-run --unit=gpuctl-rearm --on-active=300s --on-unit-active=300s "
    "--property=KillMode=process sh -c {} || true"
)


@dataclass(frozen=True, slots=True)
class HostKey:
    """A machine's own SSH key."""

    private: str
    public: str  # "ssh-ed25519 AAAA..."


def new_host_key() -> HostKey:
    """Make one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return HostKey(private.decode(), public.decode())


def user_data(end: datetime, ssh_public_key: str | None, host_key: HostKey) -> str:
    """Return the cloud-config of a machine.

    It lets root in with the caller's key alone, gives sshd the host key, keeps the package
    manager's timers from taking its lock, ends the machine at its hard end, whoever else has
    forgotten it, and has a Python environment ready. `bootcmd` runs at every boot, before
    anything is installed: a reboot starts the guard of the lease again.
    """
    timer = _TIMER.format(end=int(end.timestamp()), poweroff=POWEROFF)
    rearm = _REARM.replace("{end}", json.dumps({"end": {"argv": ["sh", "-c", POWEROFF]}}))
    quiet = "apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service"
    config = {
        "disable_root": False,
        "ssh_authorized_keys": [ssh_public_key] if ssh_public_key else [],
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
        "bootcmd": [
            ["sh", "-c", timer],
            ["sh", "-c", rearm],
            ["sh", "-c", _REARM_EVERY.format(shlex.quote(rearm))],
            ["sh", "-c", f"systemctl disable --now {quiet} || true"],
            ["python3", "-m", "venv", "--without-pip", "--system-site-packages", PYTHON],
        ],
        "packages": ["python3-pip"],
        "write_files": [
            *(
                {"path": f"{PYTHON}/bin/{name}", "content": _PIP, "permissions": "0755"}
                for name in ("pip", "pip3")
            ),
            {
                # Some images let root in for single commands only.
                "path": "/etc/ssh/sshd_config.d/00-gpuctl.conf",
                "content": "PermitRootLogin prohibit-password\n",
                "permissions": "0644",
            },
        ],
    }
    return "#cloud-config\n" + json.dumps(config, indent=1)  # JSON is YAML
