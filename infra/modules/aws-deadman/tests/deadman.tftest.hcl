# What is made of right inputs. The provider is mocked: nothing is asked of AWS.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_data "aws_region" {
    defaults = { id = "us-east-1" }
  }

  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/gpuctl-deadman" }
  }
}

run "role" {
  assert {
    condition     = jsondecode(aws_iam_role.this.assume_role_policy).Statement[0].Principal.Service == "scheduler.amazonaws.com"
    error_message = "The scheduler may not use the role."
  }

  assert {
    condition     = jsondecode(aws_iam_role.this.assume_role_policy).Statement[0].Condition.StringEquals["aws:SourceAccount"] == "123456789012"
    error_message = "The scheduler of another account may use the role."
  }

  assert {
    condition = jsondecode(aws_iam_role_policy.terminate.policy).Statement == [{
      Sid       = "EndOnlyMarked"
      Effect    = "Allow"
      Action    = "ec2:TerminateInstances"
      Resource  = "arn:aws:ec2:*:123456789012:instance/*"
      Condition = { StringEquals = { "aws:ResourceTag/gpuctl:managed" = "1" } }
    }]
    error_message = "The role may do something else than ending marked machines."
  }

  assert {
    condition     = aws_scheduler_schedule_group.this[0].name == "gpuctl"
    error_message = "gpuctl looks for another group."
  }

  assert {
    condition     = output.gpuctl_environment == { GPUCTL_AWS_SCHEDULER_ROLE = "arn:aws:iam::123456789012:role/gpuctl-deadman" }
    error_message = "gpuctl is not told of the role."
  }

  assert {
    condition     = length(aws_scheduler_schedule.this) == 0 && length(aws_budgets_budget.this) == 0
    error_message = "There is a schedule or a budget that nobody asked for."
  }
}

run "schedule" {
  variables {
    create_group = false
    machines = {
      trainer = {
        provider   = "aws"
        id         = "us-east-1/i-0123456789abcdef0"
        name       = "gpuctl-trainer-000000-89abcdef"
        expires_at = "2027-01-31T09:05:07Z"
        port       = 22
      }
    }
  }

  assert {
    condition     = length(aws_scheduler_schedule_group.this) == 0
    error_message = "The group is made although gpuctl has made it."
  }

  assert {
    condition = (
      aws_scheduler_schedule.this["trainer"].name == "gpuctl-trainer-000000-89abcdef" &&
      aws_scheduler_schedule.this["trainer"].group_name == "gpuctl" &&
      aws_scheduler_schedule.this["trainer"].schedule_expression == "at(2027-01-31T09:05:07)" &&
      aws_scheduler_schedule.this["trainer"].schedule_expression_timezone == "UTC"
    )
    error_message = "The schedule does not fire at the hard end."
  }

  assert {
    condition     = jsondecode(aws_scheduler_schedule.this["trainer"].target[0].input) == { InstanceIds = ["i-0123456789abcdef0"] }
    error_message = "The schedule ends something else."
  }
}

run "budget" {
  variables {
    monthly_budget = "100"
    budget_emails  = ["me@example.com"]
  }

  assert {
    condition     = aws_budgets_budget.this[0].limit_amount == "100" && one(aws_budgets_budget.this[0].cost_filter).values == tolist(["user:gpuctl:managed$1"])
    error_message = "The budget counts something else than what gpuctl marks."
  }

  assert {
    condition     = alltrue([for told in aws_budgets_budget.this[0].notification : contains(told.subscriber_email_addresses, "me@example.com")])
    error_message = "Somebody is not told."
  }
}
