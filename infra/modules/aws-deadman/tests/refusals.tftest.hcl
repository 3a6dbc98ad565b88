# What a wrong input is answered with. The provider is mocked: nothing is asked of AWS.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_region" {
    defaults = { id = "us-east-1" }
  }
}

run "a_role_that_gpuctl_may_not_hand_over" {
  command = plan

  variables {
    role_name = "deadman"
  }

  expect_failures = [var.role_name]
}

run "a_machine_elsewhere" {
  command = plan

  variables {
    machines = { host = { provider = "hetzner", id = "hel1/i-0123456789abcdef0", name = "gpuctl-trainer-000000-89abcdef", expires_at = "2027-01-01T00:00:00Z" } }
  }

  expect_failures = [var.machines]
}

run "an_end_that_is_no_moment" {
  command = plan

  variables {
    machines = { trainer = { provider = "aws", id = "us-east-1/i-0123456789abcdef0", name = "gpuctl-trainer-000000-89abcdef", expires_at = "tomorrow" } }
  }

  expect_failures = [var.machines]
}

run "an_end_in_another_time_zone" {
  command = plan

  variables {
    machines = { trainer = { provider = "aws", id = "us-east-1/i-0123456789abcdef0", name = "gpuctl-trainer-000000-89abcdef", expires_at = "2027-01-31T10:05:07+01:00" } }
  }

  expect_failures = [var.machines]
}

run "another_region" {
  command = plan

  variables {
    machines = { trainer = { provider = "aws", id = "eu-west-1/i-0123456789abcdef0", name = "gpuctl-trainer-000000-89abcdef", expires_at = "2027-01-01T00:00:00Z" } }
  }

  expect_failures = [aws_scheduler_schedule.this["trainer"]]
}

run "no_budget" {
  command = plan

  variables {
    monthly_budget = "0"
  }

  expect_failures = [var.monthly_budget]
}

run "a_budget_that_nobody_hears_of" {
  command = plan

  variables {
    monthly_budget = "100"
  }

  expect_failures = [aws_budgets_budget.this]
}

run "no_mail_address" {
  command = plan

  variables {
    budget_emails = ["me"]
  }

  expect_failures = [var.budget_emails]
}
