"""`python -m onecard` is the `onecard` command."""

import sys

from onecard.gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())
