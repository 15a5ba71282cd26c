"""The job `reconstruct`: scans in, volumes, NIfTI and pictures out, by a trained network or a classical method."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import check_writable, replacing_all
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.file_mask import FileMask  # noqa: F401  (a name for the option --mask)
from sciml_monarch.mri.formats.base import Scan
from sciml_monarch.mri.io import ComplexImage, Provenance, write_mosaic, write_reconstruction
from sciml_monarch.mri.masks import Mask
from sciml_monarch.mri.nifti import check_nibabel, write_nifti
from sciml_monarch.mri.readers import list_scans, open_scans
from sciml_monarch.mri.volumes import Classical, Settings, Undersampling, choose_method, reconstruct_scan

SUFFIXES = {"hdf5": ".h5", "nifti": ".nii.gz", "png": ".png"}
FAILURES = (InputError, OSError, RuntimeError, MemoryError, np.linalg.LinAlgError)
"""What may be wrong with one scan and not with the next: its file, its values, its size."""


def reconstruct(
    inputs: list[Path],
    out: Path,
    checkpoint: Path | None = None,
    method: Classical | None = None,
    n_iterations: int | None = None,
    regularization: float | None = None,
    mask: Mask | None = None,
    file_mask: str | None = None,
    maps: CoilMaps | None = None,
    batch_size: int = 1,
    device: str = "auto",
    nifti: bool = True,
    png: bool = True,
    complex: bool = False,  # noqa: A002  (the name of the option)
    force: bool = False,
) -> list[Path]:
    """Reconstructs scans: k-space files in, volumes out.

    Writes of each scan NAME.h5 with the data set `reconstruction` (what fastMRI's evaluation reads), NAME.nii.gz with
    the voxel size of the file's header and NAME.png with its slices. Scans that are undersampled are reconstructed as
    they are; fully sampled ones can be undersampled by a mask first. A file among several that is damaged or too large
    is left out, named at the end, and makes the exit status 2. The files of a scan appear together, once all are
    written.

    Args:
        inputs: Files, or folders of files: fastMRI, SKM-TEA, ISMRMRD (Cartesian), BART .cfl, NumPy .npy.
        out: Folder for the volumes.
        checkpoint: Trained network: a training checkpoint (.ckpt), a saved folder, or a U-Net or VarNet of fastMRI.
        method: What reconstructs where no checkpoint is given, by default cg_sense.
        n_iterations: Iterations of cg_sense (by default 30) or l1_wavelet (100).
        regularization: Weight of the L2 penalty of cg_sense (by default 0) or the L1 penalty of l1_wavelet (1e-3).
        mask: Undersamples fully sampled scans, each by a pattern drawn from the name of its file.
        file_mask: Name of a pattern in each file that undersamples it, such as poisson_8.0x of SKM-TEA.
        maps: How coil maps are got; by default as in the training of the network, else by ESPIRiT.
        batch_size: Slices at a time.
        device: Where to run: cpu, cuda, cuda:1, or auto for a GPU where there is one.
        nifti: Write NIfTI; needs nibabel.
        png: Write pictures.
        complex: Store the complex image with sampling pattern and coil maps in NAME.h5, which becomes about twice as
            large as the k-space; `evaluate --consistency` needs it.
        force: Replace files that exist. NAME.nii.gz and NAME.png of an earlier reconstruction that are not written
            again are deleted.

    Returns:
        The files written.

    Raises:
        InputError: A scan could not be reconstructed, after all others were; or, before anything is done, the
            checkpoint cannot be read, a file exists, or an argument is out of range.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    place = choose_device(device)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    undersampling = Undersampling(mask, file_mask)
    formats = ["hdf5", *["nifti"] * nifti, *["png"] * png]
    console = Console()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    written: list[Path] = []
    n_done = 0
    with notes(say):
        chosen = choose_method(checkpoint, method, maps, place, Settings(n_iterations, regularization))
        if complex and (chosen.maps is None or chosen.is_magnitude):
            raise InputError(f"--complex: {chosen.name} gives magnitudes, whose phase is lost; leave it out")
        scans, failures = _open_all(inputs)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        try:
            files = _plan(scans, out, formats, force)
            with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
                total = bar.add_task("slices", total=sum(scan.n_slices for scan in scans))
                for scan in scans:
                    bar.update(total, description=scan.name)
                    try:
                        volume, provenance, image = reconstruct_scan(
                            scan, chosen, undersampling, batch_size, place, lambda n: bar.advance(total, n), complex
                        )
                        written += _write(files[scan.name], volume, provenance, image)
                        n_done += 1
                    except FAILURES as error:
                        failures.append(_failure(scan.path, error))
                    finally:
                        scan.close()
        finally:
            for scan in scans:
                scan.close()
    for path in written:
        say(str(path))
    _report(failures, n_done, say)
    return written


@contextmanager
def notes(say: Callable[[str], object]) -> Iterator[None]:
    """Shows warnings of the body to users as lines that begin with ``note:``, each once, when it ends.

    Warnings of the programmer's, such as of something deprecated, are raised again for Python's filters to decide.

    Args:
        say: Shows a line.
    """
    said: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield
    finally:
        mine = [w for w in said if issubclass(w.category, UserWarning)]
        for note in dict.fromkeys(" ".join(str(w.message).split()) for w in mine):
            say(f"note: {note}")
        for w in said:
            if w not in mine:
                warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def _open_all(inputs: Sequence[Path]) -> tuple[list[Scan], list[str]]:
    """Opens what can be opened; the rest is named."""
    scans: list[Scan] = []
    failures: list[str] = []
    if not inputs:
        raise InputError("no scan is given")
    for path in (file for given in inputs for file in list_scans(given)):
        try:
            scans += open_scans(path)
        except (InputError, OSError) as error:
            failures.append(_failure(path, error))
    return scans, failures


def _plan(scans: Sequence[Scan], out: Path, formats: Sequence[str], force: bool) -> dict[str, dict[str, Path]]:
    """The files of each scan; none of them may be a scan, and without ``force`` none may exist.

    What would fail after the first scan only, hours later, fails here: a folder that cannot be written to, nibabel.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out is a folder")
    names = [scan.name for scan in scans]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"two scans are called {repeated[0]}; reconstruct them into different folders")
    planned = {name: {kind: out / f"{name}{SUFFIXES[kind]}" for kind in formats} for name in names}
    existing = [path for files in planned.values() for path in _unit(files) if path.exists()]
    sources = {scan.path.resolve() for scan in scans}
    for path in existing:
        if path.resolve() in sources:
            raise InputError(f"{path}: is a scan that would be overwritten; give another --out")
        if path.is_dir():
            raise InputError(f"{path}: is a folder where a file is to be written; give another --out")
    if existing and not force:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise InputError(f"{existing[0]}{more}: exists; give --force or another --out")
    if "nifti" in formats:
        try:
            check_nibabel()
        except InputError as error:
            raise InputError(f"{error}, or give --nifti false") from None
    check_writable(out)
    return planned


def _unit(files: dict[str, Path]) -> list[Path]:
    """All files that a reconstruction of the scan may have, whether this one has them or not."""
    stem = str(files["hdf5"]).removesuffix(SUFFIXES["hdf5"])
    return [Path(stem + suffix) for suffix in SUFFIXES.values()]


def _write(files: dict[str, Path], volume: Tensor, provenance: Provenance, image: ComplexImage | None) -> list[Path]:
    """Writes the files of a scan, all or none, and deletes what an earlier reconstruction had beside them."""
    with replacing_all(list(files.values())) as temporaries:
        for kind, temporary in zip(files, temporaries, strict=True):
            if kind == "hdf5":
                write_reconstruction(temporary, volume, provenance, image)
            elif kind == "nifti":
                write_nifti(temporary, volume, provenance.voxel_size)
            else:
                write_mosaic(temporary, volume, provenance.voxel_size)
    for stale in set(_unit(files)) - set(files.values()):
        stale.unlink(missing_ok=True)
    return list(files.values())


def _failure(path: Path, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # what libraries raise goes on with where in their code it happened
    text = " ".join(str(error).split()) if isinstance(error, InputError) else lines[0]
    return text if str(path) in text else f"{path}: {text}"


def _report(failures: Sequence[str], n_done: int, say: Callable[[str], object]) -> None:
    """Names what was left out; the last word is an error."""
    if not failures:
        return
    if len(failures) == 1 and not n_done:
        raise InputError(failures[0])
    for failure in failures:
        say(f"left out: {failure}")
    raise InputError(f"{len(failures)} of the scans could not be reconstructed; {failures[0]}")
