"""The parts of semi-pruning, by hand."""
import pytest
import torch

from mmpsw.methods.sparsity import drop, grow, hoyer, next_ratio, random_mask


def test_a_random_mask_has_the_share_it_should():
    weight = torch.zeros(3, 5, 7)
    masks = [random_mask(weight, 0.2, torch.Generator('cpu').manual_seed(seed))
             for seed in (0, 0, 1)]
    assert [int((~mask).sum()) for mask in masks] == [21, 21, 21]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_what_is_small_beside_its_filter_is_dropped():
    """Half of the mean of (1, 2, 3) is 1; of (4, 8) it is 3."""
    weight = torch.tensor([[1., -2., 3., 0.], [-4., 8., 2., 0.9]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    assert torch.equal(drop(weight, mask, 0.5), mask)  # 1 is not below 1
    assert drop(weight, mask, 0.51).tolist() == [
        [False, True, True, False], [True, True, False, False]]
    # The masked 2 does not count; if it did, 4 would stay.
    assert drop(weight, mask, 0.7).tolist() == [
        [False, True, True, False], [False, True, False, False]]
    dead = torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(drop(weight, dead, 0.5), dead)


def test_the_largest_gradients_grow():
    """Beside their filter's norm, 5 and 50: 0.8, 0.6 and 0.96, 0.28."""
    gradient = torch.tensor([[3., -4., 0.], [-48., 0., 14.]])
    mask = torch.tensor([[0, 0, 1], [0, 1, 0]], dtype=torch.bool)
    for count, there in ((0, []), (1, [3]), (2, [1, 3]), (3, [0, 1, 3]),
                         (9, [0, 1, 3, 5])):
        new = grow(gradient, mask, count) & ~mask
        assert new.flatten().nonzero().flatten().tolist() == there
    assert mask.sum() == 2


@pytest.mark.parametrize('zeros, ratio', [
    (0.45, 0.45),   # half of the target, 0.9 times
    (0.85, 0.9 * 0.85 / 0.9),   # 0.9 (1 - 0.1 / 2) is 0.855
    (0.86, 1.1 * 0.86 / 0.9),
    (0.99, 1.1 * 1.1),
])
def test_the_ratio_follows_the_share_of_zeros(zeros, ratio):
    assert next_ratio(zeros, 0.9, 0.1) == pytest.approx(ratio)


@pytest.mark.parametrize('rows, expected', [
    ([[0, 0, -7, 0]], 1), ([[2, -2, 2, 2]], 0),
    ([[1, 1, 0, 0]], 2 - 2**0.5), ([[3, 0, 4, 0]], 2 - 7 / 5),
    ([[0, 0, -7, 0], [2, 2, 2, 2], [0, 0, 0, 0]], 0.5),
])
def test_hoyers_sparsity(rows, expected):
    weight = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 2)
    assert hoyer(weight) == pytest.approx(expected)


def test_hoyers_sparsity_at_its_edges():
    """Of one number nothing can be zero beside others; of zeros all are."""
    assert hoyer(torch.ones(8, 1, 1, 1)) == 0
    assert hoyer(torch.zeros(8, 4, 3, 3)) == 1
