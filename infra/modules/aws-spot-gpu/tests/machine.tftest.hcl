# What is made of right inputs. The provider is mocked: nothing is asked of AWS.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_resource "aws_instance" {
    defaults = {
      id        = "i-0123456789abcdef0"
      arn       = "arn:aws:ec2:eu-west-1:123456789012:instance/i-0123456789abcdef0"
      public_ip = "192.0.2.10"
    }
  }

  mock_data "aws_ssm_parameter" {
    defaults = { value = "ami-0fedcba9876543210" }
  }

  mock_data "aws_subnet" {
    defaults = { vpc_id = "vpc-0123456789abcdef0" }
  }
}

variables {
  name           = "trainer"
  owner          = "0123456789ab"
  instance_type  = "g5.xlarge"
  ssh_cidrs      = ["203.0.113.7/32"]
  ssh_public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFUbnA0ixCiEuOhkzpmmFNyz1lMXyyGMSJ11CrYYs0aH me@laptop"
}

run "spot_machine" {
  variables {
    gpu                  = "A10G"
    gpu_count            = 1
    max_price            = "0.60"
    price_hour           = "0.4519"
    ssh_private_key_file = "/home/me/.ssh/id_ed25519"
    tags                 = { team = "speech" }

    host_key = {
      private = "-----BEGIN OPENSSH PRIVATE KEY-----\nnone\n-----END OPENSSH PRIVATE KEY-----\n"
      public  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvqrAaEWUtdZmlkSE4jaqoNeqEhrhAvZOfeKru2NsOl"
    }
  }

  assert {
    condition = (
      aws_instance.this.instance_market_options[0].market_type == "spot" &&
      aws_instance.this.instance_market_options[0].spot_options[0].spot_instance_type == "one-time" &&
      aws_instance.this.instance_market_options[0].spot_options[0].instance_interruption_behavior == "terminate" &&
      aws_instance.this.instance_market_options[0].spot_options[0].max_price == "0.60"
    )
    error_message = "It is no one-time spot instance at that bid."
  }

  assert {
    condition     = aws_instance.this.instance_initiated_shutdown_behavior == "terminate"
    error_message = "Switching it off does not end what it costs."
  }

  assert {
    condition     = aws_instance.this.metadata_options[0].http_tokens == "required"
    error_message = "IMDSv1 is open."
  }

  assert {
    condition     = aws_instance.this.root_block_device[0].encrypted && aws_instance.this.root_block_device[0].delete_on_termination
    error_message = "The disk is not encrypted, or stays behind."
  }

  assert {
    condition     = aws_instance.this.ami == "ami-0fedcba9876543210"
    error_message = "It does not boot the image of the SSM parameter."
  }

  assert {
    condition = (
      aws_instance.this.tags["gpuctl:managed"] == "1" &&
      aws_instance.this.tags["gpuctl:managed-by"] == "terraform" &&
      aws_instance.this.tags["gpuctl:owner"] == "0123456789ab" &&
      aws_instance.this.tags["gpuctl:name"] == output.name &&
      aws_instance.this.tags["gpuctl:price"] == "0.4519" &&
      aws_instance.this.tags["gpuctl:host-key"] == output.gpuctl_machine.host_keys[0] &&
      timeadd("1970-01-01T00:00:00Z", "${aws_instance.this.tags["gpuctl:end"]}s") == output.expires_at &&
      aws_instance.this.tags["team"] == "speech"
    )
    error_message = "The mark is not whole."
  }

  assert {
    condition     = aws_instance.this.volume_tags["gpuctl:managed-by"] == "terraform"
    error_message = "The disk is not marked."
  }

  assert {
    condition     = [for rule in aws_vpc_security_group_ingress_rule.ssh_ipv4 : "${rule.cidr_ipv4} ${rule.from_port}"] == ["203.0.113.7/32 22"]
    error_message = "Something else than SSH from the named address comes in."
  }

  assert {
    condition     = length(aws_iam_instance_profile.this) == 0 && output.iam_role_name == null
    error_message = "A machine without a bucket has rights on AWS."
  }

  assert {
    condition = jsonencode(output.gpuctl_machine) == jsonencode({
      provider   = "aws"
      id         = "eu-west-1/i-0123456789abcdef0"
      name       = output.name
      host       = "192.0.2.10"
      port       = 22
      user       = "root"
      price_hour = "0.4519"
      gpu        = "A10G"
      gpu_count  = 1
      region     = "eu-west-1"
      spot       = true
      expires_at = output.expires_at
      host_keys  = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvqrAaEWUtdZmlkSE4jaqoNeqEhrhAvZOfeKru2NsOl"]
      key_file   = "/home/me/.ssh/id_ed25519"
    })
    error_message = "gpuctl_machine is ${jsonencode(output.gpuctl_machine)}."
  }

  assert {
    condition     = output.ssh_command == "ssh -i /home/me/.ssh/id_ed25519 root@192.0.2.10"
    error_message = "ssh_command is ${output.ssh_command}."
  }
}

