# What is made of right inputs. The provider is mocked: nothing is asked of AWS.

mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = { id = "checkpoints-of-somebody", arn = "arn:aws:s3:::checkpoints-of-somebody" }
  }
}

variables {
  bucket = "checkpoints-of-somebody"
}

run "defaults" {
  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "Nothing keeps what is overwritten."
  }

  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "The objects are not encrypted with S3's keys."
  }

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls,
      aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls,
      aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "The bucket can be made public."
  }

  assert {
    condition = jsonencode({ for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.id => [
      one(rule.abort_incomplete_multipart_upload[*].days_after_initiation),
      one(rule.noncurrent_version_expiration[*].noncurrent_days),
      one(rule.expiration[*].days),
      ] }) == jsonencode({
      abort-stale-uploads         = [2, null, null]
      forget-what-was-overwritten = [null, 7, null]
      expire-checkpoints          = [null, null, 90]
    })
    error_message = "The lifecycle is ${jsonencode(aws_s3_bucket_lifecycle_configuration.this.rule)}."
  }

  assert {
    condition     = jsondecode(aws_s3_bucket_policy.this[0].policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false"
    error_message = "The bucket answers without TLS."
  }

  assert {
    condition     = !aws_s3_bucket.this.force_destroy
    error_message = "A destroy takes the checkpoints with it, unasked."
  }

  assert {
    condition     = output.checkpoint_store == "s3://checkpoints-of-somebody"
    error_message = "The store is ${output.checkpoint_store}."
  }
}

run "below_one_prefix" {
  variables {
    checkpoint_prefix = "team/run"
    expire_after_days = 30
    kms_key_arn       = "arn:aws:kms:us-east-1:123456789012:key/0"
  }

  assert {
    condition     = [for rule in aws_s3_bucket_lifecycle_configuration.this.rule : one(rule.filter).prefix if rule.id == "expire-checkpoints"] == ["team/run/"]
    error_message = "Something else than what is below the prefix expires."
  }

  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default).kms_master_key_id == var.kms_key_arn
    error_message = "The objects are not encrypted with the named key."
  }

  assert {
    condition     = output.checkpoint_store == "s3://checkpoints-of-somebody/team/run"
    error_message = "The store is ${output.checkpoint_store}."
  }
}

run "for_ever" {
  variables {
    expire_after_days = null
  }

  assert {
    condition     = !anytrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.id == "expire-checkpoints"])
    error_message = "Checkpoints expire although nobody wants it."
  }
}

run "an_s3_without_tls" {
  variables {
    deny_insecure_transport = false
  }

  assert {
    condition     = length(aws_s3_bucket_policy.this) == 0
    error_message = "Nobody could come in."
  }
}
