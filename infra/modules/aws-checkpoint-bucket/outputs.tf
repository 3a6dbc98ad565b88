output "id" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.this.bucket # known when planned, which the id is not
}

output "arn" {
  description = "ARN of the bucket."
  value       = aws_s3_bucket.this.arn
}

output "checkpoint_store" {
  description = "What `checkpoints.store` in a train.yaml is set to."
  value       = join("/", compact(["s3://${aws_s3_bucket.this.bucket}", var.checkpoint_prefix]))
}
