variable "moment" {
  description = "A moment in RFC 3339, in UTC: it ends with `Z`."
  type        = string
  nullable    = false

  validation {
    condition     = can(timeadd(var.moment, "0s")) && endswith(var.moment, "Z")
    error_message = "moment is in RFC 3339 and UTC, such as 2026-11-22T08:00:00Z."
  }
}
