variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"
}

variable "owner" {
  description = "Owner id of your gpuctl; `gpuctl doctor` shows it."
  type        = string
  default     = "000000000000"
}

variable "bucket" {
  description = "Name of the bucket, unique in all of AWS."
  type        = string
}

variable "ssh_cidrs" {
  description = "Addresses that may reach sshd: your own, `curl -s https://checkip.amazonaws.com` and `/32`."
  type        = list(string)
}

variable "ssh_key_file" {
  description = "Private key to log in with; its public half lies beside it, with `.pub`."
  type        = string
  default     = "~/.ssh/id_ed25519"
}

variable "host_key_file" {
  description = "New private host key for the trainer, with its public half beside it: `ssh-keygen -t ed25519 -N '' -f trainer-host-key`. Null: pinned on first use."
  type        = string
  default     = null
}

variable "serving" {
  description = "Whether the Hetzner host that serves the result exists."
  type        = bool
  default     = true
}
