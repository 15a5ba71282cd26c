"""Trains a reconstruction network: ``python scripts/train_mri.py --config configs/mri/... --out runs/...``."""

import sys

from sciml_monarch.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
