"""How long a time step may be, and into which steps a run is divided: by the grid, never by the batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sciml_monarch.errors import InputError

# RK4 is stable for imaginary eigenvalues up to 2 sqrt(2); 5 % are left for the speed to grow within a step.
STABILITY = 0.95 * 2 * math.sqrt(2)
# Metres that the fluid may move in a step, and seconds. On coarse grids these limits of accuracy decide, not
# stability: the error is then 3e-7 of the vorticity after 10 s at viscosity 1e-4 (FNO's starts and forcing).
LONGEST_PATH = 0.016
LONGEST_STEP = 0.04
# Seconds after which the speed is checked and the step follows the bound, also between outputs.
LONGEST_LEG = 1.0
N_HALVINGS = 4


@dataclass(frozen=True)
class VelocityBound:
    """An upper bound of max(|u| + |v|), in m/s, that grows with time: min(limit, start + growth * t).

    Only the cost depends on it, not the correctness: a trajectory that exceeds it is solved with smaller
    steps. The defaults hold with margin for the Fourier neural operator's starts and forcing: of 192
    trajectories on 64 x 64 points none exceeded 0.16 m/s at the start, and at viscosity 1e-5 (1e-4) 0.28 (0.27) m/s
    after 8 s, 0.71 (0.64) after 20 s, 0.84 after 30 s.
    """

    start: float = 0.2
    growth: float = 0.03
    limit: float = 0.95

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.growth >= 0 and self.limit > 0):
            raise InputError(f"a velocity bound needs start > 0, growth >= 0 and limit > 0, not {self}")

    def __call__(self, time: float) -> float:
        """The bound from the start up to ``time`` seconds."""
        return min(self.limit, self.start + self.growth * time)


@dataclass(frozen=True)
class Leg:
    """A part of a run with equal steps.

    Attributes:
        begin, end: Times, in seconds.
        step: Length of a step, in seconds.
        n_steps: Number of steps.
        output: Which of the output times the end is, or None.
    """

    begin: float
    end: float
    step: float
    n_steps: int
    output: int | None


@dataclass(frozen=True)
class StepSize:
    """The rule for the time step.

    Attributes:
        m: Highest wave number of the grid.
        step: A fixed longest step in seconds, or None to derive it from the bound.
        bound: The speed that a derived step is made for.
    """

    m: int
    step: float | None = None
    bound: VelocityBound = field(default_factory=VelocityBound)

    def __post_init__(self) -> None:
        if self.step is not None and not (math.isfinite(self.step) and self.step > 0):
            raise InputError(f"step must be a positive number of seconds, not {self.step}")

    @property
    def _path(self) -> float:
        """The way that the fluid may go in a step: advection has the eigenvalues i (kx u + ky v)."""
        stable = STABILITY / (2 * math.pi * self.m)
        return stable if self.step is not None else min(stable, LONGEST_PATH)

    @property
    def n_halvings(self) -> int:
        """How often the step of a trajectory that became too fast may be halved: a fixed step never."""
        return 0 if self.step is not None else N_HALVINGS

    def derived(self, time: float) -> float:
        """The step that is stable and accurate up to ``time`` for speeds within the bound, in seconds."""
        return min(LONGEST_STEP, self._path / self.bound(time))

    def speed_limit(self, step: float) -> float:
        """The largest |u| + |v| that is allowed with a step: a given step has to be stable only."""
        return self._path / step

    def start_level(self, speed: float) -> int:
        """How often the derived step has to be halved for a trajectory that starts at a speed."""
        if self.step is not None:
            return 0
        if not math.isfinite(speed):
            raise InputError("the velocity of a start overflows: scale the start down")
        return max(0, math.ceil(math.log2(max(speed, 1e-30) / self.speed_limit(self.derived(0.0)))))

    def legs(self, times: Sequence[float], level: int) -> list[Leg]:
        """Divides the time from 0 to the last output time, with steps halved ``level`` times."""
        legs = []
        begin = 0.0
        for output, time in enumerate(times):
            n_legs = max(1, math.ceil((time - begin) / LONGEST_LEG - 1e-9))
            length = (time - begin) / n_legs
            for i in range(n_legs):
                end = begin + (i + 1) * length
                longest = self.step or self.derived(end) / 2**level
                n_steps = math.ceil(length / longest - 1e-9)
                step = length / n_steps if n_steps else 0.0
                legs.append(Leg(end - length, end, step, n_steps, output if i == n_legs - 1 else None))
            begin = time
        return legs

    def advice(self, leg: Leg, speed: float) -> str:
        """What to tell of a trajectory that became too fast, or not finite, in a leg."""
        reached = f"|u| + |v| reached {speed:.3g} m/s" if math.isfinite(speed) else "it is not finite"
        suitable = min(leg.step / 2, self.derived(leg.end))
        if math.isfinite(speed):
            suitable = min(suitable, 0.7 * self._path / speed)  # it may become faster yet
        digit = 10 ** math.floor(math.log10(suitable))
        suitable = math.floor(suitable / digit) * digit
        return (
            f"unstable between t = {leg.begin:g} and {leg.end:g} s with a time step of {leg.step:.3g} s "
            f"({reached}): try step={suitable:.1g}"
        )
