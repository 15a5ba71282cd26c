"""Files that are written whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sciml_monarch.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the body a temporary file beside ``path``, which takes its place if the body succeeds.

    The folder is made if it is absent. If the body fails, the temporary file is removed and ``path`` is what
    it was. Who may read the file is up to the umask, as for any new file.

    Args:
        path: File to write or replace.

    Yields:
        The temporary file: empty, hidden, in the same folder; its name ends in that of ``path``.

    Raises:
        InputError: The disk is full, or the folder is gone or cannot be written to.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the umask takes from these rights
        made = True
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        if made:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and _is_users_to_mend(error, path):
            reason = os.strerror(error.errno or 0).lower()
            raise InputError(f"{path}: cannot be written ({reason}); nothing was left there") from error
        raise


@contextmanager
def replacing_all(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """As :func:`replacing` for files that belong together: none is replaced before all are written.

    Args:
        paths: Files to write or replace; the first is the last to take its place.

    Yields:
        A temporary file for each.

    Raises:
        InputError: As :func:`replacing`; messages of the body name the files and not the temporary ones.
    """
    with ExitStack() as stack:
        temporaries = [stack.enter_context(replacing(path)) for path in paths]
        try:
            yield temporaries
        except InputError as error:
            text = str(error)
            for temporary, path in zip(temporaries, paths, strict=True):
                text = text.replace(temporary.name, path.name)
            raise InputError(text) from error


def check_writable(folder: Path) -> None:
    """Checks, by trying, that files can be written to a folder, and leaves nothing behind.

    Args:
        folder: The folder; it need not exist.

    Raises:
        InputError: It cannot be made or written to.
    """
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with replacing(folder / ".trial") as temporary:
            temporary.write_bytes(b"trial")
        (folder / ".trial").unlink()
    except InputError as error:
        reason = os.strerror(getattr(error.__cause__, "errno", 0)).lower()
        raise InputError(f"{folder}: nothing can be written there ({reason}); give another --out") from None
    finally:
        with suppress(OSError):  # of a folder that another program fills meanwhile, or that was never made
            for place in absent:  # the deepest first
                place.rmdir()


_USERS_TO_MEND = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


def _is_users_to_mend(error: OSError, path: Path) -> bool:
    # a file that is absent may be one that the body reads; only an absent folder is the place of ``path``
    return error.errno in _USERS_TO_MEND or (error.errno == errno.ENOENT and not path.parent.is_dir())
