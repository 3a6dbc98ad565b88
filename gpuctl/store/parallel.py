"""A few transfers at once, with bounded memory, and results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WIDTH = 4  # transfers at once; a blob is at most 64 MiB, so this holds at most 256 MiB

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Iterable[Item], do: Callable[[Item], Result], *, width: int = WIDTH
) -> Generator[Result, None, None]:
    """Yield ``do(item)`` for every item, in order; at most ``width`` run or wait to be taken.

    The first exception ends it; what has not begun then never does. So does leaving early.
    """
    pool = ThreadPoolExecutor(width, thread_name_prefix="store")
    try:
        pending: deque[Future[Result]] = deque()
        for item in work:
            pending.append(pool.submit(do, item))
            if len(pending) == width:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
