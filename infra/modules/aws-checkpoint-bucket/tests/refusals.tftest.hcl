# What a wrong input is answered with. The provider is mocked: nothing is asked of AWS.

mock_provider "aws" {}

variables {
  bucket = "checkpoints-of-somebody"
}

run "bad_bucket" {
  command = plan

  variables {
    bucket = "Check.Points"
  }

  expect_failures = [var.bucket]
}

run "bad_key" {
  command = plan

  variables {
    kms_key_arn = "alias/mine"
  }

  expect_failures = [var.kms_key_arn]
}

run "slash_at_the_end" {
  command = plan

  variables {
    checkpoint_prefix = "ckpt/"
  }

  expect_failures = [var.checkpoint_prefix]
}

run "expires_at_once" {
  command = plan

  variables {
    expire_after_days = 0
  }

  expect_failures = [var.expire_after_days]
}

run "half_a_day" {
  command = plan

  variables {
    noncurrent_after_days = 0.5
  }

  expect_failures = [var.noncurrent_after_days]
}

run "no_patience" {
  command = plan

  variables {
    abort_uploads_after_days = 0
  }

  expect_failures = [var.abort_uploads_after_days]
}

run "a_prefix_of_what_never_expires" {
  command = plan

  variables {
    checkpoint_prefix = "ckpt"
    expire_after_days = null
  }

  expect_failures = [aws_s3_bucket_lifecycle_configuration.this]
}
