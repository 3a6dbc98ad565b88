"""The cards that clouds name, as plain rows. `providers.gpus` reads them.

A row is (family, sizes in nominal GB, forms, architecture, aliases). The form ``""`` is the
card whose form a cloud does not tell ("Tesla V100"): it is a card of its own, never taken for
a PCIe or an SXM one. Aliases are further names of the family, or of one card: then written
``"alias = canonical name"``. Sources: RunPod's GPU reference (2026-02-12), the list in Vast.ai's
client 1.9.1, EC2's DescribeInstanceTypes, Lambda's and Hetzner's price lists; memory and
compute capability: NVIDIA's product tables (developer.nvidia.com/cuda-gpus).

Vast.ai's list also has an RTX 4090 Ti and an RTX 5090 Ti. NVIDIA never sold either, so no
memory size is known and they stay unknown cards, which still match by size.
"""

from __future__ import annotations

Row = tuple[str, tuple[float, ...], tuple[str, ...], str, tuple[str, ...]]

COMPUTE_CAPABILITY = {
    "Kepler": "3.5",
    "Maxwell": "5.2",
    "Pascal": "6.1",
    "Volta": "7.0",
    "Turing": "7.5",
    "Ampere": "8.6",
    "Ada": "8.9",
    "Hopper": "9.0",
    "Blackwell": "12.0",
}
"""The usual one of an architecture; exceptions are below."""

COMPUTE_CAPABILITY_OF_FAMILY = {
    "A100": "8.0",
    "A100X": "8.0",
    "A30": "8.0",
    "A800": "8.0",
    "B200": "10.0",
    "B300": "10.3",
    "CMP-170HX": "8.0",
    "GB200": "10.0",
    "GTX-750-Ti": "5.0",
    "GRID-K520": "3.0",
    "P100": "6.0",
    "K80": "3.7",
    "Quadro-GP100": "6.0",
    "Quadro-K2200": "5.0",
    "Quadro-K620": "5.0",
}

ANY: tuple[str, ...] = ("",)

DATACENTER: tuple[Row, ...] = (
    ("A10", (24,), ANY, "Ampere", ()),
    ("A10G", (24,), ANY, "Ampere", ()),
    ("A16", (16,), ANY, "Ampere", ()),
    ("A30", (24,), ANY, "Ampere", ("RTX A30",)),
    ("A40", (48,), ANY, "Ampere", ()),
    ("A100", (40, 80), ("", "PCIe", "SXM"), "Ampere", ()),
    ("A100X", (80,), ANY, "Ampere", ()),
    ("A800", (40, 80), ("PCIe", "SXM"), "Ampere", ()),
    # "NVIDIA B200" and "NVIDIA B300 SXM6 AC" are what the driver calls the SXM boards.
    ("B200", (180,), ("SXM",), "Blackwell", ("B200 = B200-180GB-SXM",)),
    (
        "B300",
        (288,),
        ("SXM",),
        "Blackwell",
        ("B300 = B300-288GB-SXM", "B300 SXM6 AC = B300-288GB-SXM"),
    ),
    ("GB200", (186,), ANY, "Blackwell", ()),
    # The driver's "GH200 480GB" counts the CPU's memory; the GPU has 96 GB.
    ("GH200", (96, 144), ANY, "Hopper", ("GH200 480GB = GH200-96GB",)),
    (
        "H100",
        (80,),
        ("", "PCIe", "SXM"),
        "Hopper",
        ("H100 80GB HBM3 = H100-80GB-SXM", "H100 SXM5 = H100-80GB-SXM"),
    ),
    ("H100", (94,), ("NVL",), "Hopper", ("H100NVL = H100-94GB-NVL",)),
    # The driver calls the SXM board plainly "NVIDIA H200". The NVL has 141 GB too; RunPod says 143.
    (
        "H200",
        (141,),
        ("SXM", "NVL"),
        "Hopper",
        ("H200 = H200-141GB-SXM", "H200NVL = H200-141GB-NVL"),
    ),
    ("L4", (24,), ANY, "Ada", ()),
    # EC2 g6f and gr6f: an eighth, a quarter and a half of an L4.
    ("L4-Fraction", (3, 6, 12), ANY, "Ada", ()),
    ("L40", (48,), ANY, "Ada", ()),
    ("L40S", (48,), ANY, "Ada", ()),
    ("GRID-K520", (4,), ANY, "Kepler", ("K520",)),
    ("K20c", (5,), ANY, "Kepler", ()),
    ("K80", (12,), ANY, "Kepler", ()),  # 12 GB for each of its two GPUs
    ("M40", (12, 24), ANY, "Maxwell", ()),
    ("M60", (8,), ANY, "Maxwell", ()),  # 8 GB for each of its two GPUs
    ("P4", (8,), ANY, "Pascal", ()),
    ("P6", (16,), ANY, "Pascal", ()),
    ("P40", (24,), ANY, "Pascal", ()),
    ("P100", (12, 16), ("", "PCIe"), "Pascal", ()),
    ("P100", (16,), ("SXM",), "Pascal", ()),
    ("T4", (16,), ANY, "Turing", ()),
    ("T4G", (16,), ANY, "Turing", ()),
    ("V100", (16, 32), ("", "PCIe", "SXM"), "Volta", ()),
    ("V100", (16,), ("FHHL",), "Volta", ()),
)

