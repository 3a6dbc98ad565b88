output "seconds" {
  description = "Seconds since 1970."
  value = sum([
    86400 * local.days,
    3600 * tonumber(formatdate("h", var.moment)),
    60 * tonumber(formatdate("m", var.moment)),
    tonumber(formatdate("s", var.moment)),
  ])
}
