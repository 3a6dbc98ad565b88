"""What a create call may say."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tests.clouds.http_cloud import Reply
from tests.clouds.vastai_cloud import answers

LEAST_BID, MOST_BID = Decimal("0.001"), Decimal(128)
LEAST_DISK = 8
_LONGEST = {"label": 256, "image": 1024}
_LONGEST_ONSTART = 4048
_LONGEST_TEXTS = 4096  # args, args_str and onstart together
_LONGEST_ENV_KEY, _LONGEST_ENV = 256, 32768
_RUNTYPES = {
    *("", "ssh", "jupyter", "args", "ssh_proxy", "jupyter_proxy"),
    *("ssh_direct", "jupyter_direct", "ssh_direc", "jupyter_direc"),  # the client's spelling too
}


def wrong(body: Mapping[str, Any]) -> Reply | None:
    """What is wrong with a create call."""
    price = body.get("price")
    if price is not None and not LEAST_BID <= Decimal(str(price)) <= MOST_BID:
        return answers.failed(400, "invalid_price", "price must be between 0.001 and 128")
    for name, most in _LONGEST.items():
        if len(str(body.get(name) or "")) > most:
            return answers.failed(400, "invalid_args", f"{name} is longer than {most}")
    if len(str(body.get("onstart") or "")) > _LONGEST_ONSTART:
        return answers.failed(400, "invalid_args", "onstart is too long")
    if not (body.get("image") or body.get("template_hash_id")):
        return answers.failed(400, "invalid_args", "error 400/3467: Invalid args: image")
    if float(body.get("disk") or LEAST_DISK) < LEAST_DISK:
        return answers.failed(400, "invalid_args", "disk must be at least 8 GB")
    if not set(str(body.get("runtype") or "").split(" ")) <= _RUNTYPES:
        return answers.failed(400, "invalid_args", "runtype")
    texts = [str(body.get(name) or "") for name in ("args_str", "onstart")]
    texts += [str(one) for one in body.get("args") or ()]
    if sum(map(len, texts)) > _LONGEST_TEXTS:
        return answers.failed(400, "invalid_args", "args and onstart are too long together")
    env = body.get("env")
    pairs = [(str(k), str(v)) for k, v in env.items()] if isinstance(env, dict) else []
    too_long = any(len(key) > _LONGEST_ENV_KEY for key, _ in pairs)
    if too_long or sum(len(k) + len(v) for k, v in pairs) > _LONGEST_ENV:
        return answers.failed(400, "invalid_args", "env is too long")
    return None
