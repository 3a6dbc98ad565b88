# The example with mocked providers: nothing is asked of a cloud.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_resource "aws_instance" {
    defaults = {
      id        = "i-0123456789abcdef0"
      arn       = "arn:aws:ec2:us-east-1:123456789012:instance/i-0123456789abcdef0"
      public_ip = "192.0.2.10"
    }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/gpuctl-deadman" }
  }

  mock_resource "aws_s3_bucket" {
    defaults = { id = "checkpoints-of-somebody", arn = "arn:aws:s3:::checkpoints-of-somebody" }
  }

  mock_data "aws_region" {
    defaults = { id = "us-east-1" }
  }

  mock_data "aws_ssm_parameter" {
    defaults = { value = "ami-0fedcba9876543210" }
  }
}

mock_provider "hcloud" {
  mock_resource "hcloud_firewall" {
    defaults = { id = "38" }
  }

  mock_resource "hcloud_server" {
    defaults = { id = "4711", ipv4_address = "192.0.2.11" }
  }
}

variables {
  bucket       = "checkpoints-of-somebody"
  ssh_cidrs    = ["203.0.113.7/32"]
  ssh_key_file = "./tests/id_ed25519"
}

run "everything" {
  assert {
    condition     = output.gpuctl_machine.id == "us-east-1/i-0123456789abcdef0" && output.gpuctl_machine.price_hour == "0.60"
    error_message = "gpuctl cannot adopt it."
  }

  assert {
    condition     = output.checkpoint_store == "s3://checkpoints-of-somebody/ckpt"
    error_message = "The store is ${output.checkpoint_store}."
  }

  assert {
    condition     = output.serving.host == "192.0.2.11"
    error_message = "Nothing serves."
  }

  assert {
    condition     = output.serving.name != output.gpuctl_machine.name
    error_message = "Two machines have one name."
  }
}

run "without_the_host" {
  variables {
    serving = false
  }

  assert {
    condition     = output.serving == null
    error_message = "Something serves."
  }
}
