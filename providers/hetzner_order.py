"""What a server is made from besides its type: an image and a key of the project."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
from typing import Any

from providers.base import Ambiguous, InvalidRequest, Order
from providers.hetzner_client import Api, part
from providers.hetzner_errors import Refusal

Json = dict[str, Any]
_ONE_AT_A_TIME = threading.Lock()


def image_id(api: Api, image: str, kind: str) -> int:
    """Return the id of an image for a server type. The same name is there for x86 and for arm.

    Args:
        image: the name of one of Hetzner's, or the number of any, a snapshot for instance.
        kind: the server type's name.

    Raises:
        InvalidRequest: there is no such image or type.
    """
    if image.isascii() and image.isdecimal():
        return int(image)
    if image.startswith("docker:") or "/" in image or ":" in image:
        raise InvalidRequest(
            f"{image!r} is a container image; Hetzner takes images of machines, such as "
            "ubuntu-24.04, or the number of a snapshot."
        )
    query = {"name": image, "architecture": _architecture(api, kind), "status": "available"}
    try:
        found = api.pages("images", query)
    except Refusal as refusal:
        raise refusal.error("the list of images", creating=True) from None
    if not found:
        raise InvalidRequest(
            f"Hetzner has no image {image!r} for a {kind} ({query['architecture']}). "
            "ubuntu-24.04 is one; a snapshot goes by its number."
        )
    return part(found[0], "id", int)


def ssh_key_id(api: Api, order: Order) -> int:
    """Return the id of the order's public key in the project, which gets it on first use.

    A server without a key would be given a root password. One key serves all machines of a
    GPUCTL_HOME and stays in the project: it costs nothing.

    Raises:
        InvalidRequest: the order has no key, or one that is malformed.
    """
    if order.ssh_public_key is None:
        raise InvalidRequest("A server at Hetzner is not made without an SSH key.")
    fingerprint = fingerprint_of(order.ssh_public_key)
    with _ONE_AT_A_TIME:
        known = _key_with(api, fingerprint)
        if known is not None:
            return known
        body = {
            "name": f"gpuctl-{fingerprint.replace(':', '')[:16]}",
            "public_key": order.ssh_public_key,
            "labels": {"gpuctl/owner": order.mark.owner},
        }
        try:
            return part(part(api.write("POST", "/ssh_keys", body), "ssh_key", dict), "id", int)
        except Refusal as refusal:
            known = _key_with(api, fingerprint) if refusal.code == "uniqueness_error" else None
            if known is None:
                raise refusal.error("our SSH key", creating=True) from None
            return known
        except Ambiguous:
            known = _key_with(api, fingerprint)
            if known is None:
                raise InvalidRequest(
                    "Hetzner did not take our SSH key; no server was asked for. Try again."
                ) from None
            return known


def fingerprint_of(public_key: str) -> str:
    """Return a key's MD5 fingerprint, as Hetzner has it. Raises InvalidRequest."""
    try:
        blob = base64.b64decode(public_key.split()[1], validate=True)
    except (IndexError, binascii.Error, ValueError):
        raise InvalidRequest("The SSH key is not a line of an authorized_keys file.") from None
    digest = hashlib.md5(blob, usedforsecurity=False).hexdigest()
    return ":".join(digest[start : start + 2] for start in range(0, len(digest), 2))


def _key_with(api: Api, fingerprint: str) -> int | None:
    """Look by the fingerprint: a key cannot be there twice, whatever its name."""
    try:
        found = api.pages("ssh_keys", {"fingerprint": fingerprint})
    except Refusal as refusal:
        raise refusal.error("the list of SSH keys", creating=True) from None
    return part(found[0], "id", int) if found else None


def _architecture(api: Api, kind: str) -> str:
    try:
        found = api.pages("server_types", {"name": kind})
    except Refusal as refusal:
        raise refusal.error("the list of server types", creating=True) from None
    if not found:
        raise InvalidRequest(f"Hetzner has no server type {kind!r}.")
    return part(found[0], "architecture", str)
