"""`python -m fastrl.cli` is `fastrl`."""

import sys

from fastrl.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
