"""EC2's machines with NVIDIA GPUs.

Facts: DescribeInstanceTypes, as of moto 5.2.5. Prices: us-east-1, Linux, shared, on demand, from
Karpenter's generated price file of 2026-07-20. EC2 tells neither form nor nominal memory; that
p3dn, p4, p5 and p6 have SXM boards is in AWS's descriptions of these families.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from providers.reference.entry import Entry

EGRESS_GB = Decimal("0.09")
"""USD for a GB that a machine sends to the internet, in most regions (Sydney: 0.114); what comes
in is free. Source: AWS's data transfer prices as quoted by egresscost.com and wring.co in 2026. The
first 100 GB a month of an account are free: how much of them is left nobody knows, so they are not
counted."""

_GIB_IN_GB = 1.073741824
_AS_OF = date(2026, 7, 20)
_SOURCE = "Karpenter's generated price file"
_REGION = "us-east-1"

# type, GPU, number of GPUs, vCPUs, RAM in GiB, USD an hour ("-": not sold in us-east-1).
# An L4-Fraction is an eighth, a quarter or a half of an L4 and counts as one GPU.
_TYPES = """
g4dn.xlarge T4 1 4 16 0.526
g4dn.2xlarge T4 1 8 32 0.752
g4dn.4xlarge T4 1 16 64 1.204
g4dn.8xlarge T4 1 32 128 2.176
g4dn.12xlarge T4 4 48 192 3.912
g4dn.16xlarge T4 1 64 256 4.352
g4dn.metal T4 8 96 384 7.824
g5.xlarge A10G 1 4 16 1.006
g5.2xlarge A10G 1 8 32 1.212
g5.4xlarge A10G 1 16 64 1.624
g5.8xlarge A10G 1 32 128 2.448
g5.12xlarge A10G 4 48 192 5.672
g5.16xlarge A10G 1 64 256 4.096
g5.24xlarge A10G 4 96 384 8.144
g5.48xlarge A10G 8 192 768 16.288
g5g.xlarge T4G 1 4 8 0.42
g5g.2xlarge T4G 1 8 16 0.556
g5g.4xlarge T4G 1 16 32 0.828
g5g.8xlarge T4G 1 32 64 1.372
g5g.16xlarge T4G 2 64 128 2.744
g5g.metal T4G 2 64 128 2.744
g6.xlarge L4 1 4 16 0.8048
g6.2xlarge L4 1 8 32 0.9776
g6.4xlarge L4 1 16 64 1.3232
g6.8xlarge L4 1 32 128 2.0144
g6.12xlarge L4 4 48 192 4.6016
g6.16xlarge L4 1 64 256 3.3968
g6.24xlarge L4 4 96 384 6.6752
g6.48xlarge L4 8 192 768 13.3504
g6e.xlarge L40S 1 4 32 1.861
g6e.2xlarge L40S 1 8 64 2.24208
g6e.4xlarge L40S 1 16 128 3.00424
g6e.8xlarge L40S 1 32 256 4.52856
g6e.12xlarge L40S 4 48 384 10.49264
g6e.16xlarge L40S 1 64 512 7.57719
g6e.24xlarge L40S 4 96 768 15.06559
g6e.48xlarge L40S 8 192 1536 30.13118
g6f.large L4-Fraction-3GB 1 2 8 0.202
g6f.xlarge L4-Fraction-3GB 1 4 16 0.2375
g6f.2xlarge L4-Fraction-6GB 1 8 32 0.475
g6f.4xlarge L4-Fraction-12GB 1 16 64 0.95
g7.2xlarge RTX-PRO-4500 1 8 32 2.52
g7.4xlarge RTX-PRO-4500 1 16 64 3.04208
g7.8xlarge RTX-PRO-4500 1 32 128 4.08624
g7.12xlarge RTX-PRO-4500 2 48 192 7.12832
g7.24xlarge RTX-PRO-4500 4 96 384 14.25664
g7.48xlarge RTX-PRO-4500 8 192 768 28.51328
g7e.2xlarge RTX-PRO-6000-Server 1 8 64 3.36312
g7e.4xlarge RTX-PRO-6000-Server 1 16 128 3.99816
g7e.8xlarge RTX-PRO-6000-Server 1 32 256 5.26824
g7e.12xlarge RTX-PRO-6000-Server 2 48 512 8.28608
g7e.24xlarge RTX-PRO-6000-Server 4 96 1024 16.57216
g7e.48xlarge RTX-PRO-6000-Server 8 192 2048 33.14432
gr6.4xlarge L4 1 16 128 1.5392
gr6.8xlarge L4 1 32 256 2.4464
gr6f.4xlarge L4-Fraction-12GB 1 16 128 1.066
p3dn.24xlarge V100-32GB-SXM 8 96 768 31.212
p4d.24xlarge A100-40GB-SXM 8 96 1152 21.957642
p4de.24xlarge A100-80GB-SXM 8 96 1152 27.44705
p5.4xlarge H100-80GB-SXM 1 16 256 6.88
p5.48xlarge H100-80GB-SXM 8 192 2048 55.04
p5e.48xlarge H200-141GB-SXM 8 192 2048 -
p5en.48xlarge H200-141GB-SXM 8 192 2048 63.296
p6-b200.48xlarge B200-180GB-SXM 8 192 2048 113.9328
p6-b300.48xlarge B300-288GB-SXM 8 192 4096 142.416
"""


def _entry(row: str) -> Entry:
    name, gpu, count, vcpus, ram_gib, price = row.split()
    sold = price != "-"
    return Entry(
        system="aws",
        name=name,
        gpu=gpu,
        gpu_count=int(count),
        spot=False,
        price=Decimal(price) if sold else None,
        unit="USD/hour",
        as_of=_AS_OF,
        source=_SOURCE,
        region=_REGION,
        vcpus=float(vcpus),
        ram_gb=round(float(ram_gib) * _GIB_IN_GB, 1),
        not_hourly=None if sold else f"not sold in {_REGION}",
        note="its CPU is arm64" if name.startswith("g5g.") else "",
    )


EC2: tuple[Entry, ...] = (
    *(_entry(row) for row in _TYPES.split("\n") if row),
    # In the price file still, but no longer in DescribeInstanceTypes: size as AWS publishes it.
    _entry("p3.2xlarge V100-16GB-SXM 1 8 61 3.06"),
)
