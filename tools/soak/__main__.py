"""python -m xtree.tools.soak: an index at work, killed, reopened and checked, from a checkout (make soak)."""

import sys

from xtree.tools.soak.run import main

if __name__ == "__main__":
    sys.exit(main())
