import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.pde import Description, MonarchFNO, Surrogate, rollout
from sciml_monarch.pde.symmetry import FNO_FORCING, fno_forced_navier_stokes, free_navier_stokes

DESCRIPTION = Description(("u", "v"), ("m/s", "m/s"), (16,), (1.0,), 0.5, 3, 4)


def test_rollout_is_in_physical_units():
    surrogate = Surrogate(MonarchFNO(6, 2, 4, (4,), (16,), n_layers=1), DESCRIPTION)
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])
    surrogate.set_normalization(mean, std, mean, std)
    history = torch.randn(2, 3, 2, 16)
    scaled = (history - mean[:, None]) / std[:, None]
    expected = rollout(surrogate.net, scaled, 4) * std[:, None] + mean[:, None]
    torch.testing.assert_close(surrogate(history), expected)


def test_description_survives_json_and_names_what_is_missing():
    values = DESCRIPTION.to_dict()
    assert Description.from_dict(values) == DESCRIPTION
    del values["dt"]
    with pytest.raises(InputError, match="lacks 'dt'"):
        Description.from_dict(values)
    with pytest.raises(InputError, match="2 axes but 1 lengths"):
        Description(("u",), ("1",), (8, 8), (1.0,), 1.0, 1, 1)


def test_mismatches_are_refused():
    net = MonarchFNO(6, 2, 4, (4,), (16,), n_layers=1)
    with pytest.raises(InputError, match="returns 2 channels, but the data has 1 fields"):
        Surrogate(net, Description(("u",), ("1",), (16,), (1.0,), 1.0, 6, 1))
    with pytest.raises(InputError, match="4 history frames do not divide"):
        Surrogate(net, Description(("u", "v"), ("1", "1"), (16,), (1.0,), 1.0, 4, 1))
    surrogate = Surrogate(net, DESCRIPTION)
    one, two = torch.ones(1), torch.ones(2)
    with pytest.raises(InputError, match="3 history frames of 1 fields"):
        surrogate.set_normalization(one, one, two, two)
    with pytest.raises(InputError, match="must be finite, std positive"):
        surrogate.set_normalization(two, 0 * two, two, two)
    with pytest.raises(InputError, match="history has 2 frames"):
        surrogate.rollout(torch.randn(1, 2, 2, 16), 1)
    with pytest.raises(InputError, match="n_steps is 0; it must be at least 1"):
        surrogate.rollout(torch.randn(1, 3, 2, 16), 0)
    with pytest.raises(InputError, match="no description"):
        _ = Surrogate(net).description


def test_roll_outs_can_be_means_over_symmetries():
    torch.manual_seed(0)
    net = MonarchFNO(2, 1, 4, (4, 4), (8, 8), n_layers=1)
    description = Description(("w",), ("1/s",), (8, 8), (1.0, 1.0), 1.0, 2, 3, {"forcing": FNO_FORCING})
    surrogate, group = Surrogate(net, description), fno_forced_navier_stokes()
    history = torch.randn(2, 2, 1, 8, 8)
    plain = surrogate.rollout(history, 3)
    expected = group.symmetrized(lambda moved: surrogate.rollout(moved, 3), history)
    assert not torch.allclose(expected, plain, rtol=1e-2)
    surrogate.symmetrize(group)
    torch.testing.assert_close(surrogate.rollout(history, 3), expected, rtol=0, atol=0)
    surrogate.symmetrize(None)
    torch.testing.assert_close(surrogate.rollout(history, 3), plain, rtol=0, atol=0)
    with pytest.raises(InputError, match="the symmetry is of an equation with forcing 'none'"):
        surrogate.symmetrize(free_navier_stokes())
