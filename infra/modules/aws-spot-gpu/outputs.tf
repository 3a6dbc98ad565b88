output "id" {
  description = "Instance id, `i-...`."
  value       = aws_instance.this.id
}

output "arn" {
  description = "ARN of the instance."
  value       = aws_instance.this.arn
}

output "name" {
  description = "The machine's name."
  value       = local.name
}

output "public_ip" {
  description = "Public IPv4 address."
  value       = aws_instance.this.public_ip
}

output "ssh_command" {
  description = "How to log in by hand."
  value = join(" ", compact([
    "ssh",
    var.ssh_port == 22 ? "" : "-p ${var.ssh_port}",
    var.ssh_private_key_file == null ? "" : "-i ${var.ssh_private_key_file}",
    "root@${aws_instance.this.public_ip}",
  ]))
}

output "estimated_hourly_cost" {
  description = "USD an hour as a decimal string; null where nobody said."
  value       = local.price_hour
}

output "expires_at" {
  description = "The hard end, RFC 3339 in UTC: the machine terminates itself then."
  value       = module.boot.expires_at
}

output "security_group_id" {
  description = "Id of the machine's security group."
  value       = aws_security_group.this.id
}

output "iam_role_name" {
  description = "Name of the machine's role; null without a bucket."
  value       = one(aws_iam_role.this[*].name)
}

output "gpuctl_machine" {
  description = "What `gpuctl adopt` reads; its shape is in infra/README.md."
  value = {
    provider   = "aws"
    id         = "${split(":", aws_instance.this.arn)[3]}/${aws_instance.this.id}"
    name       = local.name
    host       = aws_instance.this.public_ip
    port       = var.ssh_port
    user       = "root"
    price_hour = local.price_hour
    gpu        = var.gpu
    gpu_count  = var.gpu_count
    region     = split(":", aws_instance.this.arn)[3]
    spot       = var.spot
    expires_at = module.boot.expires_at
    host_keys  = module.boot.host_key_public == null ? [] : [module.boot.host_key_public]
    key_file   = var.ssh_private_key_file
  }
}
