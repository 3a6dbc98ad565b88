"""Terraform's side: the machines in its outputs, and module calls for offers."""
