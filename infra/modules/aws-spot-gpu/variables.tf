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
  description = "Hours from creation to the hard end, at which the machine terminates itself. Another value makes a new machine."
  type        = number
  default     = 24
  nullable    = false

  validation {
    condition     = var.max_hours > 0 && var.max_hours <= 8760
    error_message = "max_hours is more than 0 and at most 8760, a year."
  }
}

variable "instance_type" {
  description = "EC2 instance type, such as `g5.xlarge`."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]*\\.[a-z0-9-]+$", var.instance_type))
    error_message = "instance_type is an EC2 instance type such as g5.xlarge."
  }
}

variable "gpu" {
  description = "gpuctl's name of the GPU, such as `A10G`, for the output `gpuctl_machine`. Null: none, or nobody said."
  type        = string
  default     = null
}

variable "gpu_count" {
  description = "Number of GPUs, for the output `gpuctl_machine`."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.gpu_count >= 0 && floor(var.gpu_count) == var.gpu_count
    error_message = "gpu_count is a whole number, 0 or more."
  }
}

variable "spot" {
  description = "Whether to ask for spot capacity, which AWS may take away with two minutes' notice."
  type        = bool
  default     = true
  nullable    = false
}

variable "max_price" {
  description = "The most to pay for the spot instance alone, USD an hour as a decimal string such as `\"0.60\"`. Null: up to the on-demand price."
  type        = string
  default     = null

  validation {
    condition     = var.max_price == null || can(regex("^(0*[1-9][0-9]*(\\.[0-9]{1,6})?|0+\\.[0-9]{0,5}[1-9][0-9]{0,5})$", var.max_price))
    error_message = "max_price is a decimal number above 0 in quotes, such as \"0.60\"."
  }
}

variable "price_hour" {
  description = "What the whole machine costs, USD an hour as a decimal string, for gpuctl's caps and receipts. Null: `max_price`, if there is one."
  type        = string
  default     = null

  validation {
    condition     = var.price_hour == null || can(regex("^(0*[1-9][0-9]*(\\.[0-9]{1,6})?|0+\\.[0-9]{0,5}[1-9][0-9]{0,5})$", var.price_hour))
    error_message = "price_hour is a decimal number above 0 in quotes, such as \"0.4519\"."
  }
}

variable "subnet_id" {
  description = "Subnet with a way to the internet. Null: one of the default VPC's, where AWS likes."
  type        = string
  default     = null

  validation {
    condition     = var.subnet_id == null || can(regex("^subnet-[0-9a-f]+$", var.subnet_id))
    error_message = "subnet_id looks like subnet-0123456789abcdef0."
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

variable "ssh_private_key_file" {
  description = "Path of the private half on the computer that runs gpuctl; only passed on. Null: SSH's own keys and its agent."
  type        = string
  default     = null
}

variable "host_key" {
  description = "The machine's own new ed25519 host key: `private` in OpenSSH's format, `public` as `ssh-ed25519 AAAA...`. It is in the state and in the user data. Null: the machine makes one, and gpuctl pins it on first use."
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

variable "ami_id" {
  description = "Image to boot: Ubuntu or one made from it, with cloud-init and Python 3.8 or newer. Null: the one that `ami_ssm_parameter` names."
  type        = string
  default     = null

  validation {
    condition     = var.ami_id == null || can(regex("^ami-[0-9a-f]{8,17}$", var.ami_id))
    error_message = "ami_id looks like ami-0123456789abcdef0."
  }
}

variable "ami_ssm_parameter" {
  description = "SSM parameter that holds the image's id. The default is AWS's Deep Learning Base image with NVIDIA's driver; a newer image does not replace a machine."
  type        = string
  default     = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
  nullable    = false

  validation {
    condition     = startswith(var.ami_ssm_parameter, "/")
    error_message = "ami_ssm_parameter is a path such as /aws/service/.../ami-id."
  }
}

variable "root_volume_size" {
  description = "Size of the disk in GiB; not below the image's, which for AWS's Deep Learning image is 75."
  type        = number
  default     = 100
  nullable    = false

  validation {
    condition     = var.root_volume_size >= 8 && var.root_volume_size <= 16384 && floor(var.root_volume_size) == var.root_volume_size
    error_message = "root_volume_size is a whole number of GiB from 8 to 16384."
  }
}

variable "kms_key_id" {
  description = "ARN of the KMS key that encrypts the disk. Null: the account's own for EBS."
  type        = string
  default     = null
}

variable "checkpoint_bucket" {
  description = "S3 bucket that the machine may read and write below `checkpoint_prefix`. Null: the machine gets no right on AWS at all."
  type        = string
  default     = null

  validation {
    condition     = var.checkpoint_bucket == null || can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.checkpoint_bucket))
    error_message = "checkpoint_bucket is a bucket's name, without s3:// and without a path."
  }
}

variable "checkpoint_prefix" {
  description = "What the keys begin with that the machine may touch, without a slash at either end."
  type        = string
  default     = null

  validation {
    condition     = var.checkpoint_prefix == null || can(regex("^[A-Za-z0-9!_.'()-]+(/[A-Za-z0-9!_.'()-]+)*$", var.checkpoint_prefix))
    error_message = "checkpoint_prefix is a path such as team/run, without a slash at either end and without wildcards."
  }
}

variable "checkpoint_kms_key_arn" {
  description = "KMS key of the bucket, if it has one of its own: the machine may use it for the bucket's objects."
  type        = string
  default     = null
}

variable "permissions_boundary" {
  description = "ARN of a policy that bounds the machine's role."
  type        = string
  default     = null
}

variable "tags" {
  description = "More tags for everything that is made here."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = !anytrue([for key in keys(var.tags) : startswith(key, "gpuctl:") || key == "Name"])
    error_message = "The tags gpuctl:... and Name are the machine's mark and are set here."
  }
}
