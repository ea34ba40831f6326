"""`python -m estune` is the command `estune`."""

import sys

# Python puts the working folder first with -m; last, as for the command, nothing in it can shadow a package.
sys.path.append(sys.path.pop(0))

from estune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
