"""The loss of weights: the same each time, and that of batch norm's mode."""
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmpsw.analysis.objective import TrainingLoss


class Net(BaseModel):
    """Batch norm, dropout, and a loss that draws and that writes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.dropout = nn.Dropout(0.5)
        self.draws = False

    def forward(self, x, mode='tensor'):
        assert self.training  # as some detectors' losses need it
        out = self.dropout(self.norm(x))
        if self.draws:
            out = out + torch.rand(())
        x.zero_()
        return dict(loss_a=out.square().mean(), loss_b=out.mean(),
                    acc=torch.tensor(9.))


def batches():
    generator = torch.Generator().manual_seed(0)
    return [dict(x=torch.randn(size, 3, generator=generator) * 2 + 1)
            for size in (5, 9)]


def test_with_the_running_statistics_and_without_dropout():
    net = Net()
    net.norm.running_mean.copy_(torch.tensor([1., 2., 3.]))
    net.norm.running_var.copy_(torch.tensor([4., 9., 1.]))
    out = [(batch['x'] - net.norm.running_mean) /
           (net.norm.running_var + 1e-5).sqrt() for batch in batches()]
    expected = sum((o.square().mean() + o.mean()).item() for o in out) / 2
    loss = TrainingLoss(net, batches())
    for _ in range(2):  # nothing is used up
        assert loss() == pytest.approx(expected, rel=1e-5)
    assert net.norm.running_mean.tolist() == [1., 2., 3.]
    assert net.training and net.norm.training


def test_with_the_statistics_of_the_batches():
    net = Net()
    data = [batch['x'] for batch in batches()]
    mean = sum(x.mean(0) for x in data) / 2
    var = sum(x.var(0) for x in data) / 2
    out = [(x - mean) / (var + 1e-5).sqrt() for x in data]
    expected = sum((o.square().mean() + o.mean()).item() for o in out) / 2
    loss = TrainingLoss(net, batches(), recalibrated=True)
    assert loss() == pytest.approx(expected, rel=1e-5)


def test_what_is_random_in_a_loss_is_drawn_again():
    net = Net()
    net.draws = True
    loss = TrainingLoss(net, batches(), seed=3)
    first = loss()
    torch.rand(7)
    assert loss() == first
    assert TrainingLoss(net, batches(), seed=4)() != first
