"""``python -m benchmarks``: what is fast, on this machine, held to float64 before it is timed."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
