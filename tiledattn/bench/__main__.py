"""`python -m tiledattn.bench`, which is `tiledattn bench` without the command line's packages."""

from __future__ import annotations

import sys

from .app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
