"""HDF5 in the layout of The Well, which the simulation program of this package writes too.

Specification: ``docs/data_format.md`` of the repository PolymathicAI/the_well (Ohana et al. 2024). Scalars
lie in ``t0_fields``, vectors in ``t1_fields``, tensors in ``t2_fields``; a field that does not vary between
trajectories, in time or along an axis is stored without that axis and repeated when read.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import h5py
import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.hdf5 import Hdf5File, names, plain, plain_attributes
from sciml_monarch.pde.formats.base import Layout, Trajectories, domain_length, seconds, subsample
from sciml_monarch.reading import Attribute, missing, reading

GROUPS = ("t0_fields", "t1_fields", "t2_fields")
_STRUCTURE = {"n_spatial_dims", "n_trajectories", "simulation_parameters", "grid_type"}


@dataclass(frozen=True)
class _Field:
    """One data set: which axes it stores, and which channels it gives."""

    key: str
    sample_varying: bool
    time_varying: bool
    dim_varying: tuple[bool, ...]
    channels: tuple[str, ...]
    unit: str
    components: tuple[int, ...]  # which of the stored components are read, in the order of ``channels``


class WellTrajectories(Trajectories):
    """Trajectories of one file in The Well's layout.

    Args:
        path: The file.
        field: Read one field only: a scalar ("density"), a vector or tensor with all its components
            ("velocity") or one component ("velocity_x"). By default all fields, in the order of the file.

    Raises:
        InputError: The file does not follow the layout, is incomplete or lacks ``field``.
    """

    def __init__(self, path: Path, field: str | None = None) -> None:
        self._hdf5 = Hdf5File(path)
        with reading(path, "the groups of The Well's layout"):
            dims = self._spatial_dims()
            self._axes = [self._coordinates(f"dimensions/{dim}") for dim in dims]
            times = self._times()
            n_trajectories = self._n_trajectories()
            grid = tuple(len(axis) for axis in self._axes)
            self._fields = self._select(self._all_fields(dims, (n_trajectories, len(times), grid)), field)
            attributes = self._attributes()
            self._check_complete()
        self._hdf5.close()
        layout = Layout(
            fields=tuple(name for f in self._fields for name in f.channels),
            units=tuple(f.unit for f in self._fields for _ in f.channels),
            n_trajectories=n_trajectories,
            grid=grid,
            lengths=tuple(domain_length(axis) for axis in self._axes),
            times=seconds(times),
            attributes=attributes,
        )
        super().__init__(path, layout)

    def _read(self, index: int, start: int, stop: int, stride: int) -> np.ndarray:
        n_axes = len(self.grid)
        grid = tuple(-(-n // stride) for n in self.grid)
        window = np.empty((stop - start, len(self.fields), *grid), dtype=np.float32)
        channel = 0
        for field in self._fields:
            selection = ((index,) if field.sample_varying else ()) + ((slice(start, stop),) * field.time_varying)
            values = self._hdf5.read_real(field.key, selection)
            if not field.time_varying:
                values = values[None]
            for axis, varies in enumerate(field.dim_varying):
                if not varies:
                    values = np.expand_dims(values, 1 + axis)
            values = values.reshape(*values.shape[: 1 + n_axes], -1)  # (t | 1, *(n | 1), component)
            values = subsample(np.moveaxis(values[..., list(field.components)], -1, 1), n_axes, stride)
            window[:, channel : channel + len(field.channels)] = values
            channel += len(field.channels)
        return window

    def close(self) -> None:
        """Closes the file; the next ``read`` opens it again."""
        self._hdf5.close()

    def _spatial_dims(self) -> tuple[str, ...]:
        group = self._hdf5.file.get("dimensions")
        if group is None:
            raise missing(self._hdf5.path, "the group 'dimensions' of The Well's layout", sorted(self._hdf5.file))
        return names(group.attrs.get("spatial_dims")) or tuple(sorted(set(group) - {"time"}))

    def _coordinates(self, key: str) -> np.ndarray:
        values = self._hdf5.read_real(key)
        return values.reshape(-1, values.shape[-1])[0]  # a sample-varying axis has one row a trajectory

    def _times(self) -> np.ndarray:
        values = self._hdf5.read_real("dimensions/time")
        rows = values.reshape(-1, values.shape[-1])
        if not np.allclose(rows, rows[:1]):
            raise InputError(
                f"{self._hdf5.path}: data set 'dimensions/time': the trajectories have different times; "
                "one row of times for all was expected"
            )
        return rows[0]

    def _n_trajectories(self) -> int:
        stated = plain(self._hdf5.file.attrs.get("n_trajectories"))
        if not isinstance(stated, int):
            raise missing(self._hdf5.path, "the attribute 'n_trajectories'", sorted(self._hdf5.file.attrs))
        return stated

    def _all_fields(self, dims: tuple[str, ...], sizes: tuple[int, int, tuple[int, ...]]) -> list[_Field]:
        fields = []
        for order, group_name in enumerate(GROUPS):
            group = self._hdf5.file.get(group_name, {})
            listed = group.attrs.get("field_names") if isinstance(group, h5py.Group) else None
            for name in names(listed) if listed is not None else sorted(group):
                dataset = self._hdf5.dataset(f"{group_name}/{name}")
                fields.append(self._field(dataset, name, order, dims, sizes))
        return fields

    def _field(
        self,
        dataset: h5py.Dataset,
        name: str,
        order: int,
        dims: tuple[str, ...],
        sizes: tuple[int, int, tuple[int, ...]],
    ) -> _Field:
        n_trajectories, n_times, grid = sizes
        attributes = dataset.attrs
        sample_varying = bool(attributes.get("sample_varying", True))
        time_varying = bool(attributes.get("time_varying", True))
        dim_varying = tuple(bool(v) for v in np.asarray(attributes.get("dim_varying", [True] * len(dims))).reshape(-1))
        if len(dim_varying) != len(dims):
            raise InputError(
                f"{self._hdf5.path}: data set '{dataset.name}': attribute dim_varying has "
                f"{len(dim_varying)} entries, "
                f"the grid has the axes {dims}"
            )
        expected = (n_trajectories,) * sample_varying + (n_times,) * time_varying
        expected += tuple(n for n, varies in zip(grid, dim_varying, strict=True) if varies)
        flat = (*expected, len(dims) ** order)  # the specification writes D^2, the published files D x D
        expected += (len(dims),) * order
        if dataset.shape not in (expected, flat):
            raise InputError(
                f"{self._hdf5.path}: data set '{dataset.name}' has the shape {dataset.shape}, expected {expected}"
            )
        channels = tuple("_".join((name, "".join(c))) if c else name for c in product(dims, repeat=order))
        return _Field(
            key=dataset.name,
            sample_varying=sample_varying,
            time_varying=time_varying,
            dim_varying=dim_varying,
            channels=channels,
            unit=str(plain(attributes.get("units")) or "1"),
            components=tuple(range(len(channels))),
        )

    def _select(self, fields: list[_Field], wanted: str | None) -> list[_Field]:
        if wanted is None:
            return fields
        for field in fields:
            if wanted == field.key.rpartition("/")[2]:
                return [field]
            if wanted in field.channels:
                component = field.channels.index(wanted)
                return [replace(field, channels=(wanted,), components=(component,))]
        available = [name for field in fields for name in field.channels]
        raise missing(self._hdf5.path, f"the field '{wanted}'", available)

    def _attributes(self) -> dict[str, Attribute]:
        found = {k: v for k, v in plain_attributes(self._hdf5.file.attrs).items() if k not in _STRUCTURE}
        scalars = self._hdf5.file.get("scalars", {})
        for name in scalars:
            flags = scalars[name].attrs
            if not flags.get("sample_varying", False) and not flags.get("time_varying", False):
                value = plain(scalars[name][()])
                if value is not None:
                    found[name] = value
        return found

    def _check_complete(self) -> None:
        """Our shards state for each trajectory whether it was written to its end; The Well's do not."""
        if "complete" in self._hdf5.file:
            unfinished = np.flatnonzero(~self._hdf5.read_real("complete").astype(bool))
            if unfinished.size:
                raise InputError(
                    f"{self._hdf5.path}: data set 'complete': {unfinished.size} trajectories, the "
                    "first of them number "
                    f"{unfinished[0]}, are not finished; run the simulation again to resume it"
                )
