import math

import pytest

from sciml_monarch.errors import InputError
from sciml_monarch.pde.solvers.step_size import LONGEST_PATH, LONGEST_STEP, STABILITY, StepSize, VelocityBound

TIMES = [0.0, 0.25, 1.0, 3.5, 20.0]


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("rule", [StepSize(85), StepSize(10), StepSize(85, 0.003)])
def test_legs_cover_the_time_with_steps_that_are_allowed(rule, level):
    legs = rule.legs(TIMES, level)
    assert [leg.end for leg in legs if leg.output is not None] == pytest.approx(TIMES)
    assert [leg.output for leg in legs if leg.output is not None] == [0, 1, 2, 3, 4]
    assert legs[0].n_steps == 0
    now = 0.0
    for leg in legs:
        assert leg.begin == pytest.approx(now, abs=1e-9)
        assert leg.n_steps * leg.step == pytest.approx(leg.end - leg.begin)
        allowed = rule.step or rule.derived(leg.end) / 2**level
        assert leg.step <= allowed * (1 + 1e-9)
        assert leg.n_steps == 0 or (leg.end - leg.begin) / allowed > leg.n_steps - 1  # and not more than needed
        now = leg.end


def test_the_step_is_stable_for_the_bound():
    rule = StepSize(85)
    assert rule.speed_limit(rule.derived(20.0)) == pytest.approx(rule.bound(20.0))
    assert rule.derived(20.0) == pytest.approx(STABILITY / (2 * math.pi * 85 * 0.8))
    assert rule.derived(1e3) == rule.derived(1e4)  # the bound stops growing
    assert StepSize(5).derived(0.0) == LONGEST_STEP
    assert StepSize(5).derived(20.0) == pytest.approx(LONGEST_PATH / 0.8)  # the grid would allow more
    assert StepSize(5, 0.04).speed_limit(0.04) == pytest.approx(STABILITY / (2 * math.pi * 5 * 0.04))


@pytest.mark.parametrize(("factor", "level"), [(0.5, 0), (0.99, 0), (1.5, 1), (2.5, 2), (100.0, 7)])
def test_a_fast_start_begins_with_halved_steps(factor, level):
    rule = StepSize(85)
    speed = factor * rule.speed_limit(rule.derived(0.0))
    assert rule.start_level(speed) == level
    assert StepSize(85, 0.1).start_level(speed) == 0  # a given step is kept


def test_advice_names_time_step_and_mend():
    leg = StepSize(85, 0.01).legs([2.0], 0)[1]
    text = StepSize(85, 0.01).advice(leg, math.nan)
    assert "between t = 1 and 2 s" in text
    assert "0.01 s" in text
    assert "try step=0.005" in text
    assert "try step=0.0003" in StepSize(85, 0.01).advice(leg, 10.0)


@pytest.mark.parametrize("step", [0.0, -0.1, math.nan])
def test_a_bad_step_is_named(step):
    with pytest.raises(InputError, match=f"step.*{step}"):
        StepSize(85, step)


def test_a_bad_bound_is_named():
    with pytest.raises(InputError, match="start=0"):
        VelocityBound(start=0)
