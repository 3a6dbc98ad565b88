provider "aws" {
  region = var.region
}

module "checkpoints" {
  source = "../../modules/aws-checkpoint-bucket"

  bucket            = var.bucket
  checkpoint_prefix = "ckpt"
  expire_after_days = 30
}
