# What a wrong input is answered with. The provider is mocked: nothing is asked of Hetzner.

mock_provider "hcloud" {
  mock_resource "hcloud_firewall" {
    defaults = { id = "38" } # the ids are numbers, and firewall_ids takes no others
  }
}

variables {
  name           = "host"
  server_type    = "cx23"
  location       = "hel1"
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
    server_type = "CX 23"
  }

  expect_failures = [var.server_type]
}

run "a_data_centre" {
  command = plan

  variables {
    location = "hel1-dc2"
  }

  expect_failures = [var.location]
}

run "a_container" {
  command = plan

  variables {
    image = "docker:pytorch/pytorch"
  }

  expect_failures = [var.image]
}

run "bad_port" {
  command = plan

  variables {
    inbound = { web = { port = "http", cidrs = ["0.0.0.0/0"] } }
  }

  expect_failures = [var.inbound]
}

run "bad_protocol" {
  command = plan

  variables {
    inbound = { web = { port = "80", cidrs = ["0.0.0.0/0"], protocol = "http" } }
  }

  expect_failures = [var.inbound]
}

run "inbound_from_nowhere" {
  command = plan

  variables {
    inbound = { web = { port = "80", cidrs = [] } }
  }

  expect_failures = [var.inbound]
}

run "everything_open" {
  command = plan

  variables {
    inbound = { all = { port = "any", cidrs = ["0.0.0.0/0"] } }
  }

  expect_failures = [hcloud_server.this]
}

run "a_label_of_the_mark" {
  command = plan

  variables {
    labels = { "gpuctl/owner" = "me" }
  }

  expect_failures = [var.labels]
}

run "a_label_with_colons" {
  command = plan

  variables {
    labels = { until = "12:00" }
  }

  expect_failures = [var.labels]
}

run "a_label_key_with_a_space" {
  command = plan

  variables {
    labels = { "my host" = "yes" }
  }

  expect_failures = [var.labels]
}

run "past_its_end" {
  command = plan

  variables {
    max_hours = 0.0001
  }

  expect_failures = [hcloud_server.this]
}
