"""Compares trained networks on unseen trajectories: ``scripts/evaluate_pde.py CHECKPOINT... --data DATA``."""

import sys

from sciml_monarch.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
