"""The SDK's clients for AWS: one set a region, with our time-outs and retries.

A launch is sent once: both of the SDK's retry modes would repeat "no capacity", which EC2 answers
with status 500, and a launch whose reply was lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from providers.aws_errors import said
from providers.aws_pace import Pace
from providers.base import AuthFailed, Clock, InvalidRequest, SystemClock
from providers.http_client import user_agent

REGIONS = "GPUCTL_AWS_REGIONS"
_DEFAULT_REGION = "us-east-1"
_ALL = "all"
_AT_ONCE = 8
_ENDPOINTS = {
    "ec2": "AWS_ENDPOINT_URL_EC2",
    "ssm": "AWS_ENDPOINT_URL_SSM",
    "pricing": "AWS_ENDPOINT_URL_PRICING",
    "service-quotas": "AWS_ENDPOINT_URL_SERVICE_QUOTAS",
    "scheduler": "AWS_ENDPOINT_URL_SCHEDULER",
    "sts": "AWS_ENDPOINT_URL_STS",
}
_SESSION_VARIABLES = {
    "profile": ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
    "config_file": ("AWS_CONFIG_FILE",),
    "credentials_file": ("AWS_SHARED_CREDENTIALS_FILE",),
    "ca_bundle": ("AWS_CA_BUNDLE",),
}
_KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_ROLES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
_FILES = (
    ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
    ("AWS_CONFIG_FILE", ".aws/config"),
)
# The price list has three homes, and each knows the prices of every region.
_PRICE_LISTS = (("eu-", "eu-central-1"), ("ap-", "ap-south-1"))

_T = TypeVar("_T")
_A = TypeVar("_A")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one request may take, in seconds, and how often a read is tried."""

    connect: float = 5
    read: float = 20
    launch: float = 60
    tries: int = 4


DEFAULT_PATIENCE = Patience()


