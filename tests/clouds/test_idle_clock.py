"""The clock of the tests with many threads."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

from tests.clouds.http_cloud import HttpCloud
from tests.clouds.idle_clock import IdleClock
from tests.waiting import until

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_threads_sleep_side_by_side() -> None:
    with IdleClock(NOON) as clock:
        woken: list[float] = []

        def doze(seconds: float) -> None:
            clock.sleep(seconds)
            woken.append(clock.monotonic())

        threads = [threading.Thread(target=doze, args=(n,)) for n in (30, 600, 600, 3600)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert woken == [30, 600, 600, 3600]
        assert clock.now() == NOON.replace(hour=13)


def test_time_stands_still_while_a_thread_works() -> None:
    with IdleClock(NOON) as clock, HttpCloud(clock=clock) as cloud:
        over = threading.Event()
        seen: list[float] = []

        def work() -> None:
            import urllib.request
            from urllib.error import HTTPError

            for _ in range(20):
                try:
                    urllib.request.urlopen(f"{cloud.url}/nothing", timeout=5)  # noqa: S310
                except HTTPError as error:
                    error.close()
                seen.append(clock.monotonic())
            over.set()

        threading.Thread(target=work).start()
        assert until(over.is_set, 10)
        assert seen == [0.0] * 20
        clock.sleep(1)
        assert clock.monotonic() == 1
