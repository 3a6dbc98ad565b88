"""The cloud in memory with machines that a real sshd answers for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from providers.base import Clock, Machine, Order, SshAccess
from tests.clouds.memory_cloud import MemoryCloud
from tests.remote.sshd import Sshd


class SshCloud(MemoryCloud):
    """As clouds do, it lets the key of the order in, and says how to reach the machine.

    Args:
        clock: the time.
        sshd: answers for every machine; started by the test.
        way: changes how the machines are reached.
    """

    def __init__(
        self,
        clock: Clock,
        sshd: Sshd,
        *,
        way: Callable[[SshAccess], SshAccess] = lambda access: access,
        settle_seconds: float = 10,
    ) -> None:
        super().__init__(clock, settle_seconds=settle_seconds)
        self._sshd = sshd
        self._way = way

    def create(self, order: Order) -> Machine:
        machine = super().create(order)
        assert order.ssh_public_key is not None
        self._sshd.authorized.append(order.ssh_public_key)
        keys = "".join(f"{key}\n" for key in self._sshd.authorized)
        (self._sshd.folder / "authorized_keys").write_text(keys)
        machine = replace(machine, access=self._way(self._sshd.access))
        self.machines[machine.provider_id] = machine
        return machine
