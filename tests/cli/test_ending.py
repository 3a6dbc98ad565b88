"""`terminate`, `reap`, `audit`, `list --refresh` and `cost` on a cloud in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.cli.ending import together
from gpuctl.errors import GpuctlError, MayStillBill
from gpuctl.fleet.keeper import this_process
from gpuctl.ledger import Ledger
from gpuctl.names import new_machine_name
from providers.base import Ambiguous, AuthFailed, Machine, Mark, State
from tests.cli.conftest import Gpuctl
from tests.clouds.memory_cloud import MemoryCloud


def owner_of(home: Path, gpuctl: Gpuctl) -> str:
    gpuctl("list")  # makes the home
    return (home / "owner").read_text().strip()


def rent(
    ledger: Ledger, cloud: MemoryCloud, owner: str, *, lease: float = 600, row: bool = True
) -> Machine:
    """A machine in the cloud, and what the ledger would know of it."""
    now = cloud.clock.now()
    name = new_machine_name("demo", owner)
    end = (now + timedelta(hours=24)).replace(microsecond=0)
    order_number = len(cloud.machines) + 1
    machine = Machine(
        name=name, provider="memory", provider_id=f"m{order_number}", state=State.READY,
        status="RUNNING", gpu="RTX-4090", gpu_count=1, price_hour=Decimal("1.00"), region="here",
        mark=Mark(owner, end), created_at=now,
    )  # fmt: skip
    cloud.put(machine)
    if row:
        ledger.record(
            "intended", machine=name, provider="memory", offer_id="o1", gpu="RTX-4090",
            gpu_count=1, spot=False, price_hour=Decimal("1.00"), region="here", disk_gb=40.0,
            owner=owner, attempt=None, hard_end=end, lease_until=now + timedelta(seconds=lease),
            lease_seconds=abs(lease), detached=False, keeper=this_process("provision").facts(),
            purpose="provision",
        )  # fmt: skip
        ledger.record(
            "created", machine=name, provider_id=machine.provider_id, price_hour=None,
            region="here", created_at=now, access=None,
        )  # fmt: skip
    return machine


@pytest.fixture
def machine(ledger: Ledger, cloud: MemoryCloud, home: Path, gpuctl: Gpuctl) -> Machine:
    return rent(ledger, cloud, owner_of(home, gpuctl))


# ---------------------------------------------------------------------- terminate


def test_terminate_proves_it_and_gives_the_receipt_again(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine
) -> None:
    cloud.bills(machine.provider_id, "0.42")
    answer = gpuctl("terminate", "demo", "--yes", "--json")
    assert answer.code == 0
    (receipt,) = answer.json["receipts"]
    assert (receipt["name"], receipt["confirmed"], receipt["cost_usd"]) == (
        machine.name, True, 0.42,
    )  # fmt: skip
    assert len(receipt["confirmed_by"]) == 2
    assert cloud.books()[1] == 0
    again = gpuctl("terminate", machine.name, "--yes", "--json")
    assert (again.code, again.json["receipts"]) == (0, [receipt | {"leftovers": []}])


def test_terminate_needs_yes_without_a_terminal(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine
) -> None:
    answer = gpuctl("terminate", machine.name, "--json")
    assert answer.code == 2
    assert "--yes" in answer.json["error"]["next"]
    assert cloud.books()[1] == 1


@pytest.mark.parametrize("argv", [[], ["demo", "--all"]])
def test_terminate_wants_names_or_all(gpuctl: Gpuctl, argv: list[str]) -> None:
    assert gpuctl("terminate", *argv, "--yes").code == 2


def test_an_unknown_name_is_wrong_usage_with_the_nearest(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine
) -> None:
    answer = gpuctl("terminate", "damo", "--yes", "--json")
    assert answer.code == 2
    assert machine.name in answer.json["error"]["next"]
    assert cloud.books()[1] == 1


def test_what_may_still_bill_is_6_beside_the_receipts_that_there_are(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine, ledger: Ledger, home: Path
) -> None:
    other = rent(ledger, cloud, owner_of(home, gpuctl))
    cloud.faults.destroy = [AuthFailed("the key was revoked")]
    answer = gpuctl("terminate", "--all", "--yes", "--json")
    assert answer.code == 6
    by_name = {one["name"]: one["confirmed"] for one in answer.json["receipts"]}
    assert sorted(by_name.values()) == [False, True]
    error = answer.json["error"]
    assert (error["may_bill"], by_name[error["machine"]]) == (True, False)
    assert "credentials" in error["next"]
    [unproven] = [one for one in answer.json["receipts"] if not one["confirmed"]]
    assert f"https://memory.example/machines/{unproven['provider_id']}" in error["next"]
    assert "It may still be billing." in answer.err
    assert set(by_name) == {machine.name, other.name}
    assert gpuctl("terminate", "--all", "--yes").code == 0


# ------------------------------------------------------------------ reap and audit


def test_audit_is_0_while_all_is_accounted_for(gpuctl: Gpuctl, machine: Machine) -> None:
    answer = gpuctl("audit", "--json")
    assert answer.code == 0
    (billing,) = answer.json["billing"]
    assert (billing["name"], billing["whose"], billing["unaccounted"]) == (
        machine.name, "ours", None,
    )  # fmt: skip


def test_a_machine_without_a_row_is_unaccounted_and_reaped(
    gpuctl: Gpuctl, cloud: MemoryCloud, ledger: Ledger, home: Path
) -> None:
    lost = rent(ledger, cloud, owner_of(home, gpuctl), row=False)
    answer = gpuctl("audit", "--json")
    assert answer.code == 6
    assert answer.json["unaccounted"][0]["name"] == lost.name
    assert "gpuctl reap" in answer.json["error"]["next"]
    dry = gpuctl("reap", "--dry-run", "--json")
    assert (dry.code, dry.json["would_reap"][0]["name"]) == (0, lost.name)
    assert cloud.books()[1] == 1
    done = gpuctl("reap", "--json")
    assert (done.code, done.json["reaped"][0]["confirmed"]) == (0, True)
    assert cloud.books()[1] == 0
    assert gpuctl("audit").out == "Nothing is billing.\n"


def test_on_a_computer_that_rents_nothing_only_the_hard_end_counts(
    gpuctl: Gpuctl, cloud: MemoryCloud, ledger: Ledger, home: Path
) -> None:
    owner = owner_of(home, gpuctl)
    living = rent(ledger, cloud, owner, row=False)
    over = rent(ledger, cloud, owner, row=False)
    cloud.put(replace(over, mark=Mark(owner, cloud.clock.now() - timedelta(seconds=1))))
    done = gpuctl("reap", "--hard-end-only", "--json")
    assert done.code == 0
    assert [one["name"] for one in done.json["reaped"]] == [over.name]
    [kept] = done.json["kept"]
    assert kept["name"] == living.name
    assert "hard end" in kept["why"]
    assert "memory" in done.json["asked"]
    cloud.credentials = False
    assert gpuctl("reap", "--hard-end-only").code == 0, "the ledger has used it"


def test_strangers_are_listed_and_never_touched(
    gpuctl: Gpuctl, cloud: MemoryCloud, ledger: Ledger, home: Path
) -> None:
    rent(ledger, cloud, "ffffffffffff", row=False)
    owner_of(home, gpuctl)
    audit = gpuctl("audit", "--json")
    assert (audit.code, audit.json["billing"][0]["whose"]) == (0, "other")
    reap = gpuctl("reap", "--json")
    assert (reap.code, len(reap.json["kept"]), reap.json["reaped"]) == (0, 1, [])
    assert cloud.books()[1] == 1


def test_a_provider_that_does_not_answer_makes_audit_and_reap_6(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine
) -> None:
    for command in ("audit", "reap"):
        cloud.faults.list = [Ambiguous("502 from the gateway")]
        answer = gpuctl(command, "--json")
        assert answer.code == 6
        assert answer.json["errors"][0]["provider"] == "memory"
        assert answer.json["error"]["may_bill"] is True
    assert cloud.books()[1] == 1


# -------------------------------------------------------------------------- list


def test_list_asks_nobody_and_refresh_asks(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine
) -> None:
    cloud.calls.clear()
    (shown,) = gpuctl("list", "--json").json["machines"]
    assert (shown["name"], shown["state"], cloud.calls) == (machine.name, "booting", [])
    assert gpuctl("list", "--refresh", "--json").json["machines"][0]["state"] == "ready"
    cloud.take_away(machine.provider_id)
    # One look proves nothing: it is not closed by it.
    (shown,) = gpuctl("list", "--refresh", "--json").json["machines"]
    assert shown["state"] == "unknown"


def test_refresh_says_who_did_not_answer_and_shows_what_is_known(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine
) -> None:
    cloud.faults.list = [Ambiguous("502")]
    answer = gpuctl("list", "--refresh", "--json")
    assert answer.code == 6
    assert answer.json["machines"][0]["name"] == machine.name
    assert answer.json["errors"][0]["provider"] == "memory"


def test_names_from_a_cloud_cannot_write_to_the_terminal(
    gpuctl: Gpuctl, cloud: MemoryCloud, home: Path
) -> None:
    owner_of(home, gpuctl)
    cloud.put(
        Machine("evil\x1b]0;owned\x07\x1b[2J", "memory", "m9", State.READY, "RUNNING",
                created_at=datetime.now().astimezone())
    )  # fmt: skip
    answer = gpuctl("audit")
    assert "evil" in answer.out
    assert "\x1b" not in answer.out


# -------------------------------------------------------------------------- cost


def test_cost_says_which_figures_are_the_providers_own(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine, ledger: Ledger, home: Path
) -> None:
    cloud.bills(machine.provider_id, "0.42")
    gpuctl("terminate", machine.name, "--yes")
    rent(ledger, cloud, owner_of(home, gpuctl))
    cost = gpuctl("cost", "--json").json
    assert cost["billed_usd"] == 0.42
    assert cost["cost_usd"] == pytest.approx(0.42 + cost["computed_usd"])
    assert cost["by_provider"][0]["provider"] == "memory"
    assert cost["by_run"][0]["run"] is None
    assert "billed" in gpuctl("cost").out


def test_a_bill_that_comes_later_is_asked_for(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [receipt] = gpuctl("terminate", machine.name, "--yes", "--json").json["receipts"]
    assert receipt["cost_source"] == "computed"
    cloud.bills(machine.provider_id, "0.42")
    assert gpuctl("cost", "--json").json["billed_usd"] == 0, "nobody was asked"
    cost = gpuctl("cost", "--refresh", "--json").json
    assert (cost["billed_usd"], cost["computed_usd"]) == (0.42, 0)
    [listed] = gpuctl("list", "--all", "--json").json["machines"]
    assert (listed["cost_usd"], listed["cost_source"]) == (0.42, "memory billing")
    [again] = gpuctl("terminate", machine.name, "--yes", "--json").json["receipts"]
    assert again["confirmed_by"] == receipt["confirmed_by"]


def test_who_does_not_tell_its_bill_leaves_the_other_figures(
    gpuctl: Gpuctl, cloud: MemoryCloud, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpuctl("terminate", machine.name, "--yes")

    def down(_id: str) -> None:
        raise Ambiguous("503")

    monkeypatch.setattr(cloud, "billed", down)
    answer = gpuctl("cost", "--refresh", "--json")
    assert answer.code == 1
    assert answer.json["errors"][0]["provider"] == "memory"
    assert answer.json["machine_count"] == 1


# ------------------------------------------------------------------------- doctor


def test_doctor_is_4_only_for_a_named_providers_key(
    gpuctl: Gpuctl, cloud: MemoryCloud, home: Path
) -> None:
    cloud.credentials = False
    assert gpuctl("doctor", "--json").code == 0
    answer = gpuctl("doctor", "--provider", "memory", "--json")
    assert answer.code == 4
    assert answer.json["ok"] is False
    assert "memory" in answer.json["error"]["message"]
    cloud.credentials = True
    assert gpuctl("doctor", "--provider", "memory", "--json").json["ok"] is True


def test_doctor_finds_machines_without_a_watchdog(gpuctl: Gpuctl, machine: Machine) -> None:
    answer = gpuctl("doctor", "--json")
    assert answer.code == 1
    (watchdog,) = [one for one in answer.json["checks"] if one["name"] == "watchdog"]
    assert watchdog["ok"] is False


def test_a_provider_that_nobody_knows_is_wrong_usage(gpuctl: Gpuctl) -> None:
    for argv in (["doctor", "--provider", "x"], ["quote", "--provider", "x"],
                 ["provision", "--provider", "x", "--yes"]):  # fmt: skip
        assert gpuctl(*argv).code == 2


def test_providers_shows_adapters_and_reference_systems(gpuctl: Gpuctl, cloud: MemoryCloud) -> None:
    rows = {one["name"]: one for one in gpuctl("providers", "--json").json["providers"]}
    assert (rows["memory"]["adapter"], rows["memory"]["configured"]) == (True, True)
    assert (rows["azure"]["adapter"], rows["azure"]["kind"]) == (False, None)
    assert rows["local"]["by_name_only"] is True


# ------------------------------------------------------------------------- forget


def test_forgetting_needs_a_persons_word(
    gpuctl: Gpuctl, machine: Machine, cloud: MemoryCloud, ledger: Ledger
) -> None:
    cloud.faults.get = [Ambiguous("the API is off")] * 50
    done = gpuctl("forget", machine.name, "--json")
    assert done.code == 2
    assert "--i-checked-the-console" in done.json["error"]["next"]
    assert machine.provider_id in done.json["error"]["next"]
    word = ("--i-checked-the-console", "--why", "account closed")
    done = gpuctl("forget", machine.name, *word, "--json")
    assert (done.code, done.json["machine"]["closed_by"]) == (0, "forgotten")
    [event] = [event for event in ledger.events() if event.kind == "forgotten"]
    assert event.facts["why"] == "account closed"
    assert event.facts["by"]
    assert gpuctl("forget", machine.name, *word).code == 2


def test_what_is_there_cannot_be_forgotten(gpuctl: Gpuctl, machine: Machine) -> None:
    done = gpuctl("forget", machine.name, "--i-checked-the-console", "--json")
    assert done.code == 6
    assert done.json["error"]["may_bill"] is True
    assert "terminate" in done.json["error"]["next"]


def test_of_many_errors_a_few_are_told() -> None:
    errors = [GpuctlError(f"m{number}") for number in range(500)]
    error = together([*errors, MayStillBill("m500 may bill", machine="m500", next="ask again")])
    assert error.message == "m500 may bill; m0; m1; m2; m3; and 496 more"
    assert (error.exit_code, error.machine) == (6, "m500")
