"""Rolls a network out: ``scripts/predict_pde.py CHECKPOINT --input FILE --steps N --out FILE``."""

import sys

from sciml_monarch.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["predict", *sys.argv[1:]]))
