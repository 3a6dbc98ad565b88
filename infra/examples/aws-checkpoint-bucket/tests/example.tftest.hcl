# The example with mocked providers: nothing is asked of a cloud.

mock_provider "aws" {
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

variables {
  bucket = "checkpoints-of-somebody"
}

run "bucket" {
  assert {
    condition     = output.checkpoint_store == "s3://checkpoints-of-somebody/ckpt"
    error_message = "The store is ${output.checkpoint_store}."
  }
}
