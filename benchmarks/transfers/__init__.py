"""What `benchmarks/transfer.py` moves, and with which other tools."""
