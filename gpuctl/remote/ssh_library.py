"""paramiko, imported without what only its reader of ~/.ssh/config needs.

`paramiko.config` imports invoke for `Match exec` lines, and invoke asyncio and unittest: 50 of
110 ms, on every command that reaches a machine. That file is read by the system's ssh here, never
by paramiko, which has a way to do without invoke. Whoever imported either before keeps it whole.
"""

import sys

if "paramiko" not in sys.modules and "invoke" not in sys.modules:
    sys.modules["invoke"] = None  # type: ignore[assignment]  # its import fails at once
    try:
        import paramiko
    finally:
        del sys.modules["invoke"]
else:
    import paramiko

__all__ = ["paramiko"]
