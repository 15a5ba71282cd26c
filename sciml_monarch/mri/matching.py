"""Which reconstruction belongs to which truth: files of folders paired by name, and what does not pair."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.io import SUFFIXES, opened, read_volume

REFERENCES = ("reconstruction_rss", "reconstruction_esc")


@dataclass(frozen=True)
class Truth:
    """A reference volume that has not been read yet.

    Attributes:
        name: Name of the scan: the stem of its file, with ``_echo1`` and so on for scans of several echoes.
        path: Its file.
        key: Data set of the volume; None where the reader of scans finds the reference (SKM-TEA).
        acquisition: Kind of scan; empty if unknown.
        acceleration: That of a test file; None if the file does not say.
    """

    name: str
    path: Path
    key: str | None
    acquisition: str = ""
    acceleration: float | None = None

    def read(self) -> Tensor:
        """Reads the volume.

        Returns:
            Magnitudes ``(slices, y, x)`` float32.

        Raises:
            InputError: The file is damaged, or a value in it is not finite.
        """
        if self.key is not None:
            with opened(self.path) as file:
                volume = read_volume(file, self.key)
            if not volume.isfinite().all():
                raise InputError(f"{self.path}: {self.key!r} holds values that are not finite")
            return volume
        from sciml_monarch.mri.readers import open_scans

        scan = next(scan for scan in open_scans(self.path) if scan.name == self.name)
        with scan:
            slices = [scan.target(index) for index in range(scan.n_slices)]
        return torch.stack([image for image in slices if image is not None])


@dataclass(frozen=True)
class Predictions:
    """Reconstructions of one method.

    Attributes:
        path: Folder, or the one file.
        files: Name of a scan to the file of its reconstruction.
        method: What the files say that made them; empty if nothing or different things.
    """

    path: Path
    files: Mapping[str, Path]
    method: str


def find_truths(path: Path, key: str | None) -> tuple[list[Truth], list[str]]:
    """Lists the reference volumes of a file or folder.

    Args:
        path: A file or a folder of HDF5 files: fastMRI's or SKM-TEA's.
        key: Data set that is the reference, such as ``truth`` of semi-synthetic files. By default
            ``reconstruction_rss``, or ``reconstruction_esc`` of single-coil files.

    Returns:
        The volumes in the order of their names, and a line for each file that has none.

    Raises:
        InputError: The path does not exist or has no HDF5 file.
    """
    truths: list[Truth] = []
    problems: list[str] = []
    for file in _hdf5_files(path):
        try:
            truths += _truths_of(file, key)
        except InputError as error:
            problems.append(str(error))
    return sorted(truths, key=lambda truth: truth.name), problems


def find_predictions(path: Path, names: set[str]) -> Predictions:
    """Lists the reconstructions of one method.

    Args:
        path: A folder of HDF5 files named as the scans, or one file. One file for a single scan may have any name.
        names: Names of the scans.

    Returns:
        Files by the name of their scan; nothing is read but attributes.

    Raises:
        InputError: The path does not exist or has no HDF5 file.
    """
    files = {file.stem: file for file in _hdf5_files(path)}
    if path.is_file() and len(names) == 1:
        files = {next(iter(names)): path}
    methods = {_method_of(file) for file in files.values()} - {""}
    return Predictions(path, files, methods.pop() if len(methods) == 1 else "")


def method_names(predictions: list[Predictions]) -> list[str]:
    """A name a method, all different.

    Args:
        predictions: The methods.

    Returns:
        What the files say, or the name of the folder; where that repeats, with the name of the folder behind it, or
        with the whole path.
    """
    names = [p.method or p.path.stem for p in predictions]
    for longer in (lambda p: p.path.stem, lambda p: str(p.path)):
        names = [
            f"{p.method or p.path.stem} ({longer(p)})" if names.count(name) > 1 else name
            for name, p in zip(names, predictions, strict=True)
        ]
    return names


def compared(truths: list[Truth], methods: Mapping[str, Predictions]) -> tuple[list[Truth], list[str], list[str]]:
    """Finds the volumes that all methods have, so that their means compare.

    Args:
        truths: The reference volumes.
        methods: Reconstructions by the name of the method.

    Returns:
        The volumes, the names of the methods that have any volume at all, and a line for each file or volume that is
        left out.
    """
    problems: list[str] = []
    names = {truth.name for truth in truths}
    present = [name for name, p in methods.items() if names & set(p.files)]
    for name, p in methods.items():
        problems += [f"{p.files[extra]}: there is no truth of this name" for extra in sorted(set(p.files) - names)]
        if name not in present:
            problems.append(f"{p.path}: no file is called as any of the {len(names)} volumes; {name} is left out")
    common = []
    for truth in truths:
        lacking = [name for name in present if truth.name not in methods[name].files]
        if lacking:
            problems.append(f"{truth.name}: no reconstruction of {', '.join(lacking)}; not compared")
        elif present:
            common.append(truth)
    return common, present, problems


def number_in(value: Any) -> float | None:
    """An attribute as a number; None where it is none, such as ``"4x"`` or a list of two."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _hdf5_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise InputError(f"{path}: there is no {' or '.join(SUFFIXES)} file in this folder")
    return files


def _truths_of(path: Path, key: str | None) -> list[Truth]:
    with opened(path) as file:
        acquisition = file.attrs.get("acquisition", "")
        acquisition = acquisition.decode() if isinstance(acquisition, bytes) else str(acquisition)
        acceleration = number_in(file.attrs.get("acceleration"))
        kspace = file.get("kspace")
        single = isinstance(kspace, h5py.Dataset) and kspace.ndim == 3
        keys = [key] if key else list(reversed(REFERENCES) if single else REFERENCES)
        found = next((k for k in keys if k in file), None)
        if found is not None:
            return [Truth(path.stem, path, found, acquisition, acceleration)]
        if key or "target" not in file:
            raise InputError(
                f"there is no data set {' or '.join(map(repr, keys))}; there are {', '.join(sorted(file)) or 'none'}"
            )
    from sciml_monarch.mri.readers import open_scans

    return [Truth(scan.name, path, None, scan.acquisition, acceleration) for scan in open_scans(path)]


def _method_of(path: Path) -> str:
    try:
        with opened(path) as file:
            method = file.attrs.get("method", "")
            return method.decode() if isinstance(method, bytes) else str(method)
    except InputError:
        return ""  # named when its volume is read
