output "gpuctl_machine" {
  description = "The trainer, which `gpuctl adopt` reads."
  value       = module.trainer.gpuctl_machine
}

output "checkpoint_store" {
  description = "For `checkpoints.store` in a train.yaml."
  value       = module.checkpoints.checkpoint_store
}

output "serving" {
  description = "The host that serves; null while there is none. `gpuctl adopt` does not read it under this name."
  value       = one(module.serving[*].gpuctl_machine)
}

output "gpuctl_environment" {
  description = "For gpuctl's environment or its `.env`."
  value       = module.deadman.gpuctl_environment
}
