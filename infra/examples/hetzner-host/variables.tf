variable "owner" {
  description = "Owner id of your gpuctl; `gpuctl doctor` shows it."
  type        = string
  default     = "000000000000"
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