GEFORCE: tuple[Row, ...] = (
    ("GTX-750-Ti", (2,), ANY, "Maxwell", ()),
    ("GTX-970", (4,), ANY, "Maxwell", ("970",)),
    ("GTX-1050", (2,), ANY, "Pascal", ()),
    ("GTX-1050-Ti", (4,), ANY, "Pascal", ()),
    ("GTX-1060", (3, 6), ANY, "Pascal", ()),
    ("GTX-1070", (8,), ANY, "Pascal", ()),
    ("GTX-1070-Ti", (8,), ANY, "Pascal", ()),
    ("GTX-1080", (8,), ANY, "Pascal", ()),
    ("GTX-1080-Ti", (11,), ANY, "Pascal", ()),
    ("GTX-1650", (4,), ANY, "Turing", ()),
    ("GTX-1650-SUPER", (4,), ANY, "Turing", ("GTX 1650 S",)),
    ("GTX-1650-Ti", (4,), ANY, "Turing", ()),
    ("GTX-1660", (6,), ANY, "Turing", ()),
    ("GTX-1660-SUPER", (6,), ANY, "Turing", ("GTX 1660 S",)),
    ("GTX-1660-Ti", (6,), ANY, "Turing", ()),
    ("GTX-TITAN-X", (12,), ANY, "Maxwell", ()),
    ("RTX-2060", (6, 12), ANY, "Turing", ()),
    ("RTX-2060-SUPER", (8,), ANY, "Turing", ("RTX 2060S",)),
    ("RTX-2070", (8,), ANY, "Turing", ()),
    ("RTX-2070-SUPER", (8,), ANY, "Turing", ("RTX 2070S",)),
    ("RTX-2080", (8,), ANY, "Turing", ()),
    ("RTX-2080-SUPER", (8,), ANY, "Turing", ("RTX 2080S",)),
    ("RTX-2080-Ti", (11,), ANY, "Turing", ()),
    ("RTX-3050", (6, 8), ANY, "Ampere", ()),
    ("RTX-3060", (8, 12), ANY, "Ampere", ()),
    ("RTX-3060-Laptop", (6,), ANY, "Ampere", ()),
    ("RTX-3060-Ti", (8,), ANY, "Ampere", ()),
    ("RTX-3070", (8,), ANY, "Ampere", ()),
    ("RTX-3070-Laptop", (8,), ANY, "Ampere", ()),
    ("RTX-3070-Ti", (8,), ANY, "Ampere", ()),
    ("RTX-3080", (10, 12), ANY, "Ampere", ()),
    ("RTX-3080-Ti", (12,), ANY, "Ampere", ()),
    ("RTX-3090", (24,), ANY, "Ampere", ()),
    ("RTX-3090-Ti", (24,), ANY, "Ampere", ()),
    ("RTX-4060", (8,), ANY, "Ada", ()),
    ("RTX-4060-Laptop", (8,), ANY, "Ada", ()),
    ("RTX-4060-Ti", (8, 16), ANY, "Ada", ()),
    ("RTX-4070", (12,), ANY, "Ada", ()),
    ("RTX-4070-Laptop", (8,), ANY, "Ada", ()),
    ("RTX-4070-SUPER", (12,), ANY, "Ada", ("RTX 4070S",)),
    ("RTX-4070-Ti", (12,), ANY, "Ada", ()),
    ("RTX-4070-Ti-SUPER", (16,), ANY, "Ada", ("RTX 4070S Ti", "RTX 4070 Ti S")),
    ("RTX-4080", (16,), ANY, "Ada", ()),
    ("RTX-4080-Laptop", (12,), ANY, "Ada", ()),
    ("RTX-4080-SUPER", (16,), ANY, "Ada", ("RTX 4080S",)),
    ("RTX-4090", (24,), ANY, "Ada", ()),
    ("RTX-4090-D", (24,), ANY, "Ada", ()),
    ("RTX-5060", (8,), ANY, "Blackwell", ()),
    ("RTX-5060-Ti", (8, 16), ANY, "Blackwell", ()),
    ("RTX-5070", (12,), ANY, "Blackwell", ()),
    ("RTX-5070-Ti", (16,), ANY, "Blackwell", ()),
    ("RTX-5080", (16,), ANY, "Blackwell", ()),
    ("RTX-5090", (32,), ANY, "Blackwell", ()),
    ("TITAN-RTX", (24,), ANY, "Turing", ()),
    ("TITAN-V", (12,), ANY, "Volta", ()),
    ("TITAN-V-CEO", (32,), ANY, "Volta", ("TITAN V CEO Edition",)),
    ("TITAN-X", (12,), ANY, "Pascal", ("TITAN X (Pascal)",)),
    ("TITAN-Xp", (12,), ANY, "Pascal", ()),
    ("CMP-50HX", (10,), ANY, "Turing", ()),
    ("CMP-170HX", (8,), ANY, "Ampere", ()),
    ("P104-100", (4,), ANY, "Pascal", ()),
    ("P106-100", (6,), ANY, "Pascal", ()),
)

