module "boot" {
  source = "../machine-boot"

  name           = var.name
  owner          = var.owner
  max_hours      = var.max_hours
  ssh_public_key = var.ssh_public_key
  host_key       = var.host_key
}

locals {
  name       = module.boot.name
  price_hour = try(coalesce(var.price_hour, var.max_price), null)

  # What `gpuctl audit` and `gpuctl reap` go by: see providers/aws_machines.py.
  marks = {
    "gpuctl:managed"    = "1"
    "gpuctl:managed-by" = "terraform"
    "gpuctl:name"       = local.name
    "gpuctl:owner"      = var.owner
    "gpuctl:end"        = tostring(module.boot.end)
  }
  facts = {
    "Name"            = local.name
    "gpuctl:price"    = local.price_hour
    "gpuctl:host-key" = module.boot.host_key_public
  }
  tags          = merge(var.tags, local.marks)
  instance_tags = merge(local.tags, { for key, value in local.facts : key => value if value != null })

  open_to_ipv4 = [for cidr in var.ssh_cidrs : cidr if !strcontains(cidr, ":")]
  open_to_ipv6 = [for cidr in var.ssh_cidrs : cidr if strcontains(cidr, ":")]
}

# ------------------------------------------------------------------------------ image

data "aws_ssm_parameter" "ami" {
  count = var.ami_id == null ? 1 : 0

  name = var.ami_ssm_parameter
}

# ------------------------------------------------------------------------------ network

data "aws_subnet" "this" {
  count = var.subnet_id == null ? 0 : 1

  id = var.subnet_id
}

resource "aws_security_group" "this" {
  name        = local.name
  description = "SSH to one machine of gpuctl, from named addresses"
  vpc_id      = one(data.aws_subnet.this[*].vpc_id)
  tags        = merge(local.tags, { Name = local.name })
}

resource "aws_vpc_security_group_ingress_rule" "ssh_ipv4" {
  for_each = toset(local.open_to_ipv4)

  security_group_id = aws_security_group.this.id
  description       = "SSH"
  ip_protocol       = "tcp"
  from_port         = var.ssh_port
  to_port           = var.ssh_port
  cidr_ipv4         = each.value
  tags              = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "ssh_ipv6" {
  for_each = toset(local.open_to_ipv6)

  security_group_id = aws_security_group.this.id
  description       = "SSH"
  ip_protocol       = "tcp"
  from_port         = var.ssh_port
  to_port           = var.ssh_port
  cidr_ipv6         = each.value
  tags              = local.tags
}

resource "aws_vpc_security_group_egress_rule" "ipv4" {
  security_group_id = aws_security_group.this.id
  description       = "Packages, models, checkpoints"
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
  tags              = local.tags
}

resource "aws_vpc_security_group_egress_rule" "ipv6" {
  security_group_id = aws_security_group.this.id
  description       = "Packages, models, checkpoints"
  ip_protocol       = "-1"
  cidr_ipv6         = "::/0"
  tags              = local.tags
}

# ------------------------------------------------------------------------------ rights

data "aws_partition" "current" {}

locals {
  bucket_arn  = var.checkpoint_bucket == null ? null : "arn:${data.aws_partition.current.partition}:s3:::${var.checkpoint_bucket}"
  below       = var.checkpoint_prefix == null ? "" : "${var.checkpoint_prefix}/"
  with_rights = var.checkpoint_bucket != null

  may_list = {
    Sid       = "ListBelowThePrefix"
    Effect    = "Allow"
    Action    = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    Resource  = local.bucket_arn
    Condition = { StringLike = { "s3:prefix" = ["${local.below}*"] } }
  }
  may_write = {
    Sid      = "ReadAndWriteBelowThePrefix"
    Effect   = "Allow"
    Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    Resource = "${coalesce(local.bucket_arn, "-")}/${local.below}*"
  }
  may_encrypt = {
    Sid       = "UseTheKeyOfTheBucket"
    Effect    = "Allow"
    Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource  = var.checkpoint_kms_key_arn
    Condition = { StringLike = { "kms:EncryptionContext:aws:s3:arn" = "${coalesce(local.bucket_arn, "-")}*" } }
  }
}

resource "aws_iam_role" "this" {
  count = local.with_rights ? 1 : 0

  name                 = local.name
  description          = "What the machine ${local.name} may do: its checkpoints, and nothing else"
  permissions_boundary = var.permissions_boundary
  tags                 = local.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy" "checkpoints" {
  count = local.with_rights ? 1 : 0

  name = "checkpoints"
  role = aws_iam_role.this[0].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [local.may_list],
      [local.may_write],
      var.checkpoint_kms_key_arn == null ? [] : [local.may_encrypt],
    )
  })
}

resource "aws_iam_instance_profile" "this" {
  count = local.with_rights ? 1 : 0

  name = local.name
  role = aws_iam_role.this[0].name
  tags = local.tags
}

# ------------------------------------------------------------------------------ the machine

resource "aws_instance" "this" {
  ami                         = var.ami_id != null ? var.ami_id : nonsensitive(data.aws_ssm_parameter.ami[0].value)
  instance_type               = var.instance_type
  subnet_id                   = var.subnet_id
  vpc_security_group_ids      = [aws_security_group.this.id]
  associate_public_ip_address = true
  iam_instance_profile        = one(aws_iam_instance_profile.this[*].name)

  # With the timer in the user data: who switches it off from inside ends what it costs.
  instance_initiated_shutdown_behavior = "terminate"
  user_data                            = module.boot.user_data
  user_data_replace_on_change          = true

  dynamic "instance_market_options" {
    for_each = var.spot ? [1] : []

    content {
      market_type = "spot"

      spot_options {
        max_price                      = var.max_price
        spot_instance_type             = "one-time"
        instance_interruption_behavior = "terminate"
      }
    }
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 2 # a container on the machine can reach it
  }

  root_block_device {
    volume_size           = var.root_volume_size
    volume_type           = "gp3"
    encrypted             = true
    kms_key_id            = var.kms_key_id
    delete_on_termination = true
  }

  tags        = local.instance_tags
  volume_tags = merge(local.tags, { Name = local.name })

  lifecycle {
    # A newer image is no reason to take a running machine away.
    ignore_changes = [ami]

    precondition {
      condition     = var.spot || var.max_price == null
      error_message = "max_price is a bid for spot capacity: leave it out, or set spot = true."
    }

    precondition {
      condition     = (var.gpu == null) == (var.gpu_count == 0)
      error_message = "gpu and gpu_count belong together: name both, or neither."
    }

    precondition {
      condition     = var.checkpoint_bucket != null || (var.checkpoint_prefix == null && var.checkpoint_kms_key_arn == null)
      error_message = "checkpoint_prefix and checkpoint_kms_key_arn say nothing without checkpoint_bucket."
    }

    precondition {
      condition     = !module.boot.expired
      error_message = "The machine ${local.name} is past its hard end (${module.boot.expires_at}) and has ended itself. Remove it with `terraform destroy`, or have a new one: `terraform apply -replace='<this module>.module.boot.terraform_data.this'`."
    }
  }

  depends_on = [aws_iam_role_policy.checkpoints]
}
