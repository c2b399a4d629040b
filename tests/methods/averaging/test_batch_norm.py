import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from mmpsw.methods.averaging import recalibrate


def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=0.3))
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8))
    return model


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 8, 8, generator=generator, device='cpu').to(
        torch.get_default_device()) for _ in range(count)]


def test_equals_torch_update_bn_and_restores_the_rest():
    model, other = make(), make()
    torch.manual_seed(5)
    update_bn(batches(), other)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert recalibrate(model, model, batches()) == 2
    assert torch.equal(torch.get_rng_state(), before)
    for i in (1, 4):
        assert torch.equal(model[i].running_mean, other[i].running_mean)
        assert torch.equal(model[i].running_var, other[i].running_var)
        assert model[i].num_batches_tracked == 3
    assert (model[1].momentum, model[4].momentum) == (0.1, 0.3)


def test_frozen_layers_keep_their_statistics():
    model = make()
    model[1].eval()
    before = copy.deepcopy(model[1].state_dict())
    assert recalibrate(model, model, batches()) == 1
    for key, value in model[1].state_dict().items():
        assert torch.equal(value, before[key])


def test_a_failure_leaves_everything_as_it_was():
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='no batch'):
        recalibrate(model, model, [])
    with pytest.raises(RuntimeError):
        recalibrate(model, model, [*batches(1), torch.randn(2, 5, 8, 8)])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_without_batch_norm_no_batch_is_read():
    model = nn.Linear(2, 2)
    batches = iter([1, 2])
    assert recalibrate(model, model, batches) == 0
    assert next(batches) == 1