run "it_stays_the_same" {
  variables {
    gpu                  = "A10G"
    gpu_count            = 1
    max_price            = "0.60"
    price_hour           = "0.4519"
    ssh_private_key_file = "/home/me/.ssh/id_ed25519"
    tags                 = { team = "speech" }
  }

  assert {
    condition     = output.name == run.spot_machine.name && output.expires_at == run.spot_machine.expires_at
    error_message = "A second apply gave another name or end."
  }

  assert {
    condition     = length(output.gpuctl_machine.host_keys) == 0 && !can(aws_instance.this.tags["gpuctl:host-key"])
    error_message = "A host key is left that is no longer handed over."
  }
}

run "on_demand_machine" {
  variables {
    spot      = false
    ami_id    = "ami-0123456789abcdef0"
    subnet_id = "subnet-0123456789abcdef0"
  }

  assert {
    condition     = length(aws_instance.this.instance_market_options) == 0 && !output.gpuctl_machine.spot
    error_message = "It is spot."
  }

  assert {
    condition     = aws_security_group.this.vpc_id == "vpc-0123456789abcdef0" && aws_instance.this.subnet_id == var.subnet_id
    error_message = "It is in another network."
  }

  assert {
    condition     = length(data.aws_ssm_parameter.ami) == 0
    error_message = "An image is looked up although one was named."
  }

  assert {
    condition     = output.gpuctl_machine.price_hour == null && output.gpuctl_machine.gpu == null && !can(aws_instance.this.tags["gpuctl:price"])
    error_message = "There is a price or GPU that nobody named."
  }
}

run "bid_as_price" {
  variables {
    max_price = "0.60"
  }

  assert {
    condition     = output.estimated_hourly_cost == "0.60" && output.gpuctl_machine.price_hour == "0.60"
    error_message = "Without a price it is not the bid."
  }
}

run "rights_below_one_prefix" {
  variables {
    checkpoint_bucket = "ckpt"
    checkpoint_prefix = "team/run"
  }

  assert {
    condition     = aws_instance.this.iam_instance_profile == aws_iam_instance_profile.this[0].name
    error_message = "The machine has no profile."
  }

  assert {
    condition = (
      jsondecode(aws_iam_role_policy.checkpoints[0].policy).Statement[0].Resource == "arn:aws:s3:::ckpt" &&
      jsondecode(aws_iam_role_policy.checkpoints[0].policy).Statement[0].Condition.StringLike["s3:prefix"] == ["team/run/*"] &&
      jsondecode(aws_iam_role_policy.checkpoints[0].policy).Statement[1].Resource == "arn:aws:s3:::ckpt/team/run/*" &&
      length(jsondecode(aws_iam_role_policy.checkpoints[0].policy).Statement) == 2
    )
    error_message = "Its rights are ${aws_iam_role_policy.checkpoints[0].policy}."
  }

  assert {
    condition     = alltrue(flatten([for statement in jsondecode(aws_iam_role_policy.checkpoints[0].policy).Statement : [for action in statement.Action : startswith(action, "s3:") && !strcontains(action, "*")]]))
    error_message = "Its rights are more than a few of S3's."
  }
}

run "a_bucket_with_a_key" {
  variables {
    checkpoint_bucket      = "ckpt"
    checkpoint_kms_key_arn = "arn:aws:kms:eu-west-1:123456789012:key/0"
  }

  assert {
    condition = (
      jsondecode(aws_iam_role_policy.checkpoints[0].policy).Statement[1].Resource == "arn:aws:s3:::ckpt/*" &&
      jsondecode(aws_iam_role_policy.checkpoints[0].policy).Statement[2].Resource == "arn:aws:kms:eu-west-1:123456789012:key/0"
    )
    error_message = "Its rights are ${aws_iam_role_policy.checkpoints[0].policy}."
  }
}

run "several_ways_in" {
  variables {
    ssh_cidrs               = ["0.0.0.0/0", "2001:db8::/32"]
    allow_ssh_from_anywhere = true
  }

  assert {
    condition     = keys(aws_vpc_security_group_ingress_rule.ssh_ipv4) == ["0.0.0.0/0"] && keys(aws_vpc_security_group_ingress_rule.ssh_ipv6) == ["2001:db8::/32"]
    error_message = "Not every named address may come in, or more may."
  }
}
