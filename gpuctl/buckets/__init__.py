"""Files between machines and S3 buckets: straight where the machine reaches the bucket.

This computer alone has credentials. It lists, presigns an address for each object that lives some
minutes, and asks the bucket itself afterwards whether everything arrived. Where the machine
cannot reach the bucket, this computer passes everything on.
"""

from gpuctl.buckets.bringing import bring
from gpuctl.buckets.checking import check_source, check_target
from gpuctl.buckets.from_here import send_from_here
from gpuctl.buckets.naming import key_of_output
from gpuctl.buckets.sending import send
from gpuctl.buckets.trip import NothingThere, Trip

__all__ = [
    "NothingThere",
    "Trip",
    "bring",
    "check_source",
    "check_target",
    "key_of_output",
    "send",
    "send_from_here",
]
