"""The single stdlib-only file that is sent to a machine, and its protocol."""
