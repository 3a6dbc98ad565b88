"""The other way in, from the first command to the last, on the emulated AWS.

A Terraform folder for the best offer, `terraform apply`, `gpuctl adopt`, a real training on the
machine, `terraform destroy`, and books that are empty: the cloud's own and gpuctl's.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds.rented import needs_machines
from tests.faults.at_aws import AwsRehearsal, at_aws
from tests.infra.terraform import Root, need_terraform
from tests.run.whole_run import Ended
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), needs_machines]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[AwsRehearsal]:
    """A home with credentials for an account of its own."""
    with at_aws(tmp_path) as made:
        yield made


def emitted(rehearsal: AwsRehearsal, *more: str) -> Root:
    """A Terraform folder for the best offer, ready to be applied; else skips visibly."""
    need_terraform()
    folder = rehearsal.folder / "trainer"
    code, document, err = rehearsal.gpuctl(
        "provision", "--provider", "aws", "--name", "trainer", "--emit-terraform", folder, *more
    )
    assert code == 0, err
    assert {Path(file).name for file in document["files"]} >= {"main.tf", "README.md"}
    assert rehearsal.cloud.books.open() == {}, "something was rented"
    # The machines of the emulation share one computer, whose own sshd has port 22.
    port = rehearsal.settings["GPUCTL_AWS_SSH_PORT"]
    outputs = (folder / "outputs.tf").read_text()
    led = outputs.replace(
        "module.machine.gpuctl_machine",
        f"merge(module.machine.gpuctl_machine, {{ port = {port} }})",
    )
    assert led != outputs
    (folder / "outputs.tf").write_text(led)
    (folder / "terraform.tfvars").write_text('ssh_cidrs = ["203.0.113.7/32"]\n')
    services = {f"AWS_ENDPOINT_URL_{name}": rehearsal.cloud.url for name in ("S3", "IAM")}
    made = Root(folder, {**rehearsal.settings, **services})
    made.init()
    return made


def books_are_empty(rehearsal: AwsRehearsal) -> None:
    """The cloud's own, and gpuctl's."""
    assert until(lambda: rehearsal.cloud.books.open() == {}, 20)
    assert rehearsal.gpuctl("list")[1]["machines"] == []
    code, document, err = rehearsal.gpuctl("audit")
    assert (code, document["billing"], document["unaccounted"]) == (0, [], []), err


def test_from_an_offer_to_empty_books(rehearsal: AwsRehearsal) -> None:
    root = emitted(rehearsal, "--gpu", "A10G", "--on-demand")
    root.run("apply", "-auto-approve")
    root.run("plan", "-detailed-exitcode")  # 2 would mean that it sees a difference
    code, document, err = rehearsal.gpuctl("adopt", "--terraform", root.folder)
    assert code == 0, err
    [machine] = document["machines"]
    assert (machine["borrowed"], machine["gpu"]) == (True, "A10G")
    name = machine["name"]

    shutil.copytree(
        ROOT / "examples/quickstart",
        rehearsal.folder / "quickstart",
        ignore=shutil.ignore_patterns("artifacts", "__pycache__"),
    )
    spec = rehearsal.folder / "quickstart/train.yaml"
    ended = Ended(*rehearsal.gpuctl("run", spec, "--machine", "trainer", "--yes", seconds=400))
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert list((rehearsal.folder / "quickstart/artifacts").rglob("metrics.json"))
    assert ended.run["checkpoints"]
    [receipt] = ended.document["receipts"]
    assert receipt["confirmed"] is True
    destroy = f"terraform -chdir={root.folder} destroy"
    assert destroy in ended.err

    code, document, _ = rehearsal.gpuctl("terminate", name, "--yes")
    assert code == 2
    assert destroy in document["error"]["next"]
    code, document, err = rehearsal.gpuctl("reap")
    assert (code, document["reaped"]) == (0, []), err
    code, document, err = rehearsal.gpuctl("audit")
    assert (code, document["unaccounted"]) == (0, []), err
    assert [(one["name"], one["whose"]) for one in document["billing"]] == [(name, "terraform")]
    assert list(rehearsal.cloud.books.open("instance").values()) == [name]

    root.run("destroy", "-auto-approve")
    assert until(lambda: rehearsal.cloud.books.open() == {}, 20)
    code, document, err = rehearsal.gpuctl("terminate", name, "--yes")  # only looks, and proves
    assert (code, document["receipts"][0]["confirmed"]) == (0, True), err
    books_are_empty(rehearsal)


def test_a_spot_machine_that_is_taken_away_from_terraform(rehearsal: AwsRehearsal) -> None:
    """The run hears of it, saves, ends with closed books; the next machine carries it on."""
    root = emitted(rehearsal, "--gpu", "A10G", "--spot")
    root.run("apply", "-auto-approve")
    assert rehearsal.gpuctl("adopt", "--terraform", root.folder)[0] == 0
    spec = rehearsal.write_spec(
        "run: |\n"
        '  n=$(cat "$GPUCTL_RESUME_FROM" 2>/dev/null || echo 0)\n'
        "  while [ $n -lt 40 ]; do n=$((n + 1)); sleep 0.5\n"
        '    echo $n > "$GPUCTL_CHECKPOINT_DIR/.s"; '
        'mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$n"\n'
        "  done\n"
        "on_interruption: {max_recoveries: 0}\n"
    )
    process = rehearsal.start("run", spec, "--machine", "trainer", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 90)
    [instance] = [one.id for one in rehearsal.cloud.rentals.all.values() if one.alive]
    rehearsal.cloud.interrupt(instance, notice=12)
    _, err = process.communicate(timeout=120)
    assert "will be taken away" in err
    assert process.returncode == 1, err
    assert "gone" in rehearsal.kinds(), err

    root.run("apply", "-auto-approve", "-replace=module.machine.module.boot.terraform_data.this")
    code, document, err = rehearsal.gpuctl("adopt", "--terraform", root.folder)
    assert code == 0, err
    [new] = document["machines"]
    code, document, err = rehearsal.gpuctl("resume", rehearsal.run_id(), seconds=120)
    assert code == 0, err
    assert "restored checkpoint step-" in err
    second = document["run"]["attempts"][1]
    assert (second["outcome"], second["machine"]["region"]) == ("completed", new["name"])

    root.run("destroy", "-auto-approve")
    assert until(lambda: rehearsal.cloud.books.open() == {}, 20)
    code, document, err = rehearsal.gpuctl("reap")
    assert (code, [one["name"] for one in document["reaped"]]) == (0, [new["name"]]), err
    books_are_empty(rehearsal)
