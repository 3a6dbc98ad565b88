variable "role_name" {
  description = "Name of the role that ends machines. It begins with `gpuctl-`, for gpuctl's own key may hand over no other."
  type        = string
  default     = "gpuctl-deadman"
  nullable    = false

  validation {
    condition     = can(regex("^gpuctl-[A-Za-z0-9+=,.@_-]{1,57}$", var.role_name))
    error_message = "role_name begins with gpuctl- and is at most 64 characters."
  }
}

variable "create_group" {
  description = "Whether to make the schedule group `gpuctl`. False where gpuctl has made it already: it does so with its first schedule in a region."
  type        = bool
  default     = true
  nullable    = false
}

variable "machines" {
  description = "Machines to end at their hard end, from any key to the output `gpuctl_machine` of the module that makes the machine. Those that gpuctl rents get their schedules from gpuctl."
  type        = map(object({ provider = string, id = string, name = string, expires_at = string }))
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for machine in values(var.machines) : machine.provider == "aws"])
    error_message = "AWS ends machines on AWS only."
  }

  validation {
    condition     = alltrue([for machine in values(var.machines) : can(timeadd(machine.expires_at, "0s")) && endswith(machine.expires_at, "Z")])
    error_message = "expires_at is a moment in RFC 3339 and UTC, such as 2026-11-22T08:00:00Z."
  }
}

variable "permissions_boundary" {
  description = "ARN of a policy that bounds the role."
  type        = string
  default     = null
}

variable "monthly_budget" {
  description = "USD a month, as a decimal string, for everything marked by gpuctl; `budget_emails` hear at 80 % of it and when it is likely to be passed. The tag `gpuctl:managed` must be active as a cost allocation tag. Null: no budget."
  type        = string
  default     = null

  validation {
    condition     = var.monthly_budget == null || can(regex("^(0*[1-9][0-9]*(\\.[0-9]{1,2})?|0+\\.([1-9][0-9]?|0[1-9]))$", var.monthly_budget))
    error_message = "monthly_budget is a decimal number above 0 in quotes, such as \"100\"."
  }
}

variable "budget_emails" {
  description = "Who hears of the budget, at most ten."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = length(var.budget_emails) <= 10 && alltrue([for mail in var.budget_emails : can(regex("^[^@ ]+@[^@ ]+$", mail))])
    error_message = "budget_emails is a list of at most ten mail addresses."
  }
}

variable "tags" {
  description = "Tags of the role, the group and the budget."
  type        = map(string)
  default     = {}
  nullable    = false
}
