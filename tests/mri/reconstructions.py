"""The job reconstruct from the command line, and the files that it leaves."""

from sciml_monarch.cli import main
from sciml_monarch.mri.description import Description

DESCRIPTION = Description(((48, 32),), (4,), {}, 3.0, {"source": "file"}, "reference", 1, 1)
QUICK = ["--method", "zero_filled_rss", "--nifti", "false"]


def run(*arguments):
    return main(["reconstruct", *map(str, arguments), "--device", "cpu"])


def files(folder):
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []
