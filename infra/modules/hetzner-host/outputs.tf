output "id" {
  description = "Number of the server."
  value       = hcloud_server.this.id
}

output "name" {
  description = "The machine's name."
  value       = local.name
}

output "public_ip" {
  description = "Public IPv4 address."
  value       = hcloud_server.this.ipv4_address
}

output "public_ipv6" {
  description = "Public IPv6 address."
  value       = hcloud_server.this.ipv6_address
}

output "ssh_command" {
  description = "How to log in by hand."
  value = join(" ", compact([
    "ssh",
    var.ssh_port == 22 ? "" : "-p ${var.ssh_port}",
    var.ssh_private_key_file == null ? "" : "-i ${var.ssh_private_key_file}",
    "root@${hcloud_server.this.ipv4_address}",
  ]))
}

output "estimated_hourly_cost" {
  description = "USD an hour as a decimal string; null where nobody said."
  value       = var.price_hour
}

output "expires_at" {
  description = "The hard end, RFC 3339 in UTC: the machine switches itself off then, and bills on until it is destroyed."
  value       = module.boot.expires_at
}

output "firewall_id" {
  description = "Number of the machine's firewall."
  value       = hcloud_firewall.this.id
}

output "gpuctl_machine" {
  description = "What `gpuctl adopt` reads; its shape is in infra/README.md."
  value = {
    provider   = "hetzner"
    id         = hcloud_server.this.id
    name       = local.name
    host       = hcloud_server.this.ipv4_address
    port       = var.ssh_port
    user       = "root"
    price_hour = var.price_hour
    gpu        = null
    gpu_count  = 0
    region     = var.location
    spot       = false
    expires_at = module.boot.expires_at
    host_keys  = module.boot.host_key_public == null ? [] : [module.boot.host_key_public]
    key_file   = var.ssh_private_key_file
  }
}
