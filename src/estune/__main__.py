"""`python -m estune` is the command `estune`."""

import sys

# Python -m puts the working folder first. Put it last, so that nothing in it shadows a package.
sys.path.append(sys.path.pop(0))

from estune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
