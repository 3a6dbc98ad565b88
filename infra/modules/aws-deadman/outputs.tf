output "role_arn" {
  description = "ARN of the role. `GPUCTL_AWS_SCHEDULER_ROLE` set to it lets gpuctl arm a schedule for each machine that it rents."
  value       = aws_iam_role.this.arn
}

output "role_name" {
  description = "Name of the role."
  value       = aws_iam_role.this.name
}

output "group_name" {
  description = "Name of the schedule group."
  value       = local.group
}

output "schedule_arns" {
  description = "ARNs of the schedules, by the keys of `machines`."
  value       = { for key, schedule in aws_scheduler_schedule.this : key => schedule.arn }
}

output "gpuctl_environment" {
  description = "Environment for gpuctl."
  value       = { GPUCTL_AWS_SCHEDULER_ROLE = aws_iam_role.this.arn }
}
