"""kill -9 of gpuctl at every fact, with the machine on a host of one's own, over real SSH.

The agent ends its machine by itself there as well: `ended_by_the_machine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clouds.ssh_hosts import Hosts
from tests.faults.over_ssh import over_ssh
from tests.faults.rehearsal import Rehearsal
from tests.faults.test_kill_local import (
    MOMENTS,
    ended_by_reap,
    ended_by_the_machine,
    ended_by_the_watchdog,
    killed_and_resumed,
)
from tests.remote.sshd import needs_sshd

pytestmark = [needs_sshd, pytest.mark.slow]

LEASE = "10s"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """One host."""
    made = Hosts(tmp_path)
    made.add("one")
    yield made
    made.servers["one"].stop()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("ending", [ended_by_reap, ended_by_the_watchdog, ended_by_the_machine])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(moment: str, ending: Callable[[Rehearsal], None], hosts: Hosts) -> None:
    killed_and_resumed(over_ssh(hosts), moment, ending, LEASE)
