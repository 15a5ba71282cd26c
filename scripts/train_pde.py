"""Train a neural operator: ``python scripts/train_pde.py --config configs/... --out runs/...``."""

import sys

from sciml_monarch.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
