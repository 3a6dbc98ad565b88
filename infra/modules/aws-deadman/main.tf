locals {
  group = "gpuctl" # providers/aws_schedule.py looks for this one
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

# ------------------------------------------------------------------------------ the role

resource "aws_iam_role" "this" {
  name                 = var.role_name
  description          = "Lets EventBridge Scheduler end machines of gpuctl, and nothing else"
  permissions_boundary = var.permissions_boundary
  tags                 = var.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "scheduler.amazonaws.com" }
      # Without it somebody else's scheduler could be talked into using the role.
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.current.account_id } }
    }]
  })
}

resource "aws_iam_role_policy" "terminate" {
  name = "end-marked-machines"
  role = aws_iam_role.this.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "EndOnlyMarked"
      Effect    = "Allow"
      Action    = "ec2:TerminateInstances"
      Resource  = "arn:${data.aws_partition.current.partition}:ec2:*:${data.aws_caller_identity.current.account_id}:instance/*"
      Condition = { StringEquals = { "aws:ResourceTag/gpuctl:managed" = "1" } }
    }]
  })
}

# ------------------------------------------------------------------------------ the timers

resource "aws_scheduler_schedule_group" "this" {
  count = var.create_group ? 1 : 0

  name = local.group
  tags = var.tags
}

resource "aws_scheduler_schedule" "this" {
  for_each = var.machines

  name        = each.value.name
  group_name  = local.group
  description = "Ends ${each.value.name} at its hard end. Terraform's."

  schedule_expression          = "at(${formatdate("YYYY-MM-DD'T'hh:mm:ss", each.value.expires_at)})"
  schedule_expression_timezone = "UTC"

  flexible_time_window {
    mode = "OFF"
  }

  target {
    arn      = "arn:${data.aws_partition.current.partition}:scheduler:::aws-sdk:ec2:terminateInstances"
    role_arn = aws_iam_role.this.arn
    input    = jsonencode({ InstanceIds = [split("/", each.value.id)[1]] })
  }

  lifecycle {
    precondition {
      condition     = split("/", each.value.id)[0] == data.aws_region.current.id
      error_message = "${each.value.name} is in ${split("/", each.value.id)[0]}, and this module's schedules are in ${data.aws_region.current.id}: use the module once a region, with another role_name."
    }
  }

  # A schedule in a group that is not there yet, or with a role that may nothing yet, is refused.
  depends_on = [aws_scheduler_schedule_group.this, aws_iam_role_policy.terminate]
}

# ------------------------------------------------------------------------------ the backstop

resource "aws_budgets_budget" "this" {
  count = var.monthly_budget == null ? 0 : 1

  name         = var.role_name
  budget_type  = "COST"
  limit_amount = var.monthly_budget
  limit_unit   = "USD"
  time_unit    = "MONTHLY"
  tags         = var.tags

  cost_filter {
    name   = "TagKeyValue"
    values = ["user:gpuctl:managed$1"]
  }

  notification {
    comparison_operator        = "GREATER_THAN"
    notification_type          = "ACTUAL"
    threshold                  = 80
    threshold_type             = "PERCENTAGE"
    subscriber_email_addresses = var.budget_emails
  }

  notification {
    comparison_operator        = "GREATER_THAN"
    notification_type          = "FORECASTED"
    threshold                  = 100
    threshold_type             = "PERCENTAGE"
    subscriber_email_addresses = var.budget_emails
  }

  lifecycle {
    precondition {
      condition     = length(var.budget_emails) > 0
      error_message = "A budget that nobody hears of is none: name somebody in budget_emails."
    }
  }
}
