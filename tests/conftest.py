"""Settings of all tests.

Property tests try 50 examples each, and 300 with HYPOTHESIS_PROFILE=thorough. They
have no deadline of their own: on a busy computer it would tell about the computer.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
