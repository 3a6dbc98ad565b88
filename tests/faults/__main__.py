"""`python -m tests.faults`: see `matrix`."""

from tests.faults.matrix import main

if __name__ == "__main__":
    main()
