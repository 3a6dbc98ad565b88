# The example with mocked providers: nothing is asked of a cloud.

mock_provider "hcloud" {
  mock_resource "hcloud_firewall" {
    defaults = { id = "38" }
  }

  mock_resource "hcloud_server" {
    defaults = { id = "4711", ipv4_address = "192.0.2.11" }
  }
}

variables {
  ssh_cidrs    = ["203.0.113.7/32"]
  ssh_key_file = "./tests/id_ed25519"
}

run "host" {
  assert {
    condition     = output.gpuctl_machine.id == "4711" && output.gpuctl_machine.region == "hel1"
    error_message = "gpuctl cannot adopt it."
  }
}
