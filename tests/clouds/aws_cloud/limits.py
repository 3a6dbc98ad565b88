"""How often EC2 may be asked: buckets for each action in each region, as AWS documents them.

https://docs.aws.amazon.com/AWSEC2/latest/APIReference/throttling.html; written down here apart
from what the adapter believes.
"""

from __future__ import annotations

Bucket = tuple[int, float]  # requests at once, and how many a second come back

LAUNCHES: Bucket = (1000, 2)  # instances, whatever the number of requests
_OWN: dict[str, Bucket] = {
    "RunInstances": (5, 2),
    "StartInstances": (5, 2),
    "TerminateInstances": (100, 5),
    "CreateTags": (100, 10),
}
_READ, _UNPAGED, _CHANGE = (100, 20), (50, 10), (50, 5)


def documented(action: str, *, narrow: bool) -> Bucket:
    """Return the bucket of an action.

    Args:
        narrow: the request has filters or asks for a page, which makes a description cheaper.
    """
    if action in _OWN:
        return _OWN[action]
    if action.startswith(("Describe", "Get", "List", "Search")):
        return _READ if narrow else _UNPAGED
    return _CHANGE
