"""`python -m estune` is the command `estune`."""

import sys

from estune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
