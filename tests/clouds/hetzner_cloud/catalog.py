"""What the emulated Hetzner Cloud sells: server types, locations, images and their prices."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

Json = dict[str, Any]

_HOURS_A_MONTH = 624
_TB = 1 << 40

# id, name, description, country, city, latitude, longitude, network zone
_LOCATIONS = (
    (1, "fsn1", "Falkenstein DC Park 1", "DE", "Falkenstein", 50.47612, 12.370071, "eu-central"),
    (2, "nbg1", "Nuremberg DC Park 1", "DE", "Nuremberg", 49.452102, 11.076665, "eu-central"),
    (3, "hel1", "Helsinki DC Park 1", "FI", "Helsinki", 60.169855, 24.938379, "eu-central"),
    (4, "ash", "Ashburn, VA", "US", "Ashburn, VA", 39.045821, -77.487073, "us-east"),
    (5, "hil", "Hillsboro, OR", "US", "Hillsboro, OR", 45.54222, -122.951924, "us-west"),
    (6, "sin", "Singapore", "SG", "Singapore", 1.283333, 103.833333, "ap-southeast"),
)
_EUROPE = ("fsn1", "nbg1", "hel1")
_EVERYWHERE = tuple(row[1] for row in _LOCATIONS)

# name, architecture, cpu, vCPUs, RAM in GB, disk in GB, EUR a month net in Europe without IPv4
_TYPES = """
cx22 x86 shared 2 4 40 3.79
cx23 x86 shared 2 4 40 5.49
cx33 x86 shared 4 8 80 8.49
cx43 x86 shared 8 16 160 15.99
cx53 x86 shared 16 32 320 29.49
cax11 arm shared 2 4 40 5.99
cax21 arm shared 4 8 80 10.49
cax31 arm shared 8 16 160 20.99
cax41 arm shared 16 32 320 40.99
cpx12 x86 shared 1 2 40 11.49
cpx22 x86 shared 2 4 80 19.49
cpx32 x86 shared 4 8 160 35.49
cpx42 x86 shared 8 16 320 69.49
cpx52 x86 shared 12 24 480 100.49
cpx62 x86 shared 16 32 640 129.99
ccx13 x86 dedicated 2 8 80 42.99
ccx23 x86 dedicated 4 16 160 85.99
ccx33 x86 dedicated 8 32 240 138.49
ccx43 x86 dedicated 16 64 360 275.99
ccx53 x86 dedicated 32 128 600 533.49
ccx63 x86 dedicated 48 192 960 853.49
"""
_WITHDRAWN = {
    "cx22": {"announced": "2025-10-16T00:00:00Z", "unavailable_after": "2026-01-01T00:00:00Z"}
}
_DEARER_ABROAD = Decimal("87.49") / Decimal("85.99")

# id, name, architecture, flavour, version
_IMAGES = (
    (161547269, "ubuntu-24.04", "x86", "ubuntu", "24.04"),
    (161547270, "ubuntu-24.04", "arm", "ubuntu", "24.04"),
    (67794396, "ubuntu-22.04", "x86", "ubuntu", "22.04"),
    (114690387, "debian-12", "x86", "debian", "12"),
    (114690389, "debian-12", "arm", "debian", "12"),
)


@dataclass
class Catalog:
    """Prices as one account sees them.

    Attributes:
        currency: of the account: EUR or USD.
        vat_rate: percent.
        factor: prices are multiplied with it: they have moved four times in 2026.
        sold_out: (type, location) that the indicator calls unavailable.
    """

    currency: str = "EUR"
    vat_rate: Decimal = Decimal("19.00")
    factor: Decimal = Decimal(1)
    sold_out: set[tuple[str, str]] = field(default_factory=set)
    ipv4_hour: Decimal = Decimal("0.0008")
    ipv4_month: Decimal = Decimal("0.50")
    volume_gb_month: Decimal = Decimal("0.0572")
    image_gb_month: Decimal = Decimal("0.0143")
    _made: dict[tuple[object, ...], list[Json]] = field(default_factory=dict)

    def month(self, name: str, location: str) -> Decimal:
        """Net a month of a server."""
        net = Decimal(_row(name)[6]) * self.factor
        return net if location in _EUROPE else (net * _DEARER_ABROAD).quantize(Decimal("0.01"))

    def hour(self, name: str, location: str) -> Decimal:
        """Net an hour of a server."""
        return (self.month(name, location) / _HOURS_A_MONTH).quantize(Decimal("0.0001"))

    def server_types(self) -> list[Json]:
        """Every type, in full."""
        key = (self.currency, self.vat_rate, self.factor, frozenset(self.sold_out))
        if key not in self._made:
            self._made[key] = [self._type(at, row) for at, row in enumerate(_rows(), start=101)]
        return self._made[key]

    def server_type(self, wanted: object) -> Json | None:
        """The type of that id or name."""
        name = str(wanted)
        return next((t for t in self.server_types() if name in (t["name"], str(t["id"]))), None)

    def pricing(self) -> Json:
        """What /pricing answers."""
        types = [t for t in self.server_types() if t["name"] not in _WITHDRAWN]
        address = [
            {"location": name, **self._prices(self.ipv4_hour, self.ipv4_month)}
            for name in _EVERYWHERE
        ]
        floating = {
            "type": "ipv4",
            "prices": [
                {"location": name, "price_monthly": self._price(Decimal("3.00"))}
                for name in _EVERYWHERE
            ],
        }
        return {
            "currency": self.currency,
            "vat_rate": f"{self.vat_rate:.2f}",
            "image": {"price_per_gb_month": self._price(self.image_gb_month)},
            "volume": {"price_per_gb_month": self._price(self.volume_gb_month)},
            "server_backup": {"percentage": "20.00"},
            "primary_ips": [{"type": "ipv4", "prices": address}],
            "floating_ip": {"price_monthly": self._price(Decimal("3.00"))},
            "floating_ips": [floating],
            "server_types": [{key: t[key] for key in ("id", "name", "prices")} for t in types],
            "load_balancer_types": [],
        }

    # ------------------------------------------------------------------ inside

    def _type(self, number: int, row: list[str]) -> Json:
        name, architecture, cpu, cores, memory, disk, _ = row
        where = _places(name)
        return {
            "id": number,
            "name": name,
            "description": name.upper(),
            "category": f"{cpu.capitalize()} vCPU",
            "cores": int(cores),
            "memory": float(memory),
            "disk": int(disk),
            "deprecated": name in _WITHDRAWN,
            "deprecation": _WITHDRAWN.get(name),
            "included_traffic": None,
            "storage_type": "local",
            "cpu_type": cpu,
            "architecture": architecture,
            "prices": [self._at(name, location) for location in where],
            "locations": [
                {
                    "id": location["id"],
                    "name": location["name"],
                    "deprecation": _WITHDRAWN.get(name),
                    "available": name not in _WITHDRAWN
                    and not _listed(self.sold_out, name, location["name"]),
                    "recommended": name.startswith("c"),
                }
                for location in locations()
                if location["name"] in where
            ],
        }

    def _at(self, name: str, location: str) -> Json:
        traffic = 20 * _TB if location in _EUROPE else _TB
        return {
            "location": location,
            **self._prices(self.hour(name, location), self.month(name, location)),
            "included_traffic": traffic,
            "price_per_tb_traffic": self._price(Decimal(1)),
        }

    def _prices(self, hour: Decimal, month: Decimal) -> Json:
        return {"price_hourly": self._price(hour), "price_monthly": self._price(month)}

    def _price(self, net: Decimal) -> Json:
        gross = net * (1 + self.vat_rate / 100)
        return {"net": f"{net:.10f}", "gross": f"{gross:.16f}"}


def locations() -> list[Json]:
    """Every location."""
    keys = ("id", "name", "description", "country", "city", "latitude", "longitude", "network_zone")
    return [dict(zip(keys, row, strict=True)) for row in _LOCATIONS]


def location(wanted: object) -> Json | None:
    """The location of that id or name."""
    return next((x for x in locations() if str(wanted) in (x["name"], str(x["id"]))), None)


def images() -> list[Json]:
    """The system images."""
    return [
        {
            "id": number,
            "type": "system",
            "status": "available",
            "name": name,
            "description": f"{flavour.capitalize()} {version}",
            "image_size": None,
            "disk_size": 5,
            "created": "2024-04-25T13:26:27Z",
            "created_from": None,
            "bound_to": None,
            "os_flavor": flavour,
            "os_version": version,
            "architecture": architecture,
            "rapid_deploy": True,
            "protection": {"delete": False},
            "deprecation": None,
            "deleted": None,
            "labels": {},
        }
        for number, name, architecture, flavour, version in _IMAGES
    ]


def _rows() -> list[list[str]]:
    return [row.split() for row in _TYPES.split("\n") if row]


def _row(name: str) -> list[str]:
    return next(row for row in _rows() if row[0] == name)


def _places(name: str) -> tuple[str, ...]:
    return _EVERYWHERE if name.startswith("ccx") else _EUROPE


def _listed(pairs: set[tuple[str, str]], name: str, place: str) -> bool:
    return bool({(name, place), (name, "*"), ("*", place), ("*", "*")} & pairs)
