"""A proxy command for tests."""

from __future__ import annotations

# Joins stdin and stdout with a port, as `ssh -W` and `nc` do. Notes its number, so that it can be
# looked for afterwards.
JOIN = """
import os, select, socket, sys
port, note, words = int(sys.argv[1]), sys.argv[2], sys.argv[3]
open(note, "a").write(f"{os.getpid()}\\n")
sys.stderr.write(words)
sys.stderr.flush()
far = socket.create_connection(("127.0.0.1", port))
while True:
    for ready in select.select([0, far], [], [])[0]:
        data = os.read(0, 65536) if ready == 0 else far.recv(65536)
        if not data:
            sys.exit(0)
        far.sendall(data) if ready == 0 else os.write(1, data)
"""
