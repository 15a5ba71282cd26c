"""What a reconstruction network was trained on: travels inside every checkpoint and every saved folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import PurePath
from typing import Any

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import Recon


@dataclass(frozen=True)
class Description:
    """Scans, sampling and coil maps of a training.

    Attributes:
        shapes: Sizes ``(y, x)`` of the k-space that was trained on.
        n_coils: Numbers of coils that were trained on.
        mask: Class and options of the training masks, empty where the files brought their own.
        acceleration: Points of k-space for each sample, in the mask of the first training slice.
        maps: Options of :class:`~sciml_monarch.mri.coils.CoilMaps`; ``None`` where the network has none.
        target: What the loss compared with: ``reference``, ``rss`` or ``sense``.
        n_volumes: Training volumes.
        n_slices: Training slices.
        acquisitions: Kinds of acquisition, as the files name them.
    """

    shapes: tuple[tuple[int, int], ...]
    n_coils: tuple[int, ...]
    mask: dict[str, Any]
    acceleration: float
    maps: dict[str, Any] | None
    target: str
    n_volumes: int
    n_slices: int
    acquisitions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values, as stored in checkpoints."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Description":
        """Inverse of :meth:`to_dict`.

        Raises:
            InputError: A key is missing.
        """
        try:
            return cls(
                shapes=tuple((int(ny), int(nx)) for ny, nx in values["shapes"]),
                n_coils=tuple(int(n) for n in values["n_coils"]),
                mask=dict(values["mask"]),
                acceleration=float(values["acceleration"]),
                maps=None if values["maps"] is None else dict(values["maps"]),
                target=str(values["target"]),
                n_volumes=int(values["n_volumes"]),
                n_slices=int(values["n_slices"]),
                acquisitions=tuple(values.get("acquisitions", ())),
            )
        except KeyError as error:
            raise InputError(f"the description of the training data lacks {error}") from None


def options_of(instance: Any) -> dict[str, Any]:
    """Fields of a dataclass as plain JSON values; of a path only the name, since the rest is a machine's.

    Args:
        instance: A dataclass of options, such as a mask.
    """
    assert is_dataclass(instance)
    assert not isinstance(instance, type)
    return {name: _plain(value) for name, value in asdict(instance).items()}


def describe(net: Recon, description: Description | None) -> None:
    """Gives a network its ``description`` attribute; a plain attribute, neither weight nor buffer."""
    object.__setattr__(net, "description", description)


def description_of(net: Recon) -> Description | None:
    """What a network was trained on, as :func:`sciml_monarch.load` found it; ``None`` for one that was not loaded."""
    return net.__dict__.get("description")


def _plain(value: Any) -> Any:
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
