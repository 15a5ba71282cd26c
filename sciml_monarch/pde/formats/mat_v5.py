"""MATLAB v5 files (also called v6 and v7) read as a stream, so that no array is ever in memory as a whole.

The format is described in MathWorks' "MAT-File Format" (R2020b): a header of 128 bytes, then elements of a
tag (type, number of bytes) and data; a compressed element holds one zlib stream of one array.
``scipy.io.loadmat`` reads whole arrays only; the tests compare with it.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.pde.formats.sample_major import BLOCK_BYTES, Block
from sciml_monarch.reading import reading

_COMPRESSED, _MATRIX = 15, 14
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single, (u)int8 ... (u)int64
_READ = 2**18


def is_mat_v5(path: Path) -> bool:
    """Whether the header of 128 bytes is that of MATLAB v5."""
    with path.open("rb") as file:
        header = file.read(128)
    return len(header) == 128 and header[124:128] in (b"\x00\x01IM", b"\x01\x00MI")


@dataclass(frozen=True)
class Variable:
    """One array of a file.

    Attributes:
        name: Its name in MATLAB.
        shape: Its sizes, the fastest index first, as MATLAB shows them.
        dtype: Type in which the values are stored; it may be narrower than the array's class.
        offset: Position of its element in the file.
        n_bytes: Size of that element.
        problem: Why it cannot be read as real numbers; empty if it can.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    n_bytes: int
    problem: str = ""


def list_variables(path: Path) -> dict[str, Variable]:
    """Reads the headers of all arrays.

    Raises:
        InputError: The file is truncated or damaged.
    """
    variables = {}
    with reading(path, "the headers of the MATLAB v5 arrays"), path.open("rb") as file:
        size = path.stat().st_size
        order = "<" if file.read(128)[126:] == b"IM" else ">"
        position = 128
        while position < size:
            if size - position < 8:
                raise InputError(
                    f"{path}: the MATLAB v5 file is truncated at byte {size}, inside the header of an array"
                )
            file.seek(position)
            kind, n_bytes = struct.unpack(f"{order}II", file.read(8))
            if kind not in (_COMPRESSED, _MATRIX):
                raise InputError(f"{path}: element of type {kind} at byte {position}, an array (14 or 15) was expected")
            found = _variable(_Stream(file, position, order), position, n_bytes)
            if size - position - 8 < n_bytes:
                raise InputError(
                    f"{path}: the MATLAB v5 file is truncated: array '{found.name}' "
                    f"{found.shape} ends at byte "
                    f"{position + 8 + n_bytes}, the file has {size} bytes; copy it again"
                )
            variables[found.name] = found
            position += 8 + n_bytes
    return variables


def stream(path: Path, variable: Variable, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yields an array (N, ...) as blocks of the matrix (product of the other sizes, N), from front to end.

    Raises:
        InputError: The file is damaged.
    """
    n_samples, n_rows = variable.shape[0], int(np.prod(variable.shape[1:]))
    with reading(path, f"array '{variable.name}'"), path.open("rb") as file:
        order = "<" if file.read(128)[126:] == b"IM" else ">"
        dtype = np.dtype(order + variable.dtype)
        elements = _Stream(file, variable.offset, order)
        _header(elements)
        _, n_bytes = elements.tag()
        if n_bytes != n_samples * n_rows * dtype.itemsize:
            raise InputError(
                f"{path}: array '{variable.name}' {variable.shape} has {n_bytes} bytes of data, expected "
                f"{n_samples * n_rows * dtype.itemsize}"
            )
        rows = max(1, block_bytes // (n_samples * dtype.itemsize))
        for first in range(0, n_rows, rows):
            count = min(rows, n_rows - first)
            values = np.frombuffer(elements.take(count * n_samples * dtype.itemsize), dtype=dtype)
            yield first, 0, values.reshape(count, n_samples)
        elements.finish()


class _Stream:
    """The content of one element, unpacked on the way if it is compressed."""

    def __init__(self, file: BinaryIO, offset: int, order: str) -> None:
        self._file, self._order = file, order
        file.seek(offset)
        kind, self._left = struct.unpack(f"{order}II", file.read(8))
        self._packed = b""
        self._zlib = zlib.decompressobj() if kind == _COMPRESSED else None
        self._inline = b""
        if self._zlib is not None:
            self.take(8)  # the tag of the array inside

    def tag(self) -> tuple[int, int]:
        """Returns type and size of the next sub-element; small ones carry up to four bytes in their tag."""
        head = self.take(8)
        first, n_bytes = struct.unpack(f"{self._order}II", head)
        self._inline = b""
        if first >> 16:
            self._inline, n_bytes, first = bytes(head[4:]), first >> 16, first & 0xFFFF
        return first, n_bytes

    def element(self) -> tuple[int, bytes]:
        """Returns type and data of the next sub-element, which must be small (a header, not the values)."""
        kind, n_bytes = self.tag()
        if self._inline:
            return kind, bytes(self.take(n_bytes))
        if n_bytes > 2**16:
            raise ValueError(f"a header of {n_bytes} bytes")
        return kind, bytes(self.take(n_bytes + -n_bytes % 8))[:n_bytes]

    def take(self, n_bytes: int) -> bytearray:
        """Returns the next bytes; after the tag of a small sub-element, those in the tag."""
        if self._inline:
            content, self._inline = bytearray(self._inline[:n_bytes]), b""
            return content
        content = bytearray(n_bytes)
        done = 0
        while done < n_bytes:
            piece = self._next(n_bytes - done)
            if not piece:
                raise EOFError(f"the data end {n_bytes - done} bytes too early")
            content[done : done + len(piece)] = piece
            done += len(piece)
        return content

    def finish(self) -> None:
        """Checks the check sum at the end of a compressed element."""
        if self._zlib is not None:
            while self._next(_READ):
                pass
            if not self._zlib.eof:
                raise EOFError("the compressed data end too early")

    def _next(self, at_most: int) -> bytes:
        if self._zlib is None:
            return self._raw(min(at_most, _READ))
        while not self._zlib.eof:
            packed = self._packed or self._raw(_READ)
            piece = self._zlib.decompress(packed, min(at_most, _READ))
            self._packed = self._zlib.unconsumed_tail
            if piece or not packed:
                return piece
        return b""

    def _raw(self, at_most: int) -> bytes:
        piece = self._file.read(min(at_most, self._left))
        self._left -= len(piece)
        return piece


def _header(elements: _Stream) -> tuple[int, bool, tuple[int, ...], str]:
    """Reads class, whether complex, sizes and name, and leaves the stream in front of the values."""
    _, flags = elements.element()
    word = int.from_bytes(flags[:4], "little" if elements._order == "<" else "big")
    _, sizes = elements.element()
    _, name = elements.element()
    shape = tuple(int(n) for n in np.frombuffer(sizes, dtype=elements._order + "i4"))
    return word & 0xFF, bool(word & 0x800), shape, name.decode("latin-1")


def _variable(elements: _Stream, offset: int, n_bytes: int) -> Variable:
    matlab_class, is_complex, shape, name = _header(elements)
    if matlab_class not in _NUMERIC_CLASSES:
        return Variable(name, shape, "", offset, n_bytes, "is no array of numbers")
    if is_complex:
        return Variable(name, shape, "", offset, n_bytes, "is complex")
    kind, _ = elements.tag()
    return Variable(name, shape, _NUMBERS[kind], offset, n_bytes)
