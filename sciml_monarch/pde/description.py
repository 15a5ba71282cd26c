"""What a data set's numbers mean: travels with every batch source and inside every checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sciml_monarch.errors import InputError
from sciml_monarch.reading import Attribute

# attributes of a simulated set that say how it was computed and stored, not which trajectories it holds
RECORDS = frozenset(
    {
        "device",
        "dtype",
        "final_time",
        "first_trajectory",
        "first_trajectory_of_set",
        "include_start",
        "interval",
        "n_trajectories_total",
        "resolution",
        "shard_size",
        "simulation_resolution",
        "solver",
        "step",
        "velocity_bound_growth",
        "velocity_bound_limit",
        "velocity_bound_start",
        "version",
    }
)


def origin(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """What of a data set's attributes says which trajectories it is a part of: equation, seed, and what is unknown."""
    return {name: value for name, value in attributes.items() if name not in RECORDS}


def first_number(attributes: Mapping[str, Attribute], n_trajectories: int) -> int | None:
    """Number of the first trajectory of some in the set that they were simulated as; ``None`` where it is not known.

    Args:
        attributes: Of the trajectories.
        n_trajectories: How many they are.
    """
    first = attributes.get("first_trajectory")
    if first is None and attributes.get("n_trajectories_total") == n_trajectories:  # as whole folders said it before
        first = attributes.get("first_trajectory_of_set")
    return first if isinstance(first, int) else None


@dataclass(frozen=True)
class Description:
    """Fields, units and grid of the data that a network is trained on.

    Attributes:
        fields: Name of each predicted channel, for example ``("vorticity",)``.
        units: Unit of each predicted channel, ``"1"`` where unknown or dimensionless.
        grid: Points per axis.
        lengths: Domain length per axis, in metres or dimensionless; points lie on ``[0, L)``.
        dt: Time between two frames in seconds; 0 for data without time.
        n_history: Frames that a network sees.
        n_steps: Frames that it was trained to predict by roll-out.
        attributes: Physical parameters of the data set (viscosity, seed, ...).
        split: Its ``n_trajectories``, the first ``n_train`` that were trained on, the last ``n_test`` that were left
            alone, the ``known_frames`` behind which these are predicted, and for how many ``test_steps``; what is
            unknown is not there.
    """

    fields: tuple[str, ...]
    units: tuple[str, ...]
    grid: tuple[int, ...]
    lengths: tuple[float, ...]
    dt: float
    n_history: int
    n_steps: int
    attributes: dict[str, Attribute] = field(default_factory=dict)
    split: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.fields) != len(self.units):
            raise InputError(f"{len(self.fields)} fields {self.fields} but {len(self.units)} units {self.units}")
        if len(self.grid) != len(self.lengths):
            raise InputError(f"a grid of {len(self.grid)} axes but {len(self.lengths)} lengths {self.lengths}")

    @property
    def n_test_steps(self) -> int:
        """Frames of a roll-out in its test: a network that is trained on single steps is tested on longer ones."""
        return self.split.get("test_steps", self.n_steps)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values, as stored in checkpoints."""
        return asdict(self) | {name: list(getattr(self, name)) for name in ("fields", "units", "grid", "lengths")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Description":
        """Inverse of :meth:`to_dict`.

        Raises:
            InputError: A key is missing or unknown.
        """
        try:
            return cls(
                fields=tuple(values["fields"]),
                units=tuple(values["units"]),
                grid=tuple(values["grid"]),
                lengths=tuple(values["lengths"]),
                dt=float(values["dt"]),
                n_history=int(values["n_history"]),
                n_steps=int(values["n_steps"]),
                attributes=dict(values["attributes"]),
                split=dict(values.get("split", {})),
            )
        except KeyError as error:
            raise InputError(f"the description of the training data lacks {error}") from None
