"""How a pod ends itself, with the key that RunPod gives to that one pod.

This file is also the program that runs there, so it is the standard library of Python 3.8 only.
What the pod's key may do is not documented. The ways, until one is accepted: delete, stop (a
stopped pod of ours keeps no disk, so it costs nothing), stop by GraphQL, stop by the `runpodctl`
that is in every pod. Killing the container's first process is no way: RunPod starts the container
again and bills on, and then nothing is left there that would try once more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path

SECONDS = 8  # for each way; the agent waits a minute for all of them
PLACES = ("/proc/1/environ", "/etc/rp_environment")  # an SSH login sees nothing of it
_PYTHON = (
    "for p in python3 python /opt/conda/bin/python3; do "
    'command -v "$p" >/dev/null 2>&1 && exec "$p" -I -c "$@"; done; exit 127'
)


def command(root: str, pod_id: str) -> tuple[str, ...]:
    """Return what ends a pod when it is run there. It holds no key.

    Args:
        root: of the API, as pods reach it.
    """
    from providers.http_client import user_agent

    return ("sh", "-c", _PYTHON, "sh", _source(), root, pod_id, user_agent())


@lru_cache(maxsize=1)
def _source() -> str:
    return Path(__file__).read_text(encoding="utf-8")


def found_there(name: str) -> str:
    """Return a variable of the container; "" when it has none."""
    for place in PLACES:
        try:
            text = Path(place).read_bytes().decode(errors="replace")
        except OSError:
            continue  # not on this image
        for line in text.replace("\0", "\n").splitlines():
            key, _, value = line.partition("=")
            if key.split()[-1:] == [name]:  # "export NAME" in the second place
                return value.strip().strip("\"'")
    return ""


def asked(method: str, url: str, key: str, agent: str, body: object = None) -> object:
    """Return the JSON of an answer that is a success, {} when it has none; None otherwise."""
    headers = {
        "Authorization": "Bearer " + key,
        "User-Agent": agent,  # Python's own is turned away
        "Content-Type": "application/json",
    }
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            content = answer.read(1 << 20)
        return json.loads(content) if content.strip() else {}
    except (OSError, ValueError):
        return None


def main(arguments: list[str]) -> int:
    """Try the ways; 0 when one was accepted."""
    root, pod, agent = arguments
    key = found_there("RUNPOD_API_KEY")
    pod = found_there("RUNPOD_POD_ID") or pod  # a pod that was moved has another
    if key:
        place = root + "/v2/pods/" + pod
        if asked("DELETE", place, key, agent) is not None:
            return 0
        if asked("POST", place + "/action", key, agent, {"action": "stop"}) is not None:
            return 0
        query = "mutation($id: String!) { podStop(input: {podId: $id}) { id } }"
        document = {"query": query, "variables": {"id": pod}}
        said = asked("POST", root + "/graphql", key, agent, document)
        # Its errors come with a 200.
        if isinstance(said, dict) and not said.get("errors") and (said.get("data") or {}):
            return 0
    for way in (["stop", "pod", pod], ["pod", "stop", pod]):
        try:
            done = subprocess.run(
                ["runpodctl", *way],
                env={**os.environ, "RUNPOD_API_KEY": key},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
