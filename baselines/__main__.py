"""`python -m baselines`."""

import sys

from baselines.cli import main

# Worker processes import this module, too.
if __name__ == "__main__":
    sys.exit(main())
