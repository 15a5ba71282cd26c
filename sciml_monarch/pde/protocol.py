"""What is asked of networks that are compared, and the checks that they and the data fit each other.

Frames are counted within a trajectory: the networks know those before ``first``, whatever the length of their
history, and predict from there on, so that networks of different histories are asked for the same frames.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sciml_monarch.errors import InputError
from sciml_monarch.pde.description import Description, first_number, origin
from sciml_monarch.pde.readers import Trajectories, open_trajectories
from sciml_monarch.pde.surrogate import Surrogate


@dataclass(frozen=True)
class Protocol:
    """What every network is asked: the same frames of the same trajectories on the same grid.

    Attributes:
        indices: Test trajectories.
        first: First predicted frame.
        n_steps: Frames that errors are taken over.
        n_known: Predicted frames that the data knows, at least ``n_steps``.
        n_free: Frames of the free roll-out, at least ``n_known``.
        horizon: Frames of the longest test in the networks' trainings; what comes behind it is free for all of them.
        stride: Every ``stride``-th point of the data is used.
        grid: Points per axis that are left.
        lengths: Domain length per axis.
        times: Time of each predicted frame in the data's own clock, seconds; ``n_known`` values.
        dt: Time between frames in seconds.
    """

    indices: range
    first: int
    n_steps: int
    n_known: int
    n_free: int
    horizon: int
    stride: int
    grid: tuple[int, ...]
    lengths: tuple[float, ...]
    times: tuple[float, ...]
    dt: float


def make_protocol(
    networks: Mapping[Path, Surrogate],
    data: Trajectories,
    n_test: int | None,
    n_steps: int | None = None,
    n_horizons: int = 3,
    resolution: int | None = None,
    known_frames: int | None = None,
) -> Protocol:
    """Settles what all networks are asked, or says why they cannot be compared on this data.

    Args:
        networks: Checkpoint to network, at least one.
        data: The trajectories.
        n_test: The last ``n_test`` trajectories are the test; by default those that the training left alone on this
            data, or all of data that it has not seen.
        n_steps: Frames that errors are taken over; by default those of the tests of the networks' trainings.
        n_horizons: Length of the free roll-out in roll-outs of these tests.
        resolution: Points on the first axis; by default the grid that the networks were trained on.
        known_frames: Frames behind which the networks predict, at least the longest history; by default those of the
            tests of their trainings, the most of them.

    Raises:
        InputError: Fields, time step, grid or number of frames of data and networks do not fit each other, or the
            test would take in trajectories of the training.
    """
    for path, network in networks.items():
        check_rolls_out(path, network)
        check_fields(path, network.description, data)
        check_time_step(path, network.description.dt, data.path, data.times)
    for name, value in (
        ("n_test", n_test),
        ("n_steps", n_steps),
        ("n_horizons", n_horizons),
        ("known_frames", known_frames),
    ):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    unseen = {path: _n_unseen(network.description, data) for path, network in networks.items()}
    fewest = min(unseen, key=lambda path: unseen[path])
    n_test = unseen[fewest] if n_test is None else n_test
    if n_test > data.n_trajectories:
        raise InputError(f"n_test is {n_test}, but {data.path} has {data.n_trajectories} trajectories")
    if n_test > unseen[fewest] or n_test == 0:
        raise InputError(
            f"{fewest}: training on the trajectories of {data.path} left its last {unseen[fewest]} trajectories for "
            f"the test; n_test {n_test} would test on what the network has seen"
        )
    descriptions = [network.description for network in networks.values()]
    tested = {d.n_test_steps for d in descriptions}
    if n_steps is None and len(tested) > 1:
        raise InputError(f"the networks' trainings tested roll-outs of {sorted(tested)} steps; give n_steps")
    scored = n_steps or max(tested)
    # a network may see few of the frames that are known in its test
    first = known_frames or max(d.split.get("known_frames", d.n_history) for d in descriptions)
    longest = max(d.n_history for d in descriptions)
    if first < longest:
        raise InputError(f"known_frames is {first}, but a network sees {longest} frames; give that or more")
    if first + scored > data.n_times:
        raise InputError(
            f"{data.path}: {data.n_times} times are too few for {first} known and {scored} predicted frames "
            f"({first + scored}); give fewer n_steps or known_frames ({longest} or more), or longer trajectories"
        )
    free = max(scored, n_horizons * max(tested))
    known = min(free, data.n_times - first)
    stride = _stride(networks, data, resolution)
    return Protocol(
        indices=range(data.n_trajectories - n_test, data.n_trajectories),
        first=first,
        n_steps=scored,
        n_known=known,
        n_free=free,
        horizon=max(tested),
        stride=stride,
        grid=tuple(n // stride for n in data.grid),
        lengths=data.lengths,
        times=data.times[first : first + known],
        dt=descriptions[0].dt,
    )


def _n_unseen(description: Description, data: Trajectories) -> int:
    """How many of the last trajectories a network has not seen: all, unless it was trained on this data.

    A simulation draws each trajectory from the set's seed and its number in the set, on every grid and machine; of
    those of files whose numbers do not follow one another none is taken for unseen. Other data is taken for that of the
    training if attributes and number of trajectories are equal.
    """
    split, n = description.split, data.n_trajectories
    if origin(description.attributes) != origin(data.attributes) or "n_trajectories" not in split:
        return n
    first = first_number(description.attributes, split["n_trajectories"])
    their_first = first_number(data.attributes, n)
    if first is not None and their_first is not None:
        last_trained = first + split["n_trajectories"] - split["n_test"]
        return n if their_first + n <= first else min(max(0, their_first + n - last_trained), n)
    if "first_trajectory_of_set" in description.attributes:
        return 0
    return split["n_test"] if split["n_trajectories"] == n else n


def open_fields(path: Path, wanted: Set[tuple[str, ...]], names: Sequence[str] | None = None) -> Trajectories:
    """Opens trajectories; of a file with several fields only the one that all networks predict, if it is one.

    Args:
        path: File or folder.
        wanted: The fields of each network.
        names: What the fields of the file are, in their order, where it names them otherwise or not at all.

    Raises:
        InputError: The file cannot be read, or has more fields or fewer than ``names``.
    """
    data = open_trajectories(path)
    if names is not None:
        data.rename(names)
    first = next(iter(wanted))
    if names is None and len(wanted) == 1 and len(first) == 1 and len(data.fields) > 1 and first[0] in data.fields:
        data.close()
        return open_trajectories(path, first[0])
    return data


def check_time_step(path: Path, dt: float, source: Path, times: Sequence[float]) -> None:
    """Refuses data whose frames are not as far apart as those that a network was trained on.

    Args:
        path: Checkpoint, for the message.
        dt: Its time between frames in seconds.
        source: File of the data, for the message.
        times: Times of the data in seconds.

    Raises:
        InputError: A step differs from ``dt`` by more than 0.1 %.
    """
    steps = [b - a for a, b in pairwise(times)]
    wrong = [step for step in steps if not math.isclose(step, dt, rel_tol=1e-3)]
    if wrong:
        raise InputError(f"{path}: trained on frames {dt:g} s apart, but those of {source} are {wrong[0]:g} s apart")


def check_fields(path: Path, description: Description, data: Trajectories) -> None:
    """Refuses data of other fields, or of another number of dimensions, than a network was trained on.

    Args:
        path: Checkpoint, for the message.
        description: What it was trained on.
        data: The trajectories.

    Raises:
        InputError: They differ; the message names both.
    """
    if data.fields != description.fields:
        raise InputError(
            f"{path}: trained on the fields {list(description.fields)}, but {data.path} holds {list(data.fields)}"
        )
    if len(data.grid) != len(description.grid):
        raise InputError(f"{path}: trained on the grid {description.grid}, but {data.path} has {data.grid}")


def check_rolls_out(path: Path, network: Surrogate) -> None:
    """Refuses a network that cannot take its own output as input.

    Args:
        path: Checkpoint, for the message.
        network: The network.

    Raises:
        InputError: It maps one field to another, without time.
    """
    description = network.description
    if network.net.in_channels != description.n_history * len(description.fields) or description.dt <= 0:
        raise InputError(f"{path}: maps one field to another, without time; it cannot be rolled out")


def _stride(networks: Mapping[Path, Surrogate], data: Trajectories, resolution: int | None) -> int:
    grids = {network.description.grid: path for path, network in networks.items()}
    if resolution is None and len(grids) > 1:
        listed = ", ".join(f"{path}: {grid}" for grid, path in grids.items())
        raise InputError(f"the networks were trained on different grids ({listed}); give resolution")
    wanted, path = next(iter(grids.items()))
    points = wanted[0] if resolution is None else resolution
    stride = data.grid[0] // points if points > 0 else 0
    divides = stride >= 1 and points * stride == data.grid[0] and not any(n % stride for n in data.grid)
    if divides and (resolution is not None or tuple(n // stride for n in data.grid) == wanted):
        return stride
    asked = f"{path}: trained on the grid {wanted}, which" if resolution is None else f"resolution {resolution}"
    raise InputError(
        f"{asked} is not every n-th point of the grid {data.grid} of {data.path}; give a resolution that divides it"
    )
