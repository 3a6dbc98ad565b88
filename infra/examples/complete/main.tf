# Train on AWS spot, keep the checkpoints in a bucket, serve the result from a Hetzner host.

provider "aws" {
  region = var.region
}

# The token comes from the environment: HCLOUD_TOKEN.
provider "hcloud" {}

locals {
  prefix     = "ckpt"
  public_key = file(pathexpand("${var.ssh_key_file}.pub"))
}

module "checkpoints" {
  source = "../../modules/aws-checkpoint-bucket"

  bucket            = var.bucket
  checkpoint_prefix = local.prefix
  expire_after_days = 30
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
  ssh_public_key       = local.public_key
  ssh_private_key_file = pathexpand(var.ssh_key_file)
  host_key = var.host_key_file == null ? null : {
    private = file(pathexpand(var.host_key_file))
    public  = file(pathexpand("${var.host_key_file}.pub"))
  }

  checkpoint_bucket = module.checkpoints.id
  checkpoint_prefix = local.prefix
}

module "deadman" {
  source = "../../modules/aws-deadman"

  machines = { trainer = module.trainer.gpuctl_machine }
}

module "serving" {
  source = "../../modules/hetzner-host"
  count  = var.serving ? 1 : 0

  name        = "serving"
  owner       = var.owner
  server_type = "cx23"
  location    = "hel1"
  price_hour  = "0.0110"
  max_hours   = 24 * 30

  ssh_cidrs            = var.ssh_cidrs
  ssh_public_key       = local.public_key
  ssh_private_key_file = pathexpand(var.ssh_key_file)
  inbound              = { https = { port = "443", cidrs = ["0.0.0.0/0", "::/0"] } }
}
