# Validated where they come from: in the modules that machines are made with.

variable "name" {
  description = "Middle part of the machine's name: `gpuctl-<name>-<owner 6>-<nonce 8>`."
  type        = string
  nullable    = false
}

variable "owner" {
  description = "Owner id of the gpuctl that will use the machine; `gpuctl doctor` shows it."
  type        = string
  nullable    = false
}

variable "max_hours" {
  description = "Hours from creation to the hard end, at which the machine ends itself."
  type        = number
  nullable    = false
}

variable "ssh_public_key" {
  description = "Public key that may log in as root, a line of an authorized_keys file."
  type        = string
  nullable    = false
}

variable "host_key" {
  description = "The machine's own new ed25519 host key: `private` in OpenSSH's format, `public` as `ssh-ed25519 AAAA...`. Null: the machine makes one, and gpuctl pins it on first use."
  type        = object({ private = string, public = string })
  default     = null
  sensitive   = true
}
