"""Makes a semi-synthetic scan in fastMRI's format: ``scripts/make_semisynthetic_mri.py --out FILE.h5``."""

import sys

from sciml_monarch.cli import call, guarded
from sciml_monarch.mri.semisynthetic import make_semisynthetic

if __name__ == "__main__":
    raise SystemExit(guarded("make_semisynthetic_mri", lambda: call(make_semisynthetic, sys.argv[1:])))
