"""What can go wrong at an emulated cloud, by one name for all of them.

A strike sets it going and returns what lifts it again; what strikes single requests passes by
itself.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.clouds.aws_cloud.wire import refusal, throttled
from tests.clouds.hetzner_cloud.errors import DRAINED, UNAUTHORIZED, ApiError
from tests.clouds.http_cloud import Fault, Reply, Request
from tests.clouds.runpod_cloud.cloud import problem
from tests.clouds.vastai_cloud import answers
from tests.waiting import until

Strike = Callable[[], Callable[[], None]]

_LAG_SECONDS = 0.8  # below the settling period of the matrix
_DENIED_SECONDS = 1.7  # above it, and below the time in which a cloud must show what it has made
_HANG_SECONDS = 3.0
SLOW_SECONDS = 6.0  # longer than two looks a settling period apart


class Calls(NamedTuple):
    """The requests of one cloud: (method, path) each, and how it says no."""

    create: tuple[str, str]
    list: tuple[str, str]
    destroy: tuple[str, str]
    absent: Reply
    too_many: Reply
    refused: Reply  # the key
    failed: Reply = Reply(500, {"error": "internal error"})


_CALLS: Mapping[str, Callable[[Any], Calls]] = {
    "vastai": lambda cloud: Calls(
        ("PUT", r"^/api/v0/asks/\d+"),
        ("GET", r"^/api/v1/instances/?$"),
        ("DELETE", r"^/api/v0/instances/\d+"),
        answers.no_instance("1"),
        answers.too_many(cloud.switches, 1.0),
        answers.failed(401, "auth_error", "Invalid user key"),
    ),
    "aws": lambda _: Calls(
        ("", "/RunInstances$"),
        ("", "/DescribeInstances$"),
        ("", "/TerminateInstances$"),
        refusal("InvalidInstanceID.NotFound", "The instance ID 'i-0' does not exist"),
        throttled(),
        refusal("AuthFailure", "AWS was not able to validate the provided access credentials"),
        refusal("InternalError", "An internal error has occurred"),
    ),
    "hetzner": lambda _: Calls(
        ("POST", r"/servers$"),
        ("GET", r"/servers$"),
        ("DELETE", r"/servers/\d+$"),
        ApiError(404, "not_found", "server not found").reply(),
        DRAINED.reply(),
        UNAUTHORIZED.reply(),
    ),
    "runpod": lambda _: Calls(
        ("POST", r"^/v2/pods$"),
        ("GET", r"^/v2/pods$"),
        ("DELETE", r"^/v2/pods/[^/]+$"),
        problem(404, "pod not found"),
        problem(429, "rate limit exceeded for the minute window"),
        problem(401, "invalid bearer token"),
    ),
}


def strikes_of(provider: str, cloud: Any) -> dict[str, Strike]:
    """Return every strike that a cloud has, by name."""
    calls = _CALLS[provider](cloud)
    create, listing, destroy = calls.create, calls.list, calls.destroy

    def fault(where: tuple[str, str], **how: Any) -> Strike:
        return lambda: _set_fault(cloud, Fault(method=where[0], path=where[1], **how))

    def answers_with(where: tuple[str, str], reply: Reply, **how: Any) -> Strike:
        return fault(where, how="answer", reply=reply, **how)

    made = {
        "create 5xx before": answers_with(create, calls.failed),
        "create 5xx after": answers_with(create, calls.failed, when="after"),
        "create reply lost": fault(create, when="after", how="drop"),
        "create hangs": fault(create, when="after", how="hang", seconds=_HANG_SECONDS),
        "create 429": answers_with(create, calls.too_many),
        "list 5xx": answers_with(listing, calls.failed, times=4),
        "list hangs": fault(listing, how="hang", seconds=_HANG_SECONDS),
        "destroy 404 while alive": answers_with(destroy, calls.absent),
        "destroy 5xx": answers_with(destroy, calls.failed, times=None),
        "destroy reply lost": fault(destroy, when="after", how="drop"),
        "all 429": answers_with(("", ""), calls.too_many, times=6),
        "key revoked": answers_with(("", ""), calls.refused, times=None),
    }
    return {**made, "create slow": _slow(cloud, create), **_OWN[provider](cloud)}


def _set_fault(cloud: Any, fault: Fault) -> Callable[[], None]:
    with cloud.lock:
        cloud.faults.append(fault)

    def lift() -> None:
        with cloud.lock:
            if fault in cloud.faults:
                cloud.faults.remove(fault)

    return lift


def _slow(cloud: Any, create: tuple[str, str]) -> Strike:
    """A create takes its time at the cloud, and takes effect whether or not its caller waits."""
    method, path = create
    action = path.strip("/$")

    def strike() -> Callable[[], None]:
        served = cloud.serve

        def serve(request: Request) -> Reply | None:
            said = f"/{action}" if f"Action={action}&".encode() in request.body + b"&" else ""
            if request.method == (method or "POST") and re.search(path, said or request.path):
                threading.Event().wait(SLOW_SECONDS)
            answer = served(request)
            assert answer is None or isinstance(answer, Reply)
            return answer

        cloud.serve = serve
        return lambda: setattr(cloud, "serve", served)

    return strike


def _setting(owner: Any, name: str, value: Any) -> Strike:
    def strike() -> Callable[[], None]:
        before = getattr(owner, name)
        setattr(owner, name, value)
        return lambda: setattr(owner, name, before)

    return strike


def _all_of(*strikes: Strike) -> Strike:
    def strike() -> Callable[[], None]:
        lifts = [one() for one in strikes]

        def lift() -> None:
            for each in lifts:
                each()

        return lift

    return strike


def _vanishing(machines: Callable[[], list[Any]]) -> Strike:
    """The first machine that answers falls silent; its cloud goes on saying that it runs."""

    def strike() -> Callable[[], None]:
        over = threading.Event()

        def watch() -> None:
            until(lambda: over.is_set() or machines(), 60, every=0.1)
            if not over.wait(1.0):
                for rented in machines():
                    rented.partition()

        threading.Thread(target=watch, daemon=True).start()
        return over.set

    return strike


def _up(rented: Any) -> bool:
    return bool(rented is not None and rented.alive and (rented.folder / "log").exists())


def _vastai(cloud: Any) -> dict[str, Strike]:
    def machines() -> list[Any]:
        return [one.machine for one in list(cloud.contracts.all.values()) if _up(one.machine)]

    return {
        "list lag": _setting(cloud.switches.times, "list_lag", _LAG_SECONDS),
        "new machine denied": _all_of(
            _setting(cloud.switches.times, "list_lag", _DENIED_SECONDS),
            _setting(cloud.switches, "lag_hides_from_destroy", True),
        ),
        "partial list": _setting(cloud.switches, "list_short", 3),
        "empty list": _setting(cloud.switches, "list_lies_empty", 1),
        "destroy ignored": _setting(cloud.switches, "destroy_ignored", 1),
        "never ready": _setting(cloud.switches, "stuck_in", "loading"),
        "host vanished": _vanishing(machines),
    }


def _aws(cloud: Any) -> dict[str, Strike]:
    def machines() -> list[Any]:
        found = [one.machine for one in list(cloud.rentals.all.values()) if one.machine]
        return [one.rented for one in found if _up(one.rented)]

    return {
        "list lag": _setting(cloud.rentals.times, "unseen", _LAG_SECONDS),
        "new machine denied": _setting(cloud.rentals.times, "unseen", _DENIED_SECONDS),
        "never ready": _setting(cloud, "ssh_seconds", 600.0),
        "host vanished": _vanishing(machines),
    }


def _hetzner(cloud: Any) -> dict[str, Strike]:
    def machines() -> list[Any]:
        found = [one.machine for one in list(cloud.project.servers.values()) if one.machine]
        return [one.rented for one in found if _up(one.rented)]

    return {
        "list lag": _setting(cloud.switches, "list_lag_s", _LAG_SECONDS),
        "partial list": _setting(cloud.switches, "partial_list", True),
        "addresses stay": _setting(cloud.switches, "auto_delete_false", True),
        "never ready": _setting(cloud.switches, "ssh_refused_for", 600.0),
        "host vanished": _vanishing(machines),
    }


def _runpod(cloud: Any) -> dict[str, Strike]:
    def machines() -> list[Any]:
        found = [one.host for one in list(cloud.account.pods.values()) if one.host]
        return [one.rented for one in found if _up(one.rented)]

    return {
        "list lag": _setting(cloud.switches, "list_lag_s", _LAG_SECONDS),
        "new machine denied": _all_of(
            _setting(cloud.switches, "list_lag_s", _DENIED_SECONDS),
            _setting(cloud.switches, "get_404_for_s", _DENIED_SECONDS),
        ),
        "partial list": _setting(cloud.switches, "partial_list", 3),
        "destroy ignored": _setting(cloud.switches, "delete_404_but_alive", 1),
        "never ready": _setting(cloud.switches, "never_ready", 1),
        "host vanished": _vanishing(machines),
    }


_OWN: Mapping[str, Callable[[Any], dict[str, Strike]]] = {
    "vastai": _vastai,
    "aws": _aws,
    "hetzner": _hetzner,
    "runpod": _runpod,
}
