module "boot" {
  source = "../machine-boot"

  name           = var.name
  owner          = var.owner
  max_hours      = var.max_hours
  ssh_public_key = var.ssh_public_key
  host_key       = var.host_key
}

locals {
  name = module.boot.name

  # What `gpuctl audit` and `gpuctl reap` go by: see providers/hetzner_servers.py.
  marks = {
    "gpuctl/managed-by" = "terraform"
    "gpuctl/owner"      = var.owner
    "gpuctl/end"        = tostring(module.boot.end)
  }
  labels        = merge(var.labels, local.marks)
  server_labels = merge(local.labels, { for key, value in { "gpuctl/host-key" = module.boot.host_key_label } : key => value if value != null })
}

resource "hcloud_ssh_key" "this" {
  count = length(var.ssh_key_names) == 0 ? 1 : 0

  name       = local.name
  public_key = trimspace(var.ssh_public_key)
  labels     = local.labels
}

resource "hcloud_firewall" "this" {
  name   = local.name
  labels = local.labels

  rule {
    description = "SSH"
    direction   = "in"
    protocol    = "tcp"
    port        = tostring(var.ssh_port)
    source_ips  = var.ssh_cidrs
  }

  dynamic "rule" {
    for_each = var.inbound

    content {
      description = rule.key
      direction   = "in"
      protocol    = rule.value.protocol
      port        = rule.value.port
      source_ips  = rule.value.cidrs
    }
  }
}

resource "hcloud_server" "this" {
  name         = local.name
  server_type  = var.server_type
  location     = var.location
  image        = var.image
  backups      = var.backups
  labels       = local.server_labels
  ssh_keys     = length(var.ssh_key_names) == 0 ? hcloud_ssh_key.this[*].id : var.ssh_key_names
  firewall_ids = [hcloud_firewall.this.id]
  user_data    = module.boot.user_data

  # Its addresses are the server's own and go with it: nothing is left that bills.
  public_net {
    ipv4_enabled = true
    ipv6_enabled = true
  }

  lifecycle {
    precondition {
      condition     = var.allow_ssh_from_anywhere || alltrue([for rule in values(var.inbound) : rule.port != "any" || !anytrue([for cidr in rule.cidrs : endswith(cidr, "/0")])])
      error_message = "A rule of inbound opens every port, SSH's too, to the whole internet. Name ports, or set allow_ssh_from_anywhere = true."
    }

    precondition {
      condition     = !module.boot.expired
      error_message = "The machine ${local.name} is past its hard end (${module.boot.expires_at}): it has switched itself off, and Hetzner bills it on. Remove it with `terraform destroy`, or have a new one: `terraform apply -replace='<this module>.module.boot.terraform_data.this'`."
    }
  }
}
