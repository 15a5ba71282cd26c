"""Files that are written whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sciml_monarch.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the body a temporary file beside ``path``, which takes its place if the body succeeds.

    The folder is made if it is absent. If the body fails, the temporary file is removed and ``path`` is what
    it was.

    Args:
        path: File to write or replace.

    Yields:
        The temporary file: empty, in the same folder, with the same suffix.

    Raises:
        InputError: The disk is full, or the folder cannot be written to.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)  # mkstemp's files are for the owner alone
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _USERS_TO_MEND:
            reason = os.strerror(error.errno or 0).lower()
            raise InputError(f"{path}: cannot be written ({reason}); nothing was left there") from error
        raise


_USERS_TO_MEND = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)
