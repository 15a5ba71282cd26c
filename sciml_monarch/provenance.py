"""Where a measured figure comes from: what every file in ``results/`` carries."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from sciml_monarch.devices import device_name
from sciml_monarch.version import version


def provenance(device: torch.device) -> dict[str, str | None]:
    """Command, commit, versions and hardware of the running program.

    Args:
        device: What the figures are measured on.

    Returns:
        ``command``: the program's name and arguments, without the folder that it lies in; ``commit``: of the source
        tree that the package runs from, ``+changes`` behind it where files differ from it or modules of the package
        are not in it; where the package is in no history, the environment variable ``SCIML_MONARCH_COMMIT``, else
        ``None``; ``version`` of the package; ``python``; ``torch``; ``device`` as in
        :func:`~sciml_monarch.devices.device_name`.
    """
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(Path(__file__)),
        "version": version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
    }


def _commit(file: Path) -> str | None:
    """The commit of the history that a module is in, which lies in the top folder of its package."""
    folder = file.parent
    try:
        _git(folder, "ls-files", "--error-unmatch", file.name)  # else it merely lies in a folder of some repository
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
        new = _git(folder, "ls-files", "--others", "--exclude-standard", "--", "*.py")
        return commit + "+changes" * bool(changes or new)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("SCIML_MONARCH_COMMIT")


def _git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return found.stdout.strip()
