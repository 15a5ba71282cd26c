"""BART's ``.cfl`` and ``.hdr``: complex64 in Fortran order, up to 16 axes, mapped into memory."""

import math
from pathlib import Path

import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.mri.formats.base import Layout, Scan
from sciml_monarch.mri.formats.npy import check_pattern, sampled_mask
from sciml_monarch.reading import reading

_N_AXES = 16
_READ, _PHASE_1, _PHASE_2, _COIL, _SETS, _ECHO, _SLICE = 0, 1, 2, 3, 4, 5, 13
_NAMES = {6: "coefficients", 8: "iterations", 10: "time", 11: "time 2", 12: "level", 14: "averages", 15: "batch"}
_ITEM = np.dtype(np.complex64).itemsize


class CflScan(Scan):
    """One echo of k-space written by BART: axes 0 readout, 1 phase encoding, 3 coil, 5 echo, 13 slice.

    Where the readout has one point (a hybrid scan, cut along the readout), axes 1 and 2 are the two
    phase encodings. Points that are zero in all coils of the first slice were not sampled, as BART itself
    understands them. Coil maps (axis 4: sets) come from ``<name>_maps.cfl`` beside the file or from ``maps``.

    Args:
        path: ``name.cfl``, ``name.hdr`` or the base name that BART's own commands take.
        echo: Echo, from 0.
        maps: Base name of coil maps; None: ``<name>_maps`` if it exists.

    Raises:
        InputError: A file is missing, its size is not what its header says, or it has axes that cannot be read.
    """

    def __init__(self, path: Path, echo: int = 0, maps: Path | None = None) -> None:
        base = cfl_base(path)
        self._file = _CflFile(base)
        dims = self._file.dims
        _check_axes(base, dims)
        if not 0 <= echo < dims[_ECHO]:
            raise InputError(f"{base}.cfl: echo {echo} of {dims[_ECHO]} (they count from 0)")
        self._echo = echo
        n_coils, ny, nx = self._file.slice(0, echo).shape[1:]
        if maps is None:
            beside = base.with_name(base.name + "_maps")
            maps = beside if bart_file(beside, ".cfl").exists() else None
        self._map_file = None if maps is None else _CflFile(cfl_base(maps))
        if self._map_file is not None:
            _check_maps(self._map_file, (n_coils, ny, nx), dims[_SLICE])
        layout = Layout(
            name=base.name + (f"_echo{echo + 1}" if dims[_ECHO] > 1 else ""),
            n_slices=dims[_SLICE],
            n_coils=n_coils,
            shape=(ny, nx),
            crop=(ny, nx),
            mask=sampled_mask(self._file.slice(0, echo)[0]),
        )
        super().__init__(bart_file(base, ".cfl"), layout)

    def close(self) -> None:
        """Does nothing: the files are mapped for the time of a read only."""

    def _kspace(self, index: int) -> np.ndarray:
        values = np.array(self._file.slice(index, self._echo)[0])
        check_pattern(self, values, index)
        return values

    def _maps(self, index: int) -> np.ndarray | None:
        if self._map_file is None:
            return None
        return self._map_file.slice(index if self._map_file.dims[_SLICE] > 1 else 0, 0)


def open_cfl(path: Path) -> list[CflScan]:
    """Opens the echoes of a pair of BART files.

    Args:
        path: ``name.cfl``, ``name.hdr`` or the base name.

    Returns:
        One scan an echo.

    Raises:
        InputError: As of :class:`CflScan`.
    """
    return [CflScan(path, echo) for echo in range(_CflFile(cfl_base(path)).dims[_ECHO])]


def cfl_base(path: Path) -> Path:
    """``folder/name`` of ``folder/name.cfl``, ``folder/name.hdr`` or ``folder/name``; in capitals or not."""
    return path.with_suffix("") if path.suffix.lower() in (".cfl", ".hdr") else path


def bart_file(base: Path, suffix: str) -> Path:
    """``folder/name.cfl`` of ``folder/name`` and ``.cfl``; where there is only ``name.CFL`` or the like, that one."""
    path = base.with_name(base.name + suffix)
    if not path.exists() and base.parent.is_dir():
        for other in sorted(base.parent.iterdir()):
            if other.stem == base.name and other.suffix.lower() == suffix:
                return other
    return path


class _CflFile:
    """Header and data of one array."""

    def __init__(self, base: Path) -> None:
        self.path = bart_file(base, ".cfl")
        header = bart_file(base, ".hdr")
        with reading(header, "the BART header"):
            lines = header.read_text().splitlines()
            sizes = lines[lines.index("# Dimensions") + 1].split() if "# Dimensions" in lines[:-1] else []
            dims = [int(size) for size in sizes]
        if not dims or min(dims) < 1 or len(dims) > _N_AXES:
            raise InputError(f"{header}: expected a line '# Dimensions' and up to {_N_AXES} sizes below it")
        self.dims = tuple(dims) + (1,) * (_N_AXES - len(dims))
        with reading(self.path, "the BART data"):
            size = self.path.stat().st_size
        if size != math.prod(dims) * _ITEM:
            raise InputError(
                f"{self.path}: {size} bytes, but {header.name} says {' x '.join(map(str, dims))} complex64 = "
                f"{math.prod(dims) * _ITEM} bytes; copy both files again"
            )

    def slice(self, index: int, echo: int) -> np.ndarray:
        """Maps ``(set, coil, y, x)`` of one slice and echo."""
        with reading(self.path, "the BART data"):
            array = np.memmap(self.path, dtype="<c8", mode="r", shape=self.dims, order="F")
        place: list[int | slice] = [slice(None)] * 5 + [0] * (_N_AXES - 5)
        place[_ECHO], place[_SLICE] = echo, index
        values = np.asarray(array[tuple(place)])  # read, phase 1, phase 2, coil, set
        values = values[0] if self.dims[_READ] == 1 else values[:, :, 0]
        return values.transpose(3, 2, 0, 1)


def _check_axes(base: Path, dims: tuple[int, ...]) -> None:
    file = bart_file(base, ".cfl")
    if dims[_READ] > 1 and dims[_PHASE_2] > 1:
        raise InputError(
            f"{file}: three-dimensional k-space {dims[:3]}; transform one axis and make it the slices: "
            "'bart fft -i -u 4 in tmp; bart transpose 2 13 tmp out'"
        )
    allowed = {_READ, _PHASE_1, _PHASE_2, _COIL, _ECHO, _SLICE}
    wrong = [axis for axis, n in enumerate(dims) if n > 1 and axis not in allowed]
    if wrong:
        axis = wrong[0]
        raise InputError(
            f"{file}: axis {axis} ({_NAMES.get(axis, 'sets of maps' if axis == _SETS else 'other')}) has {dims[axis]} "
            f"entries, which k-space must not have; take one of them with 'bart slice {axis} 0 in out'"
        )


def _check_maps(file: _CflFile, shape: tuple[int, int, int], n_slices: int) -> None:
    found = file.slice(0, 0).shape
    if found[1:] != shape or file.dims[_SLICE] not in (1, n_slices):
        raise InputError(
            f"{file.path}: coil maps (set, coil, y, x) {found} of {file.dims[_SLICE]} slices do not fit k-space "
            f"{shape} of {n_slices} slices"
        )
