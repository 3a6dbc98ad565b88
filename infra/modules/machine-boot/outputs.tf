output "name" {
  description = "The machine's name."
  value       = local.name
}

output "expires_at" {
  description = "Its hard end, RFC 3339 in UTC."
  value       = local.expires_at
}

output "end" {
  description = "Its hard end in seconds since 1970."
  value       = module.end.seconds
}

output "expired" {
  description = "Whether the hard end has passed when this is planned."
  value       = timecmp(local.expires_at, plantimestamp()) <= 0
}

output "host_key_public" {
  description = "The host key that was handed over, `ssh-ed25519 AAAA...`; null without one."
  value       = local.host_key_public
}

output "host_key_label" {
  description = "The same as a label's value can hold it: the 32 bytes of the key in base32."
  value       = local.host_key_label
}

output "user_data" {
  description = "The cloud-config of the first boot. It holds the private host key, and nothing else that is secret."
  value       = "#cloud-config\n${jsonencode(local.user_data)}\n"
  sensitive   = true
}
