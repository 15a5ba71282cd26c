"""The job `reconstruct`: scans in, volumes, NIfTI and pictures out, by a trained network or a classical method."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.file_mask import FileMask  # noqa: F401  (a name for the option --mask)
from sciml_monarch.mri.formats.base import Scan
from sciml_monarch.mri.io import Provenance, write_mosaic, write_reconstruction
from sciml_monarch.mri.masks import Mask
from sciml_monarch.mri.nifti import write_nifti
from sciml_monarch.mri.readers import list_scans, open_scans
from sciml_monarch.mri.volumes import Classical, Settings, Undersampling, choose_method, reconstruct_scan

SUFFIXES = {"hdf5": ".h5", "nifti": ".nii.gz", "png": ".png"}


def reconstruct(
    inputs: list[Path],
    out: Path,
    checkpoint: Path | None = None,
    method: Classical = "cg_sense",
    n_iterations: int | None = None,
    regularization: float | None = None,
    mask: Mask | None = None,
    file_mask: str | None = None,
    maps: CoilMaps | None = None,
    batch_size: int = 1,
    device: str = "auto",
    nifti: bool = True,
    png: bool = True,
    force: bool = False,
) -> list[Path]:
    """Reconstructs scans: k-space files in, volumes out.

    Writes of each scan NAME.h5 with the data set `reconstruction` (what fastMRI's evaluation reads), NAME.nii.gz with
    the voxel size of the file's header and NAME.png with its slices. Scans that are undersampled are reconstructed as
    they are; fully sampled ones can be undersampled by a mask first. A damaged file among several is left out, named
    at the end, and makes the exit status 2.

    Args:
        inputs: Files, or folders of files: fastMRI, SKM-TEA, ISMRMRD (Cartesian), BART .cfl, NumPy .npy.
        out: Folder for the volumes.
        checkpoint: Trained network: a training checkpoint (.ckpt), a saved folder, or a U-Net or VarNet of fastMRI.
        method: What reconstructs where no checkpoint is given.
        n_iterations: Iterations of cg_sense (by default 30) or l1_wavelet (100).
        regularization: Weight of the L2 penalty of cg_sense (by default 0) or the L1 penalty of l1_wavelet (1e-3).
        mask: Undersamples fully sampled scans, each by a pattern drawn from the name of its file.
        file_mask: Name of a pattern in each file that undersamples it, such as poisson_8.0x of SKM-TEA.
        maps: How coil maps are got; by default as in the training of the network, else by ESPIRiT.
        batch_size: Slices at a time.
        device: Where to run: cpu, cuda, cuda:1, or auto for a GPU where there is one.
        nifti: Write NIfTI; needs nibabel.
        png: Write pictures.
        force: Replace files that exist.

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
    chosen = choose_method(checkpoint, method, maps, place, Settings(n_iterations, regularization))
    formats = ["hdf5", *["nifti"] * nifti, *["png"] * png]
    scans, failures = _open_all(inputs)
    try:
        files = _plan(scans, out, formats, force, inputs)
        undersampling = Undersampling(mask, file_mask)
        console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        written: list[Path] = []
        n_done = 0
        with warnings.catch_warnings(record=True) as said, Progress(*columns, console=console, transient=True) as bar:
            warnings.simplefilter("always")
            total = bar.add_task("slices", total=sum(scan.n_slices for scan in scans))
            for scan in scans:
                bar.update(total, description=scan.name)
                try:
                    volume, provenance = reconstruct_scan(
                        scan, chosen, undersampling, batch_size, place, lambda n: bar.advance(total, n)
                    )
                    written += _write(files[scan.name], volume, provenance)
                    n_done += 1
                except (InputError, OSError) as error:
                    failures.append(_failure(scan.path, error))
                finally:
                    scan.close()
    finally:
        for scan in scans:
            scan.close()
    for note in dict.fromkeys(str(w.message) for w in said if issubclass(w.category, UserWarning)):
        console.print(f"note: {note}", soft_wrap=True, highlight=False)
    for path in written:
        console.print(str(path), soft_wrap=True, highlight=False)
    _report(failures, n_done, console.print)
    return written


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


def _plan(
    scans: Sequence[Scan], out: Path, formats: Sequence[str], force: bool, inputs: Sequence[Path]
) -> dict[str, dict[str, Path]]:
    """The files of each scan; none of them may be a scan, and without ``force`` none may exist."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out is a folder")
    names = [scan.name for scan in scans]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"two scans are called {repeated[0]}; reconstruct them into different folders")
    planned = {name: {kind: out / f"{name}{SUFFIXES[kind]}" for kind in formats} for name in names}
    existing = [path for files in planned.values() for path in files.values() if path.exists()]
    sources = {scan.path.resolve() for scan in scans}
    for path in existing:
        if path.resolve() in sources:
            raise InputError(f"{path}: is a scan that would be overwritten; give another --out")
    if existing and not force:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise InputError(f"{existing[0]}{more}: exists; give --force or another --out")
    return planned


def _write(files: dict[str, Path], volume: Tensor, provenance: Provenance) -> list[Path]:
    written = [write_reconstruction(files["hdf5"], volume, provenance)]
    if "nifti" in files:
        written.append(write_nifti(files["nifti"], volume, provenance.voxel_size))
    if "png" in files:
        written.append(write_mosaic(files["png"], volume, provenance.voxel_size))
    return written


def _failure(path: Path, error: InputError | OSError) -> str:
    text = " ".join(str(error).split())
    return text if str(path) in text else f"{path}: {text}"


def _report(failures: Sequence[str], n_done: int, say: Callable[..., None]) -> None:
    """Names what was left out; the last word is an error."""
    if not failures:
        return
    if len(failures) == 1 and not n_done:
        raise InputError(failures[0])
    for failure in failures:
        say(f"left out: {failure}", soft_wrap=True, highlight=False)
    raise InputError(f"{len(failures)} of the scans could not be reconstructed; {failures[0]}")
