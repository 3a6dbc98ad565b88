"""Terraform's AWS provider against the emulation: apply, no drift, destroy.

The plugin comes from the folder in TF_PLUGIN_DIR; nothing is fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds.aws_cloud import AwsCloud, main_settings
from tests.clouds.aws_cloud.rentals import Times

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(600)]

_MAIN = """
terraform {
  required_providers { aws = { source = "hashicorp/aws", version = "~> 5.0" } }
}

provider "aws" {
  region                      = "us-east-1"
  skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_region_validation      = true
  skip_metadata_api_check     = true
  endpoints {
    ec2 = "URL"
    ssm = "URL"
    sts = "URL"
  }
}

data "aws_ssm_parameter" "image" {
  name = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
}

resource "aws_instance" "machine" {
  ami           = data.aws_ssm_parameter.image.value
  instance_type = "g5.xlarge"

  instance_initiated_shutdown_behavior = "terminate"

  instance_market_options {
    market_type = "spot"
    spot_options {
      spot_instance_type             = "one-time"
      instance_interruption_behavior = "terminate"
    }
  }

  metadata_options {
    http_tokens = "required"
  }

  root_block_device {
    volume_size = 40
    volume_type = "gp3"
  }

  tags = {
    "gpuctl:managed"    = "1"
    "gpuctl:managed-by" = "terraform"
    "gpuctl:name"       = "box"
  }
}

output "address" { value = aws_instance.machine.public_ip }
"""


@pytest.fixture
def cloud() -> Iterator[AwsCloud]:
    with AwsCloud() as made:
        made.rentals.times = Times(boot=1, end=1)
        yield made


def terraform(folder: Path, cloud: AwsCloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **main_settings(cloud),
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TF_IN_AUTOMATION": "1",
        "CHECKPOINT_DISABLE": "1",
    }
    return subprocess.run(
        ["terraform", *arguments, "-no-color"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_spot_instance_is_applied_without_drift_and_destroyed(
    cloud: AwsCloud, tmp_path: Path
) -> None:
    plugins = os.environ.get("TF_PLUGIN_DIR", "")
    if shutil.which("terraform") is None:
        pytest.skip("there is no terraform here")
    if not list(Path(plugins or "/nowhere").glob("*/hashicorp/aws/*")):
        pytest.skip("TF_PLUGIN_DIR names no folder with the AWS plugin")
    (tmp_path / "main.tf").write_text(_MAIN.replace("URL", cloud.url))
    for step in (
        ["init", f"-plugin-dir={plugins}"],
        ["apply", "-auto-approve"],
        ["plan", "-detailed-exitcode"],  # 2 would mean that it sees a difference
    ):
        done = terraform(tmp_path, cloud, *step)
        assert done.returncode == 0, done.stdout + done.stderr
    assert list(cloud.books.open("instance").values()) == ["box"]
    done = terraform(tmp_path, cloud, "destroy", "-auto-approve")
    assert done.returncode == 0, done.stdout + done.stderr
    assert cloud.books.open() == {}
