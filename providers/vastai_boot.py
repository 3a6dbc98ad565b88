"""What runs on a Vast.ai machine by our order: how it ends itself, and its guard from boot on.

Both use the key that Vast.ai puts into the container (`CONTAINER_API_KEY`): it may end that one
instance and nothing else. The account's key never gets there.
"""

from __future__ import annotations

import shlex
from datetime import datetime

from providers.base import SelfEnd

PATIENCE_SECONDS = 3600
"""After a boot, so long for gpuctl to send its agent; then the machine ends itself."""

_LONGEST = 4048  # characters of `onstart`

END_PROGRAM = """\
import os, sys, json, urllib.request, urllib.error
def told(name):
    texts = [os.environ.get(name, "")]
    for path in ("/proc/1/environ", "/etc/environment"):
        try:
            text = open(path, "rb").read().decode(errors="replace")
        except OSError:
            continue
        for line in text.replace("\\0", "\\n").split("\\n"):
            key, _, value = line.partition("=")
            if key.strip() == name: texts.append(value.strip().strip("\\"'"))
    return next((t for t in texts if t), "")
def main(root, id):
    id = told("CONTAINER_ID") if id == "-" else id
    request = urllib.request.Request(
        root + "/api/v0/instances/" + id + "/", b"{}", method="DELETE",
        headers={"Authorization": "Bearer " + told("CONTAINER_API_KEY"),
                 "Content-Type": "application/json", "User-Agent": "gpuctl/guard"})
    try:
        body = json.loads(urllib.request.urlopen(request, timeout=20).read() or b"{}")
    except urllib.error.HTTPError as error:
        return 4
    return 0 if body.get("success") is not False else 5
sys.exit(main(*sys.argv[1:3]))
"""
"""For any Python since 3.8, with the standard library alone. Arguments: API root, instance id."""

_FIND_PYTHON = (
    "for p in python3 /usr/bin/python3 /opt/conda/bin/python3 /venv/main/bin/python3 "
    '/usr/local/bin/python3 python; do command -v "$p" >/dev/null 2>&1 && '
    '"$p" -c "import urllib.request" 2>/dev/null && exec "$p" -c "$0" "$@"; done; exit 127'
)
_PYTHON = 'PATH="$PATH:/opt/conda/bin:/venv/main/bin:/usr/local/bin" python3'


def self_end(root: str, provider_id: str) -> SelfEnd:
    """How a machine destroys itself. The key is read there; it is not in the command.

    Args:
        root: of the API, as the machine reaches it.
    """
    return SelfEnd(argv=("sh", "-c", _FIND_PYTHON, END_PROGRAM, root, provider_id))


def onstart(root: str, end: datetime, public_key: str | None, *, patience: int) -> str:
    """Return the script that Vast.ai runs at every boot of the container.

    It lets our SSH key in, and again when somebody takes it out. It has the agent guard the lease
    that is on the disk, again every few minutes: a machine that was outbid comes back by itself and
    bills when it is long forgotten, and a job may kill whatever is called python. It ends the
    machine at its hard end, and when nobody has sent an agent ``patience`` seconds after a boot.

    Raises:
        ValueError: it would be longer than Vast.ai takes.
    """
    argv = " ".join(map(shlex.quote, self_end(root, "-").argv))
    key = shlex.quote(public_key or "")
    script = f"""\
# gpuctl: the guard of this machine
touch ~/.gpuctl-booted
mkdir -p ~/.ssh ~/.gpuctl && chmod 700 ~/.ssh
cat > ~/.gpuctl-end <<'END'
{argv}
END
(
trap '' HUP
rearm() {{
for d in ~/.gpuctl/*/; do
  [ -f "$d/lease.json" ] && echo "{{\\"end\\":{{\\"argv\\":[\\"sh\\",\\"$HOME/.gpuctl-end\\"]}}}}" |
    {_PYTHON} "$d/machine_agent.py" rearm "$d"
done
}}
K={key} E={int(end.timestamp())} P=$(( $(date +%s) + {patience} )) C=0
while :; do
  [ $((C % 15)) -eq 0 ] && rearm
  C=$((C + 1))
  if [ -n "$K" ] && ! grep -qsF "$K" ~/.ssh/authorized_keys; then
    echo "$K" >> ~/.ssh/authorized_keys; chmod 600 ~/.ssh/authorized_keys
  fi
  N=$(date +%s) L=$E
  if [ -z "$(find ~/.gpuctl -type f -newer ~/.gpuctl-booted 2>/dev/null | head -n 1)" ]; then
    [ "$P" -lt "$L" ] && L=$P
  fi
  if [ "$N" -ge "$L" ]; then
    sh ~/.gpuctl-end
    sleep 10
  else
    S=$((L - N)); [ "$S" -gt 20 ] && S=20
    sleep "$S"
  fi
done
) </dev/null >/dev/null 2>&1 &
"""
    if len(script) > _LONGEST:
        raise ValueError(f"onstart has {len(script)} characters")
    return script
