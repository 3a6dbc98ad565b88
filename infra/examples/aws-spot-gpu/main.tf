provider "aws" {
  region = var.region
}

module "trainer" {
  source = "../../modules/aws-spot-gpu"

  name          = "trainer"
  owner         = var.owner
  instance_type = "g5.xlarge"
  gpu           = "A10G"
  gpu_count     = 1
  price_hour    = "0.60"
  max_price     = "0.60"
  max_hours     = 8

  ssh_cidrs            = var.ssh_cidrs
  ssh_public_key       = file(pathexpand("${var.ssh_key_file}.pub"))
  ssh_private_key_file = pathexpand(var.ssh_key_file)
}
