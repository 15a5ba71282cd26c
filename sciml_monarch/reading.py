"""What readers of all kinds of files have in common: errors that name file and place."""

import pickle
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sciml_monarch.errors import InputError

Attribute = float | int | str | bool
"""What a file says about itself besides its data."""


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a library raises on a wrong or damaged file into one line that names file and data set.

    Raises:
        InputError: The body raised an error of input, format or decompression.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file or folder") from None
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        EOFError,
        zlib.error,
        struct.error,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot read {what}, the file is damaged or of another kind: {reason}") from error


def missing(path: Path, expected: str, available: list[str]) -> InputError:
    """Error for a key that a file lacks; lists at most twelve of those that it has."""
    shown = ", ".join(available[:12]) + (", ..." if len(available) > 12 else "")
    return InputError(f"{path}: expected {expected}; the file holds: {shown or 'nothing'}")
