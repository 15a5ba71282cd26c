"""Opens scans of the field's own formats; which format a file has is seen from its content, not from its name.

===========================  ===================================================  ==========================
format                       k-space                                              scans of a file
===========================  ===================================================  ==========================
fastMRI HDF5                 ``kspace`` (slices, coils, H, W) or (slices, H, W)   one
SKM-TEA HDF5, raw track      ``kspace`` (Nx, Ny, Nz, echoes, coils)               one an echo
ISMRMRD HDF5, Cartesian      ``dataset/data``, ``dataset/xml``                    one an echo, repetition, ...
BART ``.cfl`` and ``.hdr``   readout, phase 1, phase 2, coil, ..., slice          one an echo
NumPy ``.npy``               (coil, y, x) or (slice, coil, y, x)                  one
===========================  ===================================================  ==========================
"""

from pathlib import Path

from sciml_monarch.errors import InputError
from sciml_monarch.hdf5 import Hdf5File, has_hdf5_signature
from sciml_monarch.mri.formats.acquisitions import find_group
from sciml_monarch.mri.formats.base import Scan
from sciml_monarch.mri.formats.cfl import bart_file, cfl_base, open_cfl
from sciml_monarch.mri.formats.fastmri import FastMRIScan
from sciml_monarch.mri.formats.ismrmrd import open_ismrmrd
from sciml_monarch.mri.formats.npy import NpyScan
from sciml_monarch.mri.formats.skmtea import open_skmtea
from sciml_monarch.reading import missing, reading

__all__ = ["Scan", "list_scans", "open_scans"]

_SUFFIXES = (".h5", ".hdf5", ".mrd", ".npy", ".cfl")
_BART = (".cfl", ".hdr")


def open_scans(path: str | Path) -> list[Scan]:
    """Opens the scans of a file without reading any slice.

    Args:
        path: A file, or the base name of a pair of BART files.

    Returns:
        Lazy, picklable scans: one, or one for each echo (and repetition, cardiac phase, set) that the file holds.

    Raises:
        InputError: The file is missing, empty, damaged, a folder, or of another kind.
    """
    path = Path(path)
    if path.suffix.lower() in _BART or (not path.exists() and _is_bart_base(path)):
        return [*open_cfl(path)]
    if path.is_dir():
        raise InputError(f"{path}: is a folder, a file was expected; list_scans gives the files of a folder")
    with reading(path, "the file"):
        with path.open("rb") as file:
            start = file.read(16)
        if has_hdf5_signature(path):
            return _open_hdf5(path)
    if not start:
        raise InputError(f"{path}: the file is empty (0 bytes)")
    if start.startswith(b"\x93NUMPY"):
        return [NpyScan(path)]
    raise InputError(
        f"{path}: neither HDF5 (fastMRI, SKM-TEA, ISMRMRD), BART .cfl nor NumPy .npy; it starts with {start!r}; is it "
        "a web page or text saved under this name?"
    )


def list_scans(path: str | Path) -> list[Path]:
    """Lists the files that may be scans, by their suffix; none of them is opened.

    Args:
        path: A folder, a file, or the base name of a pair of BART files.

    Returns:
        Sorted files of the folder with the suffix ``.h5``, ``.hdf5``, ``.mrd``, ``.npy`` or ``.cfl``, hidden files and
        BART's coil maps (``name_maps.cfl`` beside ``name.cfl``) left out; or the file itself.

    Raises:
        InputError: There is no such path, or no such file in the folder.
    """
    path = Path(path)
    if not path.is_dir():
        if path.exists():
            return [path]
        if _is_bart_base(path):
            return [bart_file(path, ".cfl")]
        raise InputError(f"{path}: no such file or folder")
    with reading(path, "the folder"):
        entries = sorted(path.iterdir())
    files = [p for p in entries if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()]
    files = [p for p in files if not _are_maps(p)]
    if not files:
        found = ", ".join(p.name for p in entries[:8]) or "nothing"
        raise InputError(f"{path}: no scan ({', '.join(_SUFFIXES)}) in this folder; it holds: {found}")
    return files


def _open_hdf5(path: Path) -> list[Scan]:
    hdf5 = Hdf5File(path)
    try:
        if hdf5.has("kspace"):
            return [*open_skmtea(path)] if hdf5.dataset("kspace").ndim == 5 else [FastMRIScan(path)]
        if find_group(hdf5) is not None:
            return [*open_ismrmrd(path)]
        with reading(path, "the HDF5 structure"):
            keys = sorted(hdf5.file)
    finally:
        hdf5.close()
    raise missing(path, "'kspace' (fastMRI, SKM-TEA) or 'dataset/data' with 'dataset/xml' (ISMRMRD)", keys)


def _is_bart_base(path: Path) -> bool:
    return any(bart_file(path, suffix).is_file() for suffix in _BART)


def _are_maps(path: Path) -> bool:
    base = cfl_base(path)
    if path.suffix.lower() != ".cfl" or not base.name.endswith("_maps"):
        return False
    return bart_file(base.with_name(base.name.removesuffix("_maps")), ".cfl").is_file()
