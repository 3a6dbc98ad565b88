"""Moving files and trees to and from a machine; the wire format is in docs/transfer.md."""
