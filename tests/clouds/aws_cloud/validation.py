"""What EC2 refuses of a launch before it looks for room."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from tests.clouds.aws_cloud.market import SPOT
from tests.clouds.aws_cloud.wire import Refused

_USER_DATA_MAX = 16 << 10


def check(params: Mapping[str, str]) -> None:
    """Refuse combinations that EC2 does not take, whatever there is room for."""
    options = "InstanceMarketOptions.SpotOptions."
    if params.get("InstanceMarketOptions.MarketType") == SPOT:
        kind = params.get(options + "SpotInstanceType", "one-time")
        does = params.get(options + "InstanceInterruptionBehavior", "terminate")
        if kind == "persistent" and does == "terminate":
            raise Refused(
                "InvalidParameterCombination",
                "The request with type 'persistent' is not supported when "
                "instanceInterruptionBehavior is set to 'terminate'.",
            )
        if kind == "one-time" and does != "terminate":
            raise Refused(
                "InvalidParameterCombination",
                "The request with type 'one-time' is not supported when "
                f"instanceInterruptionBehavior is set to '{does}'.",
            )
        if kind == "one-time" and options + "ValidUntil" in params:
            raise Refused(
                "InvalidParameterCombination",
                "The parameter validUntil cannot be specified when the SpotRequestType is set to "
                "'one-time'",
            )
        if params.get("DisableApiTermination") == "true":
            raise Refused(
                "InvalidParameterCombination",
                "You cannot enable DisableApiTermination for a Spot Instance.",
            )
        bid_of(params)
    if params.get("NetworkInterface.2.DeviceIndex") and any(
        key.endswith("AssociatePublicIpAddress") for key in params
    ):
        raise Refused(
            "InvalidParameterCombination",
            "The associatePublicIPAddress parameter cannot be specified when launching with "
            "multiple network interfaces.",
        )
    if len(base64.b64decode(params.get("UserData", ""))) > _USER_DATA_MAX:
        raise Refused("InvalidParameterValue", "User data is limited to 16384 bytes")


def bid_of(params: Mapping[str, str]) -> Decimal | None:
    """What is paid at most; None for no limit. Raises Refused for what is no price."""
    text = params.get("InstanceMarketOptions.SpotOptions.MaxPrice")
    if text is None:
        return None
    try:
        bid = Decimal(text)
    except InvalidOperation:
        bid = Decimal(0)
    if bid <= Decimal("0.001"):
        raise Refused("InvalidParameterValue", f"Invalid value '{text}' for SpotPrice")
    return bid
