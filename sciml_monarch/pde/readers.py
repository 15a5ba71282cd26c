"""Opens data of the field's own formats; which format a file has is seen from its content, not from its name.

================================  =========================  ==============================
format                            ``open_trajectories``      ``open_pairs``
================================  =========================  ==============================
The Well's HDF5 (simulations)     all fields, or one         --
folder of such files              numbered through           --
FNO authors' ``.mat`` v5, v7.3    ``u`` (N, x, y, t)         ``coeff``/``sol``, ``a``/``u``
neuraloperator ``.pt``            Burgers ``y`` (N, T, x)    ``x``/``y``
PDEBench HDF5                     all its layouts            Darcy ``nu``/``tensor``
NumPy ``.npy``                    (T, x, y), (N, T, x, y)    --
================================  =========================  ==============================
"""

from pathlib import Path

from sciml_monarch.errors import InputError
from sciml_monarch.hdf5 import Hdf5File, has_hdf5_signature
from sciml_monarch.pde.formats.base import Pairs, Trajectories
from sciml_monarch.pde.formats.fno_mat import MatPairs, MatTrajectories, is_mat_v73
from sciml_monarch.pde.formats.folder import Folder
from sciml_monarch.pde.formats.mat_v5 import is_mat_v5
from sciml_monarch.pde.formats.neuralop_pt import TensorPairs, TensorTrajectories
from sciml_monarch.pde.formats.npy import NpyTrajectories
from sciml_monarch.pde.formats.pdebench import (
    PDEBenchGroups,
    PDEBenchPairs,
    PDEBenchTrajectories,
    is_pdebench,
)
from sciml_monarch.pde.formats.well import GROUPS, WellTrajectories
from sciml_monarch.reading import reading

__all__ = ["Pairs", "Trajectories", "open_pairs", "open_trajectories"]

_SHARDS = (".hdf5", ".h5")
_PARTIAL = ".partial"


def open_trajectories(path: str | Path, field: str | None = None) -> Trajectories:
    """Opens trajectories without reading any of them.

    Args:
        path: A file, or a folder whose ``.hdf5`` and ``.h5`` files are one data set, in the order of their
            names. Files that a simulation has not finished (``.partial``) are left out.
        field: Read this field only; by default all fields, as channels.

    Returns:
        A lazy, picklable source of windows ``(time, channel, *grid)``.

    Raises:
        InputError: The file is missing, empty, damaged or of another kind, lacks ``field``, or the files of
            the folder do not belong together.
    """
    path = Path(path)
    return _open_folder(path, field) if path.is_dir() else _open_file(path, field)


def open_pairs(path: str | Path, keys: tuple[str, str] | None = None) -> Pairs:
    """Opens pairs of input and target fields without reading any of them.

    Args:
        path: A neuraloperator ``.pt``, FNO ``.mat`` or PDEBench Darcy file.
        keys: Names of input and target in a ``.pt`` or ``.mat`` file; by default the usual ones.

    Returns:
        A lazy, picklable source of pairs ``(c, *grid)``, ``(c', *grid)``.

    Raises:
        InputError: The file is missing, empty, damaged, of another kind, or holds no pairs.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "torch":
        return TensorPairs(path, keys)
    if kind == "matlab":
        return MatPairs(path, keys)
    if kind == "hdf5":
        return PDEBenchPairs(path)
    raise InputError(f"{path}: a NumPy array holds no pairs; expected a .pt, .mat or PDEBench Darcy file")


def _open_file(path: Path, field: str | None) -> Trajectories:
    kind = _kind(path)
    if kind == "matlab":
        return MatTrajectories(path, field)
    if kind == "torch":
        return TensorTrajectories(path, field)
    if kind == "numpy":
        return NpyTrajectories(path, field)
    hdf5 = Hdf5File(path)
    with reading(path, "the HDF5 structure"):
        keys = sorted(hdf5.file)
        is_well = any(group in hdf5.file for group in GROUPS)
        is_bench = not is_well and is_pdebench(hdf5.file)
        in_groups = is_bench and not {"tensor", "density", "velocity"} & set(keys)
    hdf5.close()
    if is_well:
        return WellTrajectories(path, field)
    if is_bench:
        return PDEBenchGroups(path, field) if in_groups else PDEBenchTrajectories(path, field)
    raise InputError(
        f"{path}: the HDF5 file has none of the known layouts (The Well's t0_fields, PDEBench's "
        "tensor, density, velocity "
        f"or 0000/data, MATLAB's u); its keys are: {', '.join(keys[:12]) or 'none'}"
    )


def _open_folder(folder: Path, field: str | None) -> Trajectories:
    with reading(folder, "the folder"):
        files = sorted(p for p in folder.iterdir() if p.suffix in _SHARDS and p.is_file())
        others = sorted(p.name for p in folder.iterdir())
    if not files:
        partial = [name for name in others if name.endswith(_PARTIAL)]
        if partial:
            found = f"only unfinished ones: {', '.join(partial[:4])}; run the simulation again to resume it"
        else:
            found = f"it holds: {', '.join(others[:8]) or 'nothing'}"
        raise InputError(f"{folder}: no complete .hdf5 or .h5 file in this folder, {found}")
    shards = [_open_file(file, field) for file in files]
    return shards[0] if len(shards) == 1 else Folder(folder, shards)


def _kind(path: Path) -> str:
    """Format of a file by its first bytes: "hdf5", "matlab", "torch" or "numpy"."""
    with reading(path, "the file"):
        if path.is_dir():
            raise InputError(f"{path}: is a folder, a file was expected")
        with path.open("rb") as file:
            start = file.read(16)
        if not start:
            raise InputError(f"{path}: the file is empty (0 bytes)")
        if path.suffix == _PARTIAL:
            raise InputError(f"{path}: the simulation has not finished this file; run it again to resume it")
        if has_hdf5_signature(path):
            return "matlab" if is_mat_v73(path) else "hdf5"
        if is_mat_v5(path):
            return "matlab"
        if start.startswith(b"\x93NUMPY"):
            return "numpy"
        if start.startswith((b"PK\x03\x04", b"\x80\x02")):  # zip, or the pickle of torch before 1.6
            return "torch"
        if start.startswith((b"MATLAB 5.0", b"MATLAB 7.3")):
            raise InputError(f"{path}: the MATLAB file is truncated in its header: {path.stat().st_size} bytes")
    raise InputError(
        f"{path}: neither HDF5, MATLAB v5 or v7.3, torch .pt nor NumPy .npy; it starts with {start!r}; "
        "is it a web page or text saved under this name?"
    )
