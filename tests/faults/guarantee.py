"""docs/guarantee.md, written by the crash matrix from what it saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.play import COMMANDS, ENDINGS, LEASE, Case
from tests.faults.sites import PROVIDERS

Row = Mapping[str, Any]  # {"case": …, "verdict": …}

_LEFT = {
    "watchdog": "only the watchdog is left",
    "machine": "only the machine's own timer is left",
    "reap": "only `gpuctl reap` runs later",
}
_HEAD = """\
# What is guaranteed, and how that is shown

This file is written by `make faults` (seed {seed}; {cases} of its {planned} cases were played). Do
not edit it: `tests/faults/guarantee.py` writes it.

gpuctl promises that nothing goes on billing, whatever breaks. The crash matrix (`tests/faults/`)
lets `provision`, `run` and `terminate` die by kill -9 just before and just after every API call,
every step on the machine and every write to the ledger, at every provider. Then one of three is
left alone to end what was rented: the watchdog; the machine's own timer (the watchdog is killed
too); or `gpuctl reap`, later (both are dead). The books of the emulated cloud say what was rented
and what still bills; gpuctl is not asked. The clouds are emulations (`tests/clouds/`), never the
real ones. Leases are {lease:g} s and settling periods 1 s, so the seconds below are compressed: on
a real cloud the lease and the settling period of that cloud stand in their place.

Of calls that repeat (polls, retries) the first three are points. The seed visits each point once
and draws which side of it, what is left, and what else goes wrong; `make faults-full` plays every
pair, tens of thousands of them, share by share.
"""
_CUT = """\
The time was over before all cases were played, so not every point was visited. Which ones were
left out is up to chance; `make faults` with the same SEED goes on with them.
"""
_NOT = """\
## What is not guaranteed

- **Hetzner with every local process dead.** A server there can only be ended with a key of the
  account, and no such key is put on a machine. Its timer switches it off at its hard end, and a
  server that is off bills on. The watchdog and `gpuctl reap` (cron, CI) carry it; without either it
  bills until somebody looks.
- **RunPod: stopped, not deleted.** The key in a pod may stop its pod and, as far as is known, not
  delete it. A stopped pod of ours has no disk and costs nothing, but it is there until the
  watchdog or `reap` deletes it. It is counted apart above.
- **RunPod, your own hosts and `local`, before the agent is there.** They have no timer from the
  boot on. Between the create and the first step on the machine only the watchdog and `reap` can
  end it.
- **A container that never starts (RunPod, Vast.ai).** A timer on the machine needs a machine that
  runs. While an image is stuck in loading only the watchdog and `reap` can end it.
- **A machine that its cloud hides.** gpuctl believes that a machine is gone when the cloud says so
  twice, a settling period apart, through every call that could show it. A cloud that bills a
  machine which its own API no longer shows cannot be caught by any tool.
- **A create that takes effect when nobody expects it any more.** A create whose caller died is
  looked for by its name for 75 s from its intent on, which is longer than any create call waits.
  AWS, RunPod and Vast.ai may deny a new machine although they have made it: there it is looked for
  60 s longer, and so is one whose answer was lost. Only then two absences, a settling period
  apart, count. Should it show up later still, its own timer or `reap` ends it, which knows it by
  its mark; until then it bills.
- **A revoked key.** Nobody can end anything without one. gpuctl exits with 6, names the machine and
  says so; the machine's own timer still ends it where it needs no key of the account.
- **The real clouds.** The emulations are made from contracts and recorded answers. Nothing here
  was rented for money.