WORKSTATION: tuple[Row, ...] = (
    ("Quadro-K620", (2,), ANY, "Maxwell", ()),
    ("Quadro-K2200", (4,), ANY, "Maxwell", ()),
    ("Quadro-P2000", (5,), ANY, "Pascal", ()),
    ("Quadro-P4000", (8,), ANY, "Pascal", ()),
    ("Quadro-P5000", (16,), ANY, "Pascal", ()),
    ("Quadro-P6000", (24,), ANY, "Pascal", ()),
    ("Quadro-GP100", (16,), ANY, "Pascal", ()),
    ("Quadro-GV100", (32,), ANY, "Volta", ()),
    ("Quadro-RTX-4000", (8,), ANY, "Turing", ("Q RTX 4000",)),
    ("Quadro-RTX-5000", (16,), ANY, "Turing", ("Q RTX 5000",)),
    ("Quadro-RTX-6000", (24,), ANY, "Turing", ("Q RTX 6000",)),
    ("Quadro-RTX-8000", (48,), ANY, "Turing", ("Q RTX 8000",)),
    ("RTX-A2000", (6, 12), ANY, "Ampere", ()),
    ("RTX-A4000", (16,), ANY, "Ampere", ("A4000",)),
    ("RTX-A4500", (20,), ANY, "Ampere", ("A4500",)),
    ("RTX-A5000", (24,), ANY, "Ampere", ("A5000",)),
    ("RTX-A6000", (48,), ANY, "Ampere", ("A6000",)),
    ("RTX-2000-Ada", (16,), ANY, "Ada", ("2000 Ada",)),
    ("RTX-4000-Ada", (20,), ANY, "Ada", ("4000 Ada",)),
    ("RTX-4000-SFF-Ada", (20,), ANY, "Ada", ("RTX 4000 Ada SFF",)),
    ("RTX-4500-Ada", (24,), ANY, "Ada", ("4500 Ada",)),
    ("RTX-5000-Ada", (32,), ANY, "Ada", ("5000 Ada", "A5000 Ada")),
    ("RTX-5880-Ada", (48,), ANY, "Ada", ("5880 Ada",)),
    ("RTX-6000-Ada", (48,), ANY, "Ada", ("6000 Ada",)),
    ("RTX-PRO-4000", (24,), ANY, "Blackwell", ()),
    ("RTX-PRO-4000-Mobile", (16,), ANY, "Blackwell", ("RTX PRO 4000 Laptop",)),
    ("RTX-PRO-4000-SFF", (24,), ANY, "Blackwell", ()),
    ("RTX-PRO-4500", (32,), ANY, "Blackwell", ("PRO 4500",)),
    ("RTX-PRO-5000", (48, 72), ANY, "Blackwell", ()),
    (
        "RTX-PRO-6000",
        (96,),
        ("", "Server", "Workstation", "Max-Q"),
        "Blackwell",
        (
            "PRO 6000",
            "RTX PRO Server 6000 = RTX-PRO-6000-Server",
            "RTX PRO 6000 S = RTX-PRO-6000-Server",
            "RTX PRO 6000 WS = RTX-PRO-6000-Workstation",
            "RTX PRO 6000 WK = RTX-PRO-6000-Workstation",
            "RTX PRO 6000 Max-Q Workstation = RTX-PRO-6000-Max-Q",
        ),
    ),
    (
        "RTX-PRO-6000-MIG",
        (24, 48),
        ANY,
        "Blackwell",
        (
            "RTX PRO 6000 Server MIG 1g.24gb = RTX-PRO-6000-MIG-24GB",
            "RTX PRO 6000 Server MIG 2g.48gb = RTX-PRO-6000-MIG-48GB",
            "PRO 6000 MIG",
        ),
    ),
)

AMD: tuple[Row, ...] = (
    ("MI50", (16, 32), ANY, "Vega", ()),
    ("MI100", (32,), ANY, "CDNA", ()),
    ("MI210", (64,), ANY, "CDNA 2", ()),
    ("MI250X", (128,), ANY, "CDNA 2", ()),
    ("MI300X", (192,), ANY, "CDNA 3", ("MI300X OAM",)),
)
