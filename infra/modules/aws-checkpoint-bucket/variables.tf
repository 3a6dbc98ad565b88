variable "bucket" {
  description = "Name of the bucket: unique in all of AWS, and without dots, which TLS does not like."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "bucket is 3 to 63 lower-case letters, digits and dashes, with no dash at either end."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` may delete the checkpoints that are in the bucket. Otherwise it refuses while there are any."
  type        = bool
  default     = false
  nullable    = false
}

variable "deny_insecure_transport" {
  description = "Whether the bucket refuses whoever comes without TLS. False only for an S3 that has none, such as an emulated one."
  type        = bool
  default     = true
  nullable    = false
}

variable "kms_key_arn" {
  description = "KMS key that encrypts the objects. Null: S3's own keys, which cost nothing."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:aws[a-z-]*:kms:", var.kms_key_arn))
    error_message = "kms_key_arn is the ARN of a KMS key."
  }
}

variable "checkpoint_prefix" {
  description = "Only what is below this path expires, without a slash at either end. Null: everything in the bucket."
  type        = string
  default     = null

  validation {
    condition     = var.checkpoint_prefix == null || can(regex("^[^/]+(/[^/]+)*$", var.checkpoint_prefix))
    error_message = "checkpoint_prefix is a path such as team/run, without a slash at either end."
  }
}

variable "expire_after_days" {
  description = "Days after which a checkpoint expires. Null: never."
  type        = number
  default     = 90

  validation {
    condition     = var.expire_after_days == null || try(var.expire_after_days >= 1 && floor(var.expire_after_days) == var.expire_after_days, false)
    error_message = "expire_after_days is a whole number of days, 1 or more, or null."
  }
}

variable "noncurrent_after_days" {
  description = "Days for which S3 keeps what was overwritten or deleted."
  type        = number
  default     = 7
  nullable    = false

  validation {
    condition     = var.noncurrent_after_days >= 1 && floor(var.noncurrent_after_days) == var.noncurrent_after_days
    error_message = "noncurrent_after_days is a whole number of days, 1 or more."
  }
}

variable "abort_uploads_after_days" {
  description = "Days after which the parts of an upload that never ended are removed; they cost what an object costs, and no listing shows them."
  type        = number
  default     = 2
  nullable    = false

  validation {
    condition     = var.abort_uploads_after_days >= 1 && floor(var.abort_uploads_after_days) == var.abort_uploads_after_days
    error_message = "abort_uploads_after_days is a whole number of days, 1 or more."
  }
}

variable "tags" {
  description = "Tags of the bucket."
  type        = map(string)
  default     = {}
  nullable    = false
}
