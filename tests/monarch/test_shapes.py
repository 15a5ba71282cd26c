import pytest

from sciml_monarch.monarch.shapes import block_counts, factor_pair, inner_width


@pytest.mark.parametrize(
    ("n", "pair"),
    [(1, (1, 1)), (512, (32, 16)), (160, (16, 10)), (372, (31, 12)), (640, (32, 20)), (373, (373, 1))],
)
def test_factor_pair_is_the_one_nearest_to_the_root(n, pair):
    assert factor_pair(n) == pair


def test_default_blocks_of_a_square_matrix_multiply_to_its_size():
    for n in range(1, 200):
        k, l = block_counts(n, n, None)
        assert k * l == n
        assert k >= l


def test_blocks_that_do_not_divide_are_named_with_the_mend():
    with pytest.raises(ValueError, match=r"5 blocks do not divide 12 columns; choose one of \[1, 2, 3, 4, 6, 12\]"):
        block_counts(10, 12, 5)
    with pytest.raises(ValueError, match="3 blocks do not divide 10 rows"):
        block_counts(10, 12, (4, 3))
    with pytest.raises(ValueError, match="0 blocks"):
        block_counts(10, 12, 0)
    with pytest.raises(ValueError, match="at least 1, but got 0"):
        factor_pair(0)
    with pytest.raises(ValueError, match="at least 1, but got 0 columns"):
        block_counts(4, 0, 1)


def test_inner_width():
    assert inner_width(1024, 1024, 4, 4, None) == 256  # the paper's: rank 64 of 256
    assert inner_width(512, 512, 32, 16, None) == 16  # classical: rank 1
    assert inner_width(12, 12, 3, 4, 2) == 8
    for rank in (0, 5):
        with pytest.raises(ValueError, match=rf"rank {rank} is outside 1\.\.4: the sub-blocks are 4 x 5"):
            inner_width(16, 20, 4, 4, rank)
