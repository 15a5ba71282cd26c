import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.monarch import MonarchTransform
from sciml_monarch.monarch.thin import ThinMatrices, Wanted
from tests.helpers import randn

# points and kept rows or columns of each transform: of one size and of several, in any order, all, one, a prime
CASES = [
    [(16, [14, 15, 0, 1])],
    [(64, [60, 61, 0, 1, 2]), (64, [5]), (64, [*range(64)])],
    [(12, [11, 0]), (7, [3, 1]), (128, [*range(33)]), (12, [4])],
]


def learned(n, columns, seed):
    transform = MonarchTransform(n, inverse=columns, dtype=torch.float64)
    with torch.no_grad():
        for i, w in enumerate(transform.parameters()):
            w += 0.1 * randn(*w.shape, seed=seed + i)
    return transform


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("n_layers", [1, 3])
def test_equals_each_transform_by_itself_with_gradients(case, n_layers):
    wanted, layers, expected = [], [[] for _ in range(n_layers)], []
    for i, (n, which) in enumerate(case):
        for columns in (False, True):
            index, scale = torch.tensor(which), torch.tensor([1.0, -2.0])[:, None].expand(2, len(which))
            wanted.append(Wanted(n, index, columns, scale))
            for number, transforms in enumerate(layers):
                transform = learned(n, columns, 100 * number + 10 * i)
                planes = torch.stack((transform.thin_columns_planes if columns else transform.thin_planes)(index))
                transforms.append(transform)
                expected.append((planes.mT if columns else planes) * scale[..., None])
    found = [matrix for part in zip(*ThinMatrices(wanted).double()(layers), strict=True) for matrix in part]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    parameters = [w for transforms in layers for transform in transforms for w in transform.parameters()]
    weights = [randn(*m.shape, seed=90 + i) for i, m in enumerate(expected)]
    gradients = (
        torch.autograd.grad(sum((m * w).sum() for m, w in zip(ms, weights, strict=True)), parameters)
        for ms in (found, expected)
    )
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_transforms_with_other_blocks_are_refused():
    thin = ThinMatrices([Wanted(16, torch.arange(3), False, torch.ones(2, 3))])
    with pytest.raises(InputError, match=r"must have w1 of shape \(4, 4, 4, 2\)"):
        thin([[MonarchTransform(16, blocks=8)]])
    with pytest.raises(InputError, match="complex result"):
        thin([[MonarchTransform(16, "dct")]])
