"""``python -m gpuctl``: the same as the console script."""

import sys
from pathlib import Path

# With -m Python looks in the working directory first, and a user's folder called `providers`
# must not take the place of ours. Unless this is our own source tree, or -P was given.
if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parent.parent:
    del sys.path[0]

from gpuctl.cli.entry import main

if __name__ == "__main__":
    main()
