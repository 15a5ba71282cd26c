"""MATLAB's order turned around: arrays whose trajectories are scattered over the whole file, copied once.

MATLAB stores the first index fastest, so that in ``u`` (N, x, y, t) the values of one trajectory lie ``N``
values apart: reading one of them from disk touches every page of the file. Such arrays are streamed once, a
block at a time, into a temporary file in which each trajectory is contiguous. The file has no name (it is
gone with the process, even when that is killed). It lies in the folder for temporary files, which the
environment variable ``TMPDIR`` sets.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sciml_monarch.errors import InputError

Block = tuple[int, int, np.ndarray]  # first row, first sample, values (rows, samples)
BLOCK_BYTES = 8 * 2**20


class SampleMajor:
    """A matrix (rows, samples) of a file, kept as float32 (samples, rows) in an unnamed temporary file.

    Args:
        n_samples: Number of samples (trajectories).
        n_rows: Values of a sample.
        blocks: Blocks that cover the matrix.
        source: The file that they come from, for messages.

    Raises:
        InputError: There is no room for the temporary file.
    """

    def __init__(self, n_samples: int, n_rows: int, blocks: Iterator[Block], source: Path) -> None:
        self._n_rows = n_rows
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this object
        try:
            self._copy(n_samples, blocks)
        except OSError as error:
            self._file.close()
            if error.errno != errno.ENOSPC:
                raise
            needed = n_samples * n_rows * 4 / 2**20
            raise InputError(
                f"{source}: no room in {tempfile.gettempdir()} for the {needed:.0f} MiB into "
                "which the file is "
                "unpacked; set TMPDIR to a larger folder"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def _copy(self, n_samples: int, blocks: Iterator[Block]) -> None:
        descriptor = self._file.fileno()
        for first_row, first_sample, values in blocks:
            with np.errstate(over="ignore", invalid="ignore"):  # the reader reports values that are not finite
                block = np.ascontiguousarray(values.T, dtype=np.float32)
            for offset, sample in enumerate(block):
                _write(descriptor, sample, ((first_sample + offset) * self._n_rows + first_row) * 4)
        os.ftruncate(descriptor, n_samples * self._n_rows * 4)

    def read(self, sample: int, start: int, stop: int) -> np.ndarray:
        """Returns the values ``start`` to ``stop - 1`` of one sample, float32."""
        values = np.empty(stop - start, dtype=np.float32)
        view = values.view(np.uint8).data
        position = (sample * self._n_rows + start) * 4
        while view:
            # Positional reads: a forked worker shares the descriptor, and with it any file position.
            n_read = os.preadv(self._file.fileno(), [view], position)
            if n_read == 0:
                raise EOFError("the temporary copy ends too early")
            view, position = view[n_read:], position + n_read
        return values

    def close(self) -> None:
        """Gives the temporary file back."""
        self._file.close()


def _write(descriptor: int, values: np.ndarray, position: int) -> None:
    view = values.view(np.uint8).data
    while view:
        n_written = os.pwrite(descriptor, view, position)
        view, position = view[n_written:], position + n_written
