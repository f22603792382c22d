"""`python -m studies`."""

import sys

from studies.cli import main

# The processes of the cells import this module, too.
if __name__ == "__main__":
    sys.exit(main())
