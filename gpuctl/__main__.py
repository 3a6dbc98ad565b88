"""``python -m gpuctl``: the same as the console script."""

from gpuctl.cli.entry import main

if __name__ == "__main__":
    main()
