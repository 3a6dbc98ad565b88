# Terraform has no function for the seconds since 1970, and labels at Hetzner hold no colons.
# Days as in "chrono-Compatible Low-Level Date Algorithms": the year begins in March.
locals {
  month   = tonumber(formatdate("M", var.moment))
  year    = tonumber(formatdate("YYYY", var.moment)) - (local.month <= 2 ? 1 : 0)
  leaps   = floor(local.year / 4) - floor(local.year / 100) + floor(local.year / 400)
  to_here = floor((153 * (local.month + (local.month > 2 ? -3 : 9)) + 2) / 5)
  days    = 365 * local.year + local.leaps + local.to_here + tonumber(formatdate("D", var.moment)) - 1 - 719468
}
