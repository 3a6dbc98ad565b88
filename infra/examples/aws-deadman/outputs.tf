output "gpuctl_environment" {
  description = "Put it into gpuctl's environment or its `.env`: it then arms a schedule for each machine that it rents."
  value       = module.deadman.gpuctl_environment
}
