# What is made of right inputs. The provider is mocked: nothing is asked of Hetzner.

mock_provider "hcloud" {
  mock_resource "hcloud_firewall" {
    defaults = { id = "38" } # the ids are numbers, and firewall_ids takes no others
  }

  mock_resource "hcloud_server" {
    defaults = { id = "4711", ipv4_address = "192.0.2.10", ipv6_address = "2001:db8::1" }
  }

  mock_resource "hcloud_ssh_key" {
    defaults = { id = "12" }
  }
}

variables {
  name           = "host"
  owner          = "0123456789ab"
  server_type    = "cx23"
  location       = "hel1"
  ssh_cidrs      = ["203.0.113.7/32"]
  ssh_public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFUbnA0ixCiEuOhkzpmmFNyz1lMXyyGMSJ11CrYYs0aH me@laptop"
}

run "host" {
  variables {
    price_hour = "0.0080"

    host_key = {
      private = "-----BEGIN OPENSSH PRIVATE KEY-----\nnone\n-----END OPENSSH PRIVATE KEY-----\n"
      public  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvqrAaEWUtdZmlkSE4jaqoNeqEhrhAvZOfeKru2NsOl"
    }
  }

  assert {
    condition = hcloud_server.this.labels == tomap({
      "gpuctl/managed-by" = "terraform"
      "gpuctl/owner"      = "0123456789ab"
      "gpuctl/end"        = hcloud_server.this.labels["gpuctl/end"]
      "gpuctl/host-key"   = "TPVKYBUELFFV2ZTJMREE4I3KVIGXVIJBVYIC6ZHH3YVLXNRWYOSQ"
    })
    error_message = "The mark is ${jsonencode(hcloud_server.this.labels)}."
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${hcloud_server.this.labels["gpuctl/end"]}s") == output.expires_at
    error_message = "The label and expires_at are not the same moment."
  }

  assert {
    condition     = hcloud_server.this.name == output.name && can(regex("^gpuctl-host-012345-[0-9a-f]{8}$", output.name))
    error_message = "The server is called ${hcloud_server.this.name}."
  }

  assert {
    condition     = [for rule in hcloud_firewall.this.rule : "${rule.direction} ${rule.protocol} ${rule.port} ${join(",", rule.source_ips)}"] == ["in tcp 22 203.0.113.7/32"]
    error_message = "Something else than SSH from the named address comes in."
  }

  assert {
    condition     = hcloud_server.this.firewall_ids == toset([38])
    error_message = "The firewall is not the server's."
  }

  assert {
    condition     = hcloud_server.this.ssh_keys == tolist(["12"])
    error_message = "The server is made without our key, and would get a root password."
  }

  assert {
    condition     = yamldecode(hcloud_server.this.user_data).ssh_keys.ed25519_public == output.gpuctl_machine.host_keys[0]
    error_message = "The server is not given its host key."
  }

  assert {
    condition = jsonencode(output.gpuctl_machine) == jsonencode({
      provider   = "hetzner"
      id         = "4711"
      name       = output.name
      host       = "192.0.2.10"
      port       = 22
      user       = "root"
      price_hour = "0.0080"
      gpu        = null
      gpu_count  = 0
      region     = "hel1"
      spot       = false
      expires_at = output.expires_at
      host_keys  = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvqrAaEWUtdZmlkSE4jaqoNeqEhrhAvZOfeKru2NsOl"]
      key_file   = null
    })
    error_message = "gpuctl_machine is ${jsonencode(output.gpuctl_machine)}."
  }

  assert {
    condition     = output.ssh_command == "ssh root@192.0.2.10"
    error_message = "ssh_command is ${output.ssh_command}."
  }
}

run "a_key_that_the_project_has" {
  variables {
    ssh_key_names = ["laptop"]
  }

  assert {
    condition     = length(hcloud_ssh_key.this) == 0 && hcloud_server.this.ssh_keys == tolist(["laptop"])
    error_message = "The key is made a second time."
  }

  assert {
    condition     = !can(hcloud_server.this.labels["gpuctl/host-key"]) && length(output.gpuctl_machine.host_keys) == 0
    error_message = "There is a host key that nobody handed over."
  }
}

run "serving" {
  variables {
    labels = { "example.com/team" = "speech" }
    inbound = {
      https = { port = "443", cidrs = ["0.0.0.0/0", "::/0"] }
      game  = { port = "8000-8010", cidrs = ["203.0.113.0/24"], protocol = "udp" }
    }
  }

  assert {
    condition     = toset([for rule in hcloud_firewall.this.rule : "${rule.protocol} ${rule.port}"]) == toset(["tcp 22", "tcp 443", "udp 8000-8010"])
    error_message = "The ports are ${jsonencode(hcloud_firewall.this.rule)}."
  }

  assert {
    condition     = hcloud_server.this.labels["example.com/team"] == "speech" && hcloud_firewall.this.labels["gpuctl/managed-by"] == "terraform"
    error_message = "A label is missing."
  }
}
