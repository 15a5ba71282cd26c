"""Compares reconstructed volumes with the truth: ``scripts/evaluate_mri.py PREDICTIONS... --target FOLDER``."""

import sys

from sciml_monarch.cli import call, guarded
from sciml_monarch.mri.evaluate import evaluate_mri

if __name__ == "__main__":
    raise SystemExit(guarded("evaluate_mri", lambda: call(evaluate_mri, sys.argv[1:], "predictions", "+")))
