variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"
}

variable "bucket" {
  description = "Name of the bucket, unique in all of AWS."
  type        = string
}
