output "checkpoint_store" {
  description = "For `checkpoints.store` in a train.yaml."
  value       = module.checkpoints.checkpoint_store
}
