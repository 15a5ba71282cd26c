"""Reconstructs scans: ``python scripts/reconstruct_mri.py SCAN... --checkpoint ... --out DIR``."""

import sys

from sciml_monarch.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["reconstruct", *sys.argv[1:]]))
