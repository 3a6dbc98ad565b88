"""What processes on a local machine find: a clean environment and a Python of their own."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# What a job needs from the caller's environment to reach its GPUs and packages. Everything else
# stays behind: it may hold credentials, and a rented machine would not have it either.
_PASSED_ON = re.compile(
    r"^(CUDA_.*|NVIDIA_.*|LD_LIBRARY_PATH|PIP_.*|UV_.*|.*_PROXY|.*_proxy"
    r"|SSL_CERT_.*|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|TZ)$"
)
# These would send a job's packages somewhere else than to the machine's own Python.
_DIVERTING = re.compile(
    r"^(PIP_(USER|TARGET|PREFIX|ROOT|PYTHON|REQUIRE_VIRTUALENV|CONFIG_FILE|LOG)"
    r"|UV_(SYSTEM_PYTHON|PYTHON|PROJECT_ENVIRONMENT|TARGET|PREFIX|PROJECT|ENV_FILE))$"
)
_SECRET = re.compile(r"_(TOKEN|KEY|PASSWORD|SECRET)$")
_PIP = """#!/bin/sh
# pip of this machine: installs into its own Python and nowhere else.
exec {python} -m pip "$@"
"""
_PIP_MODULE = '''"""Stands in for pip on a Python that has none."""
import os
import subprocess
import sys

other = {other!r}  # the one that runs gpuctl
if subprocess.run([other, "-c", "import pip"], stderr=subprocess.DEVNULL).returncode == 0:
    os.execv(other, [other, "-m", "pip", "--python", sys.executable, *sys.argv[1:]])
# Puts the real one in the place of this.
subprocess.run([sys.executable, "-m", "ensurepip"], stdout=sys.stderr, check=True)
os.execv(sys.executable, [sys.executable, "-m", "pip", *sys.argv[1:]])
'''
_PIP_LOOK_TIMEOUT_SECONDS = 30


def build(venv: Path) -> None:
    """Make a virtual environment on top of the Python below gpuctl's own, with `pip` in it.

    Quick, for pip itself is not copied but run from where it is.

    Raises:
        OSError, ValueError: the folder cannot be written, or its path holds a ``:``.
    """
    from venv import EnvBuilder  # slow to import

    EnvBuilder(symlinks=True, system_site_packages=True).create(venv)
    python = venv / "bin" / "python"
    script = venv / "bin" / "pip"
    script.write_text(_PIP.format(python=shlex.quote(str(python))))
    script.chmod(0o755)
    (venv / "bin" / "pip3").symlink_to("pip")
    if not has_pip(python):
        [packages] = venv.glob("lib/python*/site-packages")
        (packages / "pip").mkdir()
        (packages / "pip" / "__init__.py").touch()
        (packages / "pip" / "__main__.py").write_text(_PIP_MODULE.format(other=sys.executable))


def has_pip(python: Path) -> bool:
    """Whether that Python can import pip, as it cannot on a bare Debian."""
    argv = [str(python), "-I", "-c", "import pip"]
    timeout = _PIP_LOOK_TIMEOUT_SECONDS
    return subprocess.run(argv, capture_output=True, timeout=timeout, check=False).returncode == 0


def environment(
    environ: Mapping[str, str], *, root: Path, venv: Path, tmp: str, marker: Mapping[str, str]
) -> dict[str, str]:
    """Return the whole environment of a process on the machine.

    Args:
        environ: the caller's.
        root: the machine's own folder.
        venv: its Python.
        tmp: where temporary files go.
        marker: what makes the machine's processes known.
    """
    passed = {
        key: value
        for key, value in environ.items()
        if _PASSED_ON.match(key) and not _DIVERTING.match(key) and not _SECRET.search(key)
    }
    user = environ.get("USER") or environ.get("LOGNAME") or _login_name()
    fixed = {
        "PATH": _path(environ, venv),
        "HOME": str(root),
        "USER": user,
        "LOGNAME": user,
        "LANG": environ.get("LANG") or "C.UTF-8",
        "TMPDIR": tmp,
        "VIRTUAL_ENV": str(venv),
        "PIP_USER": "0",
    }
    caches = {
        "PIP_CACHE_DIR": str(_cache(environ) / "pip"),
        "UV_CACHE_DIR": str(_cache(environ) / "uv"),
    }
    config = _pip_config(environ)
    return {
        **caches,
        **passed,
        **fixed,
        **({"PIP_CONFIG_FILE": str(config)} if config else {}),
        **marker,
    }


def _login_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container that runs under a number
        return str(os.getuid())


def _path(environ: Mapping[str, str], venv: Path) -> str:
    # The folder of the Python that runs gpuctl, and of the one that the caller has activated,
    # hold tools that install into it.
    theirs = {str(Path(sys.prefix) / "bin")} if sys.prefix != sys.base_prefix else set()
    if active := environ.get("VIRTUAL_ENV"):
        theirs.add(str(Path(active) / "bin"))
    given = [x for x in environ.get("PATH", os.defpath).split(os.pathsep) if x.startswith("/")]
    always = ["/usr/local/bin", "/usr/bin", "/bin"]
    kept = [folder for folder in given if folder.rstrip("/") not in theirs]
    return os.pathsep.join(dict.fromkeys([str(venv / "bin"), *kept, *always]))


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or Path.home())


def _cache(environ: Mapping[str, str]) -> Path:
    if given := environ.get("XDG_CACHE_HOME"):
        return Path(given)
    return _home(environ) / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _pip_config(environ: Mapping[str, str]) -> Path | None:
    """The user's own pip configuration: the machine's HOME hides it."""
    if given := environ.get("PIP_CONFIG_FILE"):
        return Path(given)
    home = _home(environ)
    places = [
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
        home / ".pip" / "pip.conf",
    ]
    if sys.platform == "darwin":
        places.insert(0, home / "Library/Application Support/pip/pip.conf")
    return next((place for place in places if place.is_file()), None)
