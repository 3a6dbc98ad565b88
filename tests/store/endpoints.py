"""The settings of somebody whose store is on an S3 endpoint of the test's own."""

from __future__ import annotations

import os

SECRET = "the-secret-key-of-the-test"


def settings(endpoint: str) -> dict[str, str]:
    """The environment of somebody who uses that endpoint."""
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIATESTONLY",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "3",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