"""


def write(path: Path, rows: Sequence[Row], seed: int, planned: int) -> None:
    """Write the file from the rows of one results file.

    Args:
        planned: how many cases the seed has.
    """
    parts = [_HEAD.format(seed=seed, cases=len(rows), planned=planned, lease=LEASE)]
    if len(rows) < planned:
        parts.append(_CUT)
    parts += [_summary(rows), _struck(rows), _NOT, *_details(rows)]
    path.write_text("\n".join(parts))


_ACTIONS = {
    "stop": "SIGSTOP for longer than the lease",
    "full": "full disk below the ledger",
    "loss": "every process of gpuctl killed at once",
}


def _plain(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not _trouble(row["case"])]


def _trouble(case: Mapping[str, Any]) -> str:
    """What goes wrong besides, in words."""
    wrong_clock = f"clock {case['clock'] // 3600:+d} h" if case["clock"] else ""
    return case["strike"] or _ACTIONS.get(case["action"]) or wrong_clock


def _summary(rows: Sequence[Row]) -> str:
    lines = [
        "## Killed at every point\n",
        "| provider | what is left | cases | leaked | double-rented | otherwise broken "
        "| seconds to zero: half, longest |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for provider in PROVIDERS:
        for ending in ENDINGS:
            found = [
                row
                for row in _plain(rows)
                if (row["case"]["provider"], row["case"]["ending"]) == (provider, ending)
            ]
            if found:
                lines.append(f"| {provider} | {_LEFT[ending]} | {_figures(found)} |")
    stopped = sum(bool(row["verdict"]["stopped"]) for row in rows)
    lines.append(
        "\nStopped and not deleted by the machine's own timer (RunPod), at 0 USD an hour: "
        f"{stopped} cases."
    )
    early = sum(Case(**row["case"]).dies and not row["verdict"]["reached"] for row in rows)
    lines.append(
        f"\nIn {early} of all cases the command came to its own end before its point, since what "
        "else went wrong kept it from getting there; its books were looked at all the same."
    )
    return "\n".join(lines) + "\n"


def _figures(rows: Sequence[Row]) -> str:
    verdicts = [row["verdict"] for row in rows]
    seconds = sorted(v["seconds"] for v in verdicts if v["seconds"] is not None)
    times = f"{seconds[len(seconds) // 2]:.0f}, {seconds[-1]:.0f}" if seconds else "–"
    cells = (
        len(rows),
        sum(bool(v["leaked"]) for v in verdicts),
        sum(v["doubled"] for v in verdicts),
        sum(bool(v["problems"]) for v in verdicts),
        times,
    )
    return " | ".join(map(str, cells))


def _struck(rows: Sequence[Row]) -> str:
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if name := _trouble(row["case"]):
            by_name[name].append(row)
    lines = [
        "## Something else goes wrong too\n",
        "| what | providers | cases | leaked | double-rented | otherwise broken "
        "| seconds to zero: half, longest |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in sorted(by_name.items()):
        where = ", ".join(sorted({row["case"]["provider"] for row in found}))
        lines.append(f"| {name} | {where} | {_figures(found)} |")
    return "\n".join(lines) + "\n"


def _details(rows: Sequence[Row]) -> list[str]:
    parts = [
        "## Point by point\n\nEach cell: leaked, double-rented, seconds to zero of the slowest "
        "case, also where something else went wrong. A dash: this ending was not drawn there, or "
        "is not owed.\n"
    ]
    dying = [row for row in rows if Case(**row["case"]).dies]
    for provider in PROVIDERS:
        here = [row for row in dying if row["case"]["provider"] == provider]
        if here:
            parts.append(_points(provider, here))
    return parts


def _points(provider: str, rows: Sequence[Row]) -> str:
    lines = [
        f"<details><summary>{provider}</summary>\n",
        "| command | point | watchdog | machine | reap |",
        "|---|---|---|---|---|",
    ]
    cells: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        case = row["case"]
        point = f"{case['side']} {case['point'].partition('#')[0]}"
        cells[case["command"], point][case["ending"]].append(row["verdict"])
    for command in COMMANDS:
        for (which, point), found in cells.items():
            if which == command:
                shown = " | ".join(_cell(found.get(ending, [])) for ending in ENDINGS)
                lines.append(f"| {command} | {point} | {shown} |")
    return "\n".join([*lines, "\n</details>\n"])


def _cell(verdicts: Sequence[Row]) -> str:
    if not verdicts:
        return "–"
    seconds = [v["seconds"] for v in verdicts if v["seconds"] is not None]
    leaked = sum(bool(v["leaked"]) for v in verdicts)
    doubled = sum(v["doubled"] for v in verdicts)
    return f"{leaked}, {doubled}, {max(seconds):.0f} s" if seconds else f"{leaked}, {doubled}, –"
