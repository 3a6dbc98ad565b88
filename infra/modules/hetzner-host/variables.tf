variable "name" {
  description = "Middle part of the machine's name: `gpuctl-<name>-<owner 6>-<nonce 8>`."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?$", var.name))
    error_message = "The name is 1 to 30 lower-case letters, digits and dashes, with no dash at either end."
  }
}

variable "owner" {
  description = "Owner id of the gpuctl that will use the machine; `gpuctl doctor` shows it. The default is nobody's."
  type        = string
  default     = "000000000000"
  nullable    = false

  validation {
    condition     = can(regex("^[0-9a-f]{6,32}$", var.owner))
    error_message = "The owner is 6 to 32 lower-case hexadecimal digits; `gpuctl doctor` shows yours."
  }
}

variable "max_hours" {
  description = "Hours from creation to the hard end, at which the machine switches itself off. Hetzner bills it until it is deleted. Another value makes a new machine."
  type        = number
  default     = 24
  nullable    = false

  validation {
    condition     = var.max_hours > 0 && var.max_hours <= 8760
    error_message = "max_hours is more than 0 and at most 8760, a year."
  }
}

variable "server_type" {
  description = "Hetzner's server type, such as `cx23`. `terraform apply` says so when the location does not sell it."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]+[0-9]+[a-z0-9-]*$", var.server_type))
    error_message = "server_type is a name such as cx23 or ccx33."
  }
}

variable "location" {
  description = "Name of a location, such as `hel1`."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]{3}[0-9]*$", var.location))
    error_message = "location is a name such as hel1, fsn1, nbg1, ash, hil or sin; data centres such as hel1-dc2 are no longer taken."
  }
}

variable "image" {
  description = "Image to boot: Ubuntu, Debian, or the number of a snapshot made from one. Another image makes a new machine."
  type        = string
  default     = "ubuntu-24.04"
  nullable    = false

  validation {
    condition     = can(regex("^([0-9]+|[a-z]+-[a-z0-9.-]+)$", var.image))
    error_message = "image is a name such as ubuntu-24.04, or the number of a snapshot."
  }
}

variable "price_hour" {
  description = "What the whole machine costs, USD an hour with its address as a decimal string, for gpuctl's caps and receipts. Null: nobody said."
  type        = string
  default     = null

  validation {
    condition     = var.price_hour == null || can(regex("^(0*[1-9][0-9]*(\\.[0-9]{1,6})?|0+\\.[0-9]{0,5}[1-9][0-9]{0,5})$", var.price_hour))
    error_message = "price_hour is a decimal number above 0 in quotes, such as \"0.4519\"."
  }
}

variable "ssh_cidrs" {
  description = "Addresses that may reach the machine's sshd, such as `[\"203.0.113.7/32\"]`."
  type        = list(string)
  nullable    = false

  validation {
    condition     = length(var.ssh_cidrs) > 0
    error_message = "Without an address in ssh_cidrs nobody could reach the machine."
  }

  validation {
    condition = alltrue([for cidr in var.ssh_cidrs : (
      can(cidrhost(cidr, 0)) && (strcontains(cidr, ":") || try(cidrhost(cidr, 0), "") == split("/", cidr)[0])
    )])
    error_message = "Each of ssh_cidrs is a network such as 203.0.113.7/32 or 203.0.113.0/24."
  }

  validation {
    condition     = var.allow_ssh_from_anywhere || !anytrue([for cidr in var.ssh_cidrs : try(tonumber(split("/", cidr)[1]) < 8, false)])
    error_message = "SSH would be open to the whole internet, or a large part of it. Name your own addresses, or set allow_ssh_from_anywhere = true."
  }
}

variable "allow_ssh_from_anywhere" {
  description = "Whether `ssh_cidrs` may name the whole internet."
  type        = bool
  default     = false
  nullable    = false
}

variable "inbound" {
  description = "More that may come in: from any name to `port` (`443`, `8000-8010` or `any`), `cidrs` and `protocol` (`tcp` or `udp`)."
  type        = map(object({ port = string, cidrs = list(string), protocol = optional(string, "tcp") }))
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for rule in values(var.inbound) : can(regex("^(any|[0-9]{1,5}(-[0-9]{1,5})?)$", rule.port))])
    error_message = "The port of inbound is a number, a range such as 8000-8010, or any."
  }

  validation {
    condition     = alltrue([for rule in values(var.inbound) : contains(["tcp", "udp"], rule.protocol)])
    error_message = "The protocol of inbound is tcp or udp."
  }

  validation {
    condition     = alltrue(flatten([for rule in values(var.inbound) : concat([length(rule.cidrs) > 0], [for cidr in rule.cidrs : can(cidrhost(cidr, 0))])]))
    error_message = "The cidrs of inbound are at least one CIDR such as 203.0.113.0/24."
  }
}

variable "ssh_port" {
  description = "Port of the image's sshd."
  type        = number
  default     = 22
  nullable    = false

  validation {
    condition     = var.ssh_port >= 1 && var.ssh_port <= 65535 && floor(var.ssh_port) == var.ssh_port
    error_message = "ssh_port is a whole number from 1 to 65535."
  }
}

variable "ssh_public_key" {
  description = "Public key that may log in as root, a line of an authorized_keys file."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)) [A-Za-z0-9+/]+=*( [^\n]*)?\n?$", var.ssh_public_key))
    error_message = "ssh_public_key is one line such as \"ssh-ed25519 AAAA... me@laptop\"."
  }
}

variable "ssh_key_names" {
  description = "Names of keys that the project has already. Empty: `ssh_public_key` is made one; Hetzner takes the same key only once a project."
  type        = list(string)
  default     = []
  nullable    = false
}

variable "ssh_private_key_file" {
  description = "Path of the private half on the computer that runs gpuctl; only passed on. Null: SSH's own keys and its agent."
  type        = string
  default     = null
}

variable "host_key" {
  description = "The machine's own new ed25519 host key: `private` in OpenSSH's format, `public` as `ssh-ed25519 AAAA...`. It is in the user data, of which the state holds a digest. Null: the machine makes one, and gpuctl pins it on first use."
  type        = object({ private = string, public = string })
  default     = null
  sensitive   = true

  validation {
    condition = var.host_key == null || can(regex(
      "^ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}( [^\n]*)?\n?$", var.host_key.public
    ))
    error_message = "host_key.public is one line such as \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI...\"; make a new key for each machine with `ssh-keygen -t ed25519`."
  }

  validation {
    condition = var.host_key == null || can(regex(
      "^-----BEGIN OPENSSH PRIVATE KEY-----\n", var.host_key.private
    ))
    error_message = "host_key.private is the private half in OpenSSH's format, as `ssh-keygen -t ed25519` writes it."
  }
}

variable "backups" {
  description = "Whether Hetzner makes backups, for a fifth of the server's price on top."
  type        = bool
  default     = false
  nullable    = false
}

variable "labels" {
  description = "More labels for everything that is made here."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = !anytrue([for key in keys(var.labels) : startswith(key, "gpuctl/")])
    error_message = "The labels gpuctl/... are the machine's mark and are set here."
  }

  validation {
    condition     = alltrue([for value in values(var.labels) : can(regex("^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$", value))])
    error_message = "A label's value is at most 63 letters, digits, dashes, underscores and dots, with a letter or digit at both ends."
  }

  validation {
    condition     = alltrue([for key in keys(var.labels) : can(regex("^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$", key))])
    error_message = "A label's key is at most 63 letters, digits, dashes, underscores and dots, after a prefix and a slash if it has one."
  }
}
