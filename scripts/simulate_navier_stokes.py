"""Makes a Navier–Stokes data set; ``--help`` shows the options."""

import sys

from sciml_monarch.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["simulate", *sys.argv[1:]]))
