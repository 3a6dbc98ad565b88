output "gpuctl_machine" {
  description = "What `gpuctl adopt` reads."
  value       = module.trainer.gpuctl_machine
}

output "ssh_command" {
  description = "How to log in by hand."
  value       = module.trainer.ssh_command
}
