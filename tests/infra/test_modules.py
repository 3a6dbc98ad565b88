"""Every module and example: validated by Terraform, and its own tests pass with mocked providers.

For AWS the real provider validates. For Hetzner a stand-in does that knows the schema of provider
v1.68.0 as it was transcribed, and nothing else: see `hcloud_schema_stub.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.infra.terraform import HCLOUD, INFRA, Root, copy_of_infra, need_terraform, providers_of

FOLDERS = sorted(file.parent.relative_to(INFRA) for file in INFRA.glob("*/*/versions.tf"))
PASSED = re.compile(r"Success! (\d+) passed, 0 failed")
RUN = re.compile(r'^run "', re.MULTILINE)
_WEIGHT = {  # the AWS provider takes seconds to start, each time
    True: [pytest.mark.slow, pytest.mark.timeout(600)],
    False: [],
}
CASES = [
    pytest.param(folder, marks=_WEIGHT[bool(providers_of(INFRA / folder))], id=str(folder))
    for folder in FOLDERS
]


@pytest.fixture
def infra(tmp_path: Path) -> Path:
    need_terraform()
    return copy_of_infra(tmp_path)


@pytest.mark.parametrize("folder", CASES)
def test_it_is_valid_and_passes_its_tests(folder: Path, infra: Path) -> None:
    root = Root(infra / folder)
    root.init()
    said = json.loads(root.run("validate", "-json"))
    assert said["diagnostics"] == []
    found = PASSED.search(root.run("test"))
    assert found is not None
    tests = [file.read_text() for file in root.folder.glob("tests/*.tftest.hcl")]
    assert int(found[1]) == sum(len(RUN.findall(text)) for text in tests)


@pytest.mark.slow
def test_the_stand_in_refuses_what_the_provider_does_not_have(infra: Path) -> None:
    root = Root(infra / "wrong")
    root.folder.mkdir()
    (root.folder / "versions.tf").write_text(
        f'terraform {{\n  required_providers {{\n    hcloud = {{\n      source = "{HCLOUD}"\n'
        "    }\n  }\n}\n"
    )
    (root.folder / "main.tf").write_text(
        'resource "hcloud_server" "this" {\n  name = "x"\n  instance_type = "cx23"\n'
        '  public_net {\n    ipv4 = "one"\n  }\n}\n'
        'resource "hcloud_ssh_key" "this" {\n  name = "x"\n}\n'
        'resource "hcloud_firewall" "this" {\n  name = "x"\n  rules = []\n}\n'
    )
    root.init()
    said = json.loads(root.run("validate", "-json", code=1))
    found = sorted((one["summary"], one["detail"].split('"')[1]) for one in said["diagnostics"])
    assert found == [
        ("Incorrect attribute value type", "ipv4"),
        ("Missing required argument", "public_key"),
        ("Missing required argument", "server_type"),
        ("Unsupported argument", "instance_type"),
        ("Unsupported argument", "rules"),
    ]
