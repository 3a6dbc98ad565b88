# What a wrong input is answered with. The provider is mocked: nothing is asked of AWS.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  name           = "trainer"
  instance_type  = "g5.xlarge"
  ami_id         = "ami-0123456789abcdef0"
  ssh_cidrs      = ["203.0.113.7/32"]
  ssh_public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFUbnA0ixCiEuOhkzpmmFNyz1lMXyyGMSJ11CrYYs0aH me@laptop"
}

run "bad_name" {
  command = plan

  variables {
    name = "Bad_Name"
  }

  expect_failures = [var.name]
}

run "long_name" {
  command = plan

  variables {
    name = "a123456789b123456789c123456789d"
  }

  expect_failures = [var.name]
}

run "bad_owner" {
  command = plan

  variables {
    owner = "me"
  }

  expect_failures = [var.owner]
}

run "no_time" {
  command = plan

  variables {
    max_hours = 0
  }

  expect_failures = [var.max_hours]
}

run "time_backwards" {
  command = plan

  variables {
    max_hours = -1
  }

  expect_failures = [var.max_hours]
}

run "price_is_no_number" {
  command = plan

  variables {
    price_hour = "cheap"
  }

  expect_failures = [var.price_hour]
}

run "price_of_nothing" {
  command = plan

  variables {
    price_hour = "0.00"
  }

  expect_failures = [var.price_hour]
}

run "price_with_comma" {
  command = plan

  variables {
    price_hour = "0,60"
  }

  expect_failures = [var.price_hour]
}

run "nobody_may_come_in" {
  command = plan

  variables {
    ssh_cidrs = []
  }

  expect_failures = [var.ssh_cidrs]
}

run "no_cidr" {
  command = plan

  variables {
    ssh_cidrs = ["203.0.113.7"]
  }

  expect_failures = [var.ssh_cidrs]
}

run "no_network" {
  command = plan

  variables {
    ssh_cidrs = ["203.0.113.7/24"]
  }

  expect_failures = [var.ssh_cidrs]
}

run "open_to_half_the_world" {
  command = plan

  variables {
    ssh_cidrs = ["0.0.0.0/1", "128.0.0.0/1"]
  }

  expect_failures = [var.ssh_cidrs]
}

run "open_to_the_world" {
  command = plan

  variables {
    ssh_cidrs = ["203.0.113.7/32", "0.0.0.0/0"]
  }

  expect_failures = [var.ssh_cidrs]
}

run "open_to_the_world_of_ipv6" {
  command = plan

  variables {
    ssh_cidrs = ["::/0"]
  }

  expect_failures = [var.ssh_cidrs]
}

run "no_port" {
  command = plan

  variables {
    ssh_port = 0
  }

  expect_failures = [var.ssh_port]
}

run "no_public_key" {
  command = plan

  variables {
    ssh_public_key = "~/.ssh/id_ed25519.pub"
  }

  expect_failures = [var.ssh_public_key]
}

run "two_public_keys" {
  command = plan

  variables {
    ssh_public_key = "ssh-ed25519 AAAA a\nssh-ed25519 AAAA b"
  }

  expect_failures = [var.ssh_public_key]
}

run "host_key_of_another_kind" {
  command = plan

  variables {
    host_key = {
      private = "-----BEGIN OPENSSH PRIVATE KEY-----\nnone\n-----END OPENSSH PRIVATE KEY-----\n"
      public  = "ssh-rsa AAAA"
    }
  }

  expect_failures = [var.host_key]
}

run "host_key_without_private_half" {
  command = plan

  variables {
    host_key = {
      private = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvqrAaEWUtdZmlkSE4jaqoNeqEhrhAvZOfeKru2NsOl"
      public  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvqrAaEWUtdZmlkSE4jaqoNeqEhrhAvZOfeKru2NsOl"
    }
  }

  expect_failures = [var.host_key]
}

run "bad_type" {
  command = plan

  variables {
    instance_type = "g5"
  }

  expect_failures = [var.instance_type]
}

run "bad_bid" {
  command = plan

  variables {
    max_price = "0"
  }

  expect_failures = [var.max_price]
}

run "bid_without_spot" {
  command = plan

  variables {
    spot      = false
    max_price = "0.60"
  }

  expect_failures = [aws_instance.this]
}

run "gpus_without_a_name" {
  command = plan

  variables {
    gpu_count = 1
  }

  expect_failures = [aws_instance.this]
}

run "a_name_without_gpus" {
  command = plan

  variables {
    gpu = "A10G"
  }

  expect_failures = [aws_instance.this]
}

run "half_a_gpu" {
  command = plan

  variables {
    gpu       = "A10G"
    gpu_count = 0.5
  }

  expect_failures = [var.gpu_count]
}

run "bad_subnet" {
  command = plan

  variables {
    subnet_id = "default"
  }

  expect_failures = [var.subnet_id]
}

run "bad_image" {
  command = plan

  variables {
    ami_id = "ubuntu-24.04"
  }

  expect_failures = [var.ami_id]
}

run "bad_parameter" {
  command = plan

  variables {
    ami_ssm_parameter = "ubuntu"
  }

  expect_failures = [var.ami_ssm_parameter]
}

run "tiny_disk" {
  command = plan

  variables {
    root_volume_size = 7
  }

  expect_failures = [var.root_volume_size]
}

run "bucket_as_address" {
  command = plan

  variables {
    checkpoint_bucket = "s3://ckpt"
  }

  expect_failures = [var.checkpoint_bucket]
}

run "prefix_with_wildcard" {
  command = plan

  variables {
    checkpoint_bucket = "ckpt"
    checkpoint_prefix = "*"
  }

  expect_failures = [var.checkpoint_prefix]
}

run "prefix_without_bucket" {
  command = plan

  variables {
    checkpoint_prefix = "team"
  }

  expect_failures = [aws_instance.this]
}

run "a_tag_of_the_mark" {
  command = plan

  variables {
    tags = { "gpuctl:managed-by" = "me" }
  }

  expect_failures = [var.tags]
}

run "past_its_end" {
  command = plan

  variables {
    max_hours = 0.0001
  }

  expect_failures = [aws_instance.this]
}
