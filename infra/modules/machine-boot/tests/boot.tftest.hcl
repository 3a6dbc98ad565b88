variables {
  name           = "trainer"
  owner          = "0123456789abcdef"
  max_hours      = 8
  ssh_public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFUbnA0ixCiEuOhkzpmmFNyz1lMXyyGMSJ11CrYYs0aH me@laptop\n"
}

run "name_and_end" {
  assert {
    condition     = can(regex("^gpuctl-trainer-012345-[0-9a-f]{8}$", output.name))
    error_message = "${output.name} is no machine's name."
  }

  assert {
    condition     = timeadd("1970-01-01T00:00:00Z", "${output.end}s") == output.expires_at
    error_message = "end and expires_at are not the same moment."
  }

  assert {
    condition     = timecmp(output.expires_at, timeadd(plantimestamp(), "8h")) <= 0 && timecmp(output.expires_at, timeadd(plantimestamp(), "7h59m")) > 0
    error_message = "It does not end 8 hours from now."
  }

  assert {
    condition     = !output.expired
    error_message = "It has expired before it began."
  }

  assert {
    condition     = startswith(output.user_data, "#cloud-config\n") && yamldecode(output.user_data).ssh_authorized_keys == [trimspace(var.ssh_public_key)]
    error_message = "The caller's key is not let in."
  }

  assert {
    condition     = strcontains(yamldecode(output.user_data).bootcmd[0][2], "left=$((${output.end} - $(date +%s)))")
    error_message = "The timer is not armed at every boot."
  }

  assert {
    condition     = !can(yamldecode(output.user_data).ssh_keys) && output.host_key_public == null && output.host_key_label == null
    error_message = "There is a host key that nobody handed over."
  }
}

run "nothing_changes_later" {
  assert {
    condition     = output.name == run.name_and_end.name && output.expires_at == run.name_and_end.expires_at
    error_message = "A second apply gave another name or end."
  }
}

run "another_life_is_another_machine" {
  variables {
    max_hours = 9
  }

  assert {
    condition     = output.name != run.name_and_end.name && output.expires_at != run.name_and_end.expires_at
    error_message = "Another max_hours did not make another machine."
  }
}

run "handed_over_host_key" {
  variables {
    host_key = {
      private = "-----BEGIN OPENSSH PRIVATE KEY-----\nnone\n-----END OPENSSH PRIVATE KEY-----\n"
      public  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvqrAaEWUtdZmlkSE4jaqoNeqEhrhAvZOfeKru2NsOl a comment\n"
    }
  }

  assert {
    condition     = output.host_key_public == "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvqrAaEWUtdZmlkSE4jaqoNeqEhrhAvZOfeKru2NsOl"
    error_message = "The public host key is ${output.host_key_public}."
  }

  assert {
    # Python's base64.b32encode of the last 32 bytes of the key.
    condition     = output.host_key_label == "TPVKYBUELFFV2ZTJMREE4I3KVIGXVIJBVYIC6ZHH3YVLXNRWYOSQ"
    error_message = "The label is ${output.host_key_label}."
  }

  assert {
    condition     = yamldecode(output.user_data).ssh_keys.ed25519_public == output.host_key_public && yamldecode(output.user_data).ssh_deletekeys
    error_message = "The machine is not given its host key."
  }
}
