"""`python -m autocompress` is the same as `autocompress`."""

import sys

from autocompress.cli import main

if __name__ == "__main__":
    sys.exit(main())
