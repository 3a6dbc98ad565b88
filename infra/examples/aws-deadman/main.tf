provider "aws" {
  region = var.region
}

module "deadman" {
  source = "../../modules/aws-deadman"
}
