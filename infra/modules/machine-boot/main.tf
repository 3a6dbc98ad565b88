# What machines of every cloud have in common: a name, a mark with a hard end, a first boot.

# Kept from the first apply on: a machine's name and end do not change while it lives. Another
# max_hours, or `-replace` of this resource, makes a new name and end, and with them a new machine.
resource "terraform_data" "this" {
  input = {
    expires_at = timeadd(plantimestamp(), "${var.max_hours}h")
    nonce      = substr(replace(uuid(), "-", ""), 0, 8)
  }

  triggers_replace = [var.name, var.owner, var.max_hours]

  lifecycle {
    ignore_changes = [input]
  }
}

module "end" {
  source = "./epoch"

  moment = local.expires_at
}

locals {
  name       = "gpuctl-${var.name}-${substr(var.owner, 0, 6)}-${terraform_data.this.input.nonce}"
  expires_at = terraform_data.this.input.expires_at

  # The public half tells nothing that a connection would not.
  handed_over     = nonsensitive(var.host_key != null)
  host_key_public = local.handed_over ? join(" ", slice(split(" ", trimspace(nonsensitive(var.host_key.public))), 0, 2)) : null

  # Its 32 bytes in base32, which a label can hold: base64 holds 6 bits a character, base32 5.
  # The first 19 of its 51 bytes only say that it is ed25519.
  base64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
  base32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
  sixes  = { for i in range(64) : substr(local.base64, i, 1) => format("%06b", i) }
  fives  = { for i in range(32) : format("%05b", i) => substr(local.base32, i, 1) }
  blob   = local.handed_over ? split(" ", local.host_key_public)[1] : ""
  bits   = "${join("", [for i in range(length(local.blob)) : local.sixes[substr(local.blob, i, 1)]])}0000"
  host_key_label = local.handed_over ? join("", [
    for i in range(52) : local.fives[substr(local.bits, 152 + 5 * i, 5)]
  ]) : null

  python   = "/root/.gpuctl-python"
  poweroff = "systemctl poweroff --force || poweroff -f"
  pip      = <<-EOT
    #!/bin/sh
    # pip of this machine. The system's may arrive while the machine boots.
    timeout 600 cloud-init status --wait >/dev/null 2>&1
    exec ${local.python}/bin/python -m pip "$@"
  EOT
  timer    = <<-EOT
    left=$((${module.end.seconds} - $(date +%s)))
    [ "$left" -gt 0 ] || left=1
    systemctl stop gpuctl-end.timer 2>/dev/null
    systemd-run --unit=gpuctl-end --on-active="$left"s --timer-property=AccuracySec=1s sh -c '${local.poweroff}' ||
      (sleep "$left"; ${local.poweroff}) </dev/null >/dev/null 2>&1 &
  EOT

  cloud_config = {
    disable_root        = false
    ssh_pwauth          = false
    ssh_authorized_keys = [trimspace(var.ssh_public_key)]
    # bootcmd runs at every boot, before anything is installed: a reboot does not disarm the timer.
    bootcmd = [
      ["sh", "-c", local.timer],
      ["sh", "-c", "systemctl disable --now apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service || true"],
      ["python3", "-m", "venv", "--without-pip", "--system-site-packages", local.python],
    ]
    packages = ["python3-pip"]
    write_files = concat(
      [for name in ["pip", "pip3"] : { path = "${local.python}/bin/${name}", content = local.pip, permissions = "0755" }],
      [{
        # Some images let root in for single commands only.
        path        = "/etc/ssh/sshd_config.d/00-gpuctl.conf"
        content     = "PermitRootLogin prohibit-password\n"
        permissions = "0644"
      }],
    )
  }

  host_key_config = {
    ssh_deletekeys = true
    ssh_keys = {
      ed25519_private = try(var.host_key.private, null)
      ed25519_public  = local.host_key_public
    }
  }
  user_data = merge(local.cloud_config, { for key, value in local.host_key_config : key => value if local.handed_over })
}
