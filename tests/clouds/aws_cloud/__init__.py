"""AWS, emulated: `AwsCloud` is an account, `main_settings` leads gpuctl to it."""

from tests.clouds.aws_cloud.cloud import AwsCloud, by_hand, main_settings

__all__ = ["AwsCloud", "by_hand", "main_settings"]
