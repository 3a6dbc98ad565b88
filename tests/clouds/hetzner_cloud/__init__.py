"""Hetzner Cloud, emulated: contracts/hetzner.md as of late 2026."""

from tests.clouds.hetzner_cloud.cloud import HetznerCloud, by_hand, main_settings
from tests.clouds.hetzner_cloud.faults import Switches
from tests.clouds.hetzner_cloud.project import Pace

__all__ = ["HetznerCloud", "Pace", "Switches", "by_hand", "main_settings"]
