"""The ISMRMRD header: XML that ISMRMRD and fastMRI files carry; read and written with the standard library."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from sciml_monarch.errors import InputError
from sciml_monarch.reading import Attribute

NAMESPACE = "http://www.ismrm.org/ISMRMRD"


@dataclass(frozen=True)
class Space:
    """A grid in k-space or image space.

    Attributes:
        matrix: Points along readout, phase and partition encoding: the header's x, y and z.
        field_of_view: Their extent in mm; None if not given or not positive.
    """

    matrix: tuple[int, int, int]
    field_of_view: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Limits:
    """Counts of an encoding loop: ``minimum`` to ``maximum``, with k = 0 at ``center``."""

    minimum: int
    maximum: int
    center: int


@dataclass(frozen=True)
class Header:
    """What of an ISMRMRD header concerns reconstruction.

    Attributes:
        encoded: Grid of k-space; None if not given.
        recon: Grid of the image that the scanner shows; None if not given.
        step_1: Phase-encoding loop; None if not given.
        step_2: Partition-encoding loop; None if not given.
        trajectory: "cartesian", "radial", ...; empty if not given.
        calibration_mode: "embedded", "separate", ... of parallel imaging; empty if not given.
        noise_bandwidth: Noise bandwidth of the receiver relative to the sampling rate; None if not given.
        attributes: Vendor, field strength, protocol, echo and repetition times, ...
    """

    encoded: Space | None = None
    recon: Space | None = None
    step_1: Limits | None = None
    step_2: Limits | None = None
    trajectory: str = ""
    calibration_mode: str = ""
    noise_bandwidth: float | None = None
    attributes: dict[str, Attribute] = field(default_factory=dict)


_DESCRIPTIONS = {
    "acquisitionSystemInformation/systemVendor": "vendor",
    "acquisitionSystemInformation/systemModel": "model",
    "acquisitionSystemInformation/systemFieldStrength_T": "field_strength",
    "measurementInformation/protocolName": "protocol",
    "sequenceParameters/TR": "repetition_time",
    "sequenceParameters/TE": "echo_time",
    "sequenceParameters/flipAngle_deg": "flip_angle",
}


def parse_header(path: Path, key: str, text: bytes) -> Header:
    """Reads an ISMRMRD header; only the first encoding space counts.

    Args:
        path: File that it was read from, for messages.
        key: Data set that it was read from, for messages.
        text: The XML.

    Returns:
        What was found; parts that are absent are None.

    Raises:
        InputError: The text is not XML, a number in it is none, or a size is below 1.
    """
    try:
        root = ElementTree.fromstring(text.rstrip(b"\0"))
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: the data set '{key}' is not XML ({error}); copy the file again") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # the namespace is not always there
    try:
        encoding = root.find("encoding")
        encoding = ElementTree.Element("encoding") if encoding is None else encoding
        bandwidth = root.findtext("acquisitionSystemInformation/relativeReceiverNoiseBandwidth")
        return Header(
            encoded=_space(encoding.find("encodedSpace")),
            recon=_space(encoding.find("reconSpace")),
            step_1=_limits(encoding.find("encodingLimits/kspace_encoding_step_1")),
            step_2=_limits(encoding.find("encodingLimits/kspace_encoding_step_2")),
            trajectory=(encoding.findtext("trajectory") or "").strip().lower(),
            calibration_mode=(encoding.findtext("parallelImaging/calibrationMode") or "").strip().lower(),
            noise_bandwidth=float(bandwidth) if bandwidth else None,
            attributes=_attributes(root),
        )
    except ValueError as error:
        raise InputError(f"{path}: a number in the data set '{key}' cannot be read: {error}") from error


def _space(element: ElementTree.Element | None) -> Space | None:
    if element is None or element.find("matrixSize") is None:
        return None
    x, y, z = (int(element.findtext(f"matrixSize/{axis}") or 1) for axis in "xyz")
    if min(x, y, z) < 1:
        raise ValueError(f"the matrixSize of {element.tag} is {x} x {y} x {z}, but sizes are 1 or more")
    extent = tuple(float(element.findtext(f"fieldOfView_mm/{axis}") or 0) for axis in "xyz")
    given = all(math.isfinite(size) and size > 0 for size in extent)
    return Space((x, y, z), (extent[0], extent[1], extent[2]) if given else None)


def _limits(element: ElementTree.Element | None) -> Limits | None:
    if element is None or element.find("maximum") is None:
        return None
    minimum, maximum, center = (int(element.findtext(name) or 0) for name in ("minimum", "maximum", "center"))
    return Limits(minimum, maximum, center)


def _attributes(root: ElementTree.Element) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for place, name in _DESCRIPTIONS.items():
        text = (root.findtext(place) or "").strip()
        if text:
            try:
                found[name] = float(text)
            except ValueError:
                found[name] = text
    return found


def cartesian_header(
    shape: tuple[int, int],
    crop: tuple[int, int],
    voxel_size: tuple[float, float, float],
    padding: tuple[int, int] | None = None,
    oversampling: int = 1,
) -> Header:
    """Header of a Cartesian multi-slice scan.

    Args:
        shape: Points of k-space, ``(ny, nx)``, without further oversampling.
        crop: Rows and columns of the image to show.
        voxel_size: Size of a voxel in mm, ``(slice, y, x)``.
        padding: First encoded column and the one after the last; None: all.
        oversampling: Factor by which the readout was oversampled.

    Returns:
        The header.
    """
    ny, nx = shape
    z, y, x = voxel_size
    left, right = padding or (0, nx)
    return Header(
        encoded=Space((ny * oversampling, nx, 1), (y * ny * oversampling, x * nx, z)),
        recon=Space((crop[0], crop[1], 1), (y * crop[0], x * crop[1], z)),
        step_1=Limits(0, right - left - 1, nx // 2 - left),
        trajectory="cartesian",
    )


def header_xml(header: Header, n_slices: int, n_coils: int) -> bytes:
    """Writes a header that the ISMRMRD schema accepts.

    Args:
        header: ``encoded``, ``recon`` and ``step_1`` must be given, with fields of view.
        n_slices: Slices of the volume, for the limits of the slice loop.
        n_coils: Receiver channels.

    Returns:
        The XML.

    Raises:
        InputError: A part is missing.
    """
    if header.encoded is None or header.recon is None or header.step_1 is None:
        raise InputError("an ISMRMRD header needs encoded space, reconstructed space and phase-encoding limits")
    root = ElementTree.Element("ismrmrdHeader", xmlns=NAMESPACE)
    if "protocol" in header.attributes:
        measurement = ElementTree.SubElement(root, "measurementInformation")
        _put(measurement, patientPosition="HFS", protocolName=str(header.attributes["protocol"]))
    system = ElementTree.SubElement(root, "acquisitionSystemInformation")
    if header.noise_bandwidth is not None:
        _put(system, relativeReceiverNoiseBandwidth=header.noise_bandwidth)
    _put(system, receiverChannels=n_coils)
    conditions = ElementTree.SubElement(root, "experimentalConditions")
    _put(conditions, H1resonanceFrequency_Hz=0)  # required by the schema; unknown here
    encoding = ElementTree.SubElement(root, "encoding")
    for tag, space in (("encodedSpace", header.encoded), ("reconSpace", header.recon)):
        element = ElementTree.SubElement(encoding, tag)
        for name, values in (("matrixSize", space.matrix), ("fieldOfView_mm", space.field_of_view)):
            if values is None:
                raise InputError(f"an ISMRMRD header needs the field of view of its {tag}")
            _put(ElementTree.SubElement(element, name), **dict(zip("xyz", values, strict=True)))
    limits = ElementTree.SubElement(encoding, "encodingLimits")
    loops = {
        "kspace_encoding_step_1": header.step_1,
        "kspace_encoding_step_2": header.step_2 or Limits(0, 0, 0),
        "slice": Limits(0, n_slices - 1, 0),
    }
    for name, loop in loops.items():
        element = ElementTree.SubElement(limits, name)
        _put(element, minimum=loop.minimum, maximum=loop.maximum, center=loop.center)
    _put(encoding, trajectory=header.trajectory or "cartesian")
    if header.calibration_mode:
        parallel = ElementTree.SubElement(encoding, "parallelImaging")
        factors = ElementTree.SubElement(parallel, "accelerationFactor")
        _put(factors, kspace_encoding_step_1=1, kspace_encoding_step_2=1)
        _put(parallel, calibrationMode=header.calibration_mode)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _put(parent: ElementTree.Element, **values: object) -> None:
    """Adds one child a value."""
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)
