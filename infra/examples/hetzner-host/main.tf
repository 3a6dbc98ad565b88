# The token comes from the environment: HCLOUD_TOKEN.
provider "hcloud" {}

module "host" {
  source = "../../modules/hetzner-host"

  name        = "host"
  owner       = var.owner
  server_type = "cx23"
  location    = "hel1"
  price_hour  = "0.0110"
  max_hours   = 72

  ssh_cidrs            = var.ssh_cidrs
  ssh_public_key       = file(pathexpand("${var.ssh_key_file}.pub"))
  ssh_private_key_file = pathexpand(var.ssh_key_file)
}
