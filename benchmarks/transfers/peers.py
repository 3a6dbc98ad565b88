"""What the other tools are asked to do: argv by name."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.transfers.works import Work
from gpuctl.remote.keys import key_file

GCM = "aes128-gcm@openssh.com"


@dataclass
class Way:
    """Where the sshd is reached, and with which key."""

    port: int
    home: Path
    user: str

    def ssh(self, *more: str) -> list[str]:
        """Options of the system's tools, the port left out."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        chosen = [f"-o{option}" for option in (*options, "IdentitiesOnly=yes", *more)]
        return ["-i", str(key_file(self.home)), *chosen]


def peers(way: Way, work: Work, target: Path, *, down: bool = False) -> dict[str, list[str]]:
    """Name -> argv of everybody else, up or down; those that are not installed are left out."""
    found: dict[str, list[str]] = {}
    for cipher in ("", GCM):
        options = way.ssh(*([f"Ciphers={cipher}"] if cipher else []))
        for name, argv in _over_ssh(way, options, work, target, down).items():
            found[f"{name} gcm" if cipher else name] = argv
    found["rclone sftp"] = _rclone(way, work, target, down)
    if work.before:  # only rsync compares; the others would send everything
        found = {name: argv for name, argv in found.items() if not name.startswith(("tar", "scp"))}
    return {name: argv for name, argv in found.items() if shutil.which(argv[0])}


def _over_ssh(
    way: Way, options: list[str], work: Work, target: Path, down: bool
) -> dict[str, list[str]]:
    """Those that use the system's ssh, with these options of it."""
    shell, place = " ".join(["ssh", "-p", str(way.port), *options]), f"{way.user}@127.0.0.1"
    source, there = f"{work.source}/", f"{target}/"
    ends = [f"{place}:{source}", there] if down else [source, f"{place}:{there}"]
    found = {f"rsync {flags}": ["rsync", flags, "-e", shell, *ends] for flags in ("-a", "-az")}
    pack, unpack = f"tar -cf - -C {source} .", f"mkdir -p {target} && tar -xf - -C {target}"
    pipe = (
        f"{shell} {place} '{pack}' | ({unpack})"
        if down
        else (f"{pack} | {shell} {place} '{unpack}'")
    )
    found["tar"] = ["sh", "-c", pipe]
    ends = (
        [f"{place}:{work.source}", str(target)]
        if down
        else ([str(work.source), f"{place}:{target}"])
    )
    found["scp"] = ["scp", "-q", "-r", "-P", str(way.port), *options, *ends]
    return found


def _rclone(way: Way, work: Work, target: Path, down: bool) -> list[str]:
    remote = f":sftp,host=127.0.0.1,port={way.port},user={way.user},key_file={key_file(way.home)}"
    ends = (
        [f"{remote}:{work.source}", str(target)]
        if down
        else ([f"{work.source}/", f"{remote}:{target}"])
    )
    return ["rclone", "copy", *ends]