class Aws:
    """The clients of one set of credentials; made when first used, shared by threads."""

    def __init__(
        self,
        environ: Mapping[str, str],
        patience: Patience = DEFAULT_PATIENCE,
        clock: Clock | None = None,
    ) -> None:
        self.environ = environ
        self._patience = patience
        self._pace = Pace(clock or SystemClock())
        self._lock = threading.RLock()
        self._session: Any = None
        self._clients: dict[tuple[str, str, bool], Any] = {}
        self._enabled: tuple[str, ...] | None = None

    def configured(self) -> bool:
        """Whether there are credentials for AWS itself; asks nobody.

        Keys beside another S3's endpoint are that store's. Somebody who uses both says so by
        naming regions.
        """
        environ = self.environ
        elsewhere = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        named = environ.get(REGIONS) or environ.get(_ENDPOINTS["ec2"])
        if elsewhere and "amazonaws.com" not in elsewhere and not named:
            return False
        if all(environ.get(name) for name in _KEY) or any(environ.get(name) for name in _ROLES):
            return True
        if self._first("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
            return True
        home = Path(environ.get("HOME") or Path.home())
        return any(_holds_keys(Path(environ.get(name) or home / file)) for name, file in _FILES)

    def regions(self) -> tuple[str, ...]:
        """The regions to look in: GPUCTL_AWS_REGIONS, else the SDK's one.

        For "all" AWS is asked, once, which ones the account may use; that raises ProviderError.
        """
        named = [part.strip() for part in self.environ.get(REGIONS, "").split(",")]
        found = tuple(dict.fromkeys(part for part in named if part))
        if found == (_ALL,):
            return self._enabled_regions()
        return found or (self._home_region(),)

    def _home_region(self) -> str:
        return self._first("AWS_REGION", "AWS_DEFAULT_REGION") or self._own_region()

    def _enabled_regions(self) -> tuple[str, ...]:
        with self._lock:
            if self._enabled is None:
                with said("AWS did not name the regions of the account"):
                    told = self.ec2(self._home_region()).describe_regions(AllRegions=False)
                self._enabled = tuple(sorted(str(row["RegionName"]) for row in told["Regions"]))
            return self._enabled

    def launching(self, region: str) -> Any:
        """Return an EC2 client that sends everything once."""
        return self._client("ec2", region, once=True)

    def ec2(self, region: str) -> Any:
        """Return an EC2 client that repeats what fails for a moment."""
        return self._client("ec2", region)

    def ssm(self, region: str) -> Any:
        """Return a client for the parameters that name images."""
        return self._client("ssm", region)

    def pricing(self, region: str) -> Any:
        """Return a client for the price list nearest to a region."""
        home = next((home for start, home in _PRICE_LISTS if region.startswith(start)), None)
        return self._client("pricing", home or _DEFAULT_REGION)

    def quotas(self, region: str) -> Any:
        """Return a client for Service Quotas."""
        return self._client("service-quotas", region)

    def scheduler(self, region: str) -> Any:
        """Return a client for EventBridge Scheduler."""
        return self._client("scheduler", region)

    def sts(self, region: str) -> Any:
        """Return a client that says whose key it is."""
        return self._client("sts", region)

    def each(self, ask: Callable[[_A], _T], among: Iterable[_A]) -> list[_T]:
        """Ask side by side; the first error is raised when all have answered."""
        todo = list(among)
        if len(todo) == 1:
            return [ask(todo[0])]
        with ThreadPoolExecutor(max(1, min(len(todo), _AT_ONCE))) as pool:
            return list(pool.map(ask, todo))

    def _client(self, service: str, region: str, *, once: bool = False) -> Any:
        key = (service, region, once)
        with self._lock, said("AWS cannot be asked"):
            if key not in self._clients:
                self._clients[key] = self._made(service, region, once)
            return self._clients[key]

    def _made(self, service: str, region: str, once: bool) -> Any:
        from botocore.config import Config

        retries: Any = (
            {"mode": "standard", "total_max_attempts": 1}
            if once
            else {"mode": "adaptive", "total_max_attempts": self._patience.tries}
        )
        config = Config(
            user_agent=user_agent(),
            connect_timeout=self._patience.connect,
            read_timeout=self._patience.launch if once else self._patience.read,
            retries=retries,
            max_pool_connections=_AT_ONCE,
        )
        # A name of no region would become part of an address, keys and all.
        if not region.replace("-", "").isalnum():
            raise InvalidRequest(f"{region!r} is no AWS region; look at {REGIONS}.")
        ignored = self.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
        endpoint = None if ignored else self._first(_ENDPOINTS[service], "AWS_ENDPOINT_URL")
        session: Any = self._own_session()
        try:
            client = session.client(service, region, endpoint_url=endpoint, config=config)
        except ValueError as error:
            raise InvalidRequest(
                f"The address of AWS's {service} is malformed; look at AWS_ENDPOINT_URL."
            ) from error
        if service == "ec2":
            # First, for the signature that is made next is good for minutes only.
            client.meta.events.register_first(
                "request-created.ec2",
                lambda operation_name, **_: self._pace.wait(region, operation_name),
            )
        return client

    def _own_session(self) -> Any:
        if self._session is not None:
            return self._session
        import boto3
        import botocore.session

        halves = [name for name in _KEY if self.environ.get(name)]
        if len(halves) == 1:
            missing = next(name for name in _KEY if name not in halves)
            raise AuthFailed(f"{halves[0]} is set, and {missing} is not.")
        core = botocore.session.Session()
        core.register_component("data_loader", _models())
        for variable, names in _SESSION_VARIABLES.items():
            if value := self._first(*names):
                core.set_config_variable(variable, value)
        self._session = boto3.Session(
            botocore_session=core,
            aws_access_key_id=self.environ.get(_KEY[0]) or None,
            aws_secret_access_key=self.environ.get(_KEY[1]) or None,
            aws_session_token=self.environ.get("AWS_SESSION_TOKEN") or None,
        )
        return self._session

    def _own_region(self) -> str:
        with self._lock, said("AWS cannot be asked"):
            return self._own_session().region_name or _DEFAULT_REGION

    def _first(self, *names: str) -> str | None:
        return next((self.environ[name] for name in names if self.environ.get(name)), None)


@cache
def _models() -> Any:
    """Return what reads the SDK's descriptions of services: half a megabyte for EC2, read once."""
    from botocore.loaders import create_loader

    return create_loader()


def _holds_keys(file: Path) -> bool:
    if str(file) == os.devnull:
        return False
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return False
    words = ("aws_access_key_id", "sso_", "role_arn", "credential_process", "login_session")
    return any(word in text for word in words)
