"""Fixed classifiers against scipy's matrix and loops."""
import copy
import math

import pytest
import scipy.linalg
import torch
from torch import nn

from mmpsw.methods.hadamard import (
    FixedOrthogonalConv2d,
    FixedOrthogonalLinear,
    HadamardConv2d,
    HadamardLinear,
)

# N, C, whether the product is a transform, whether columns are drawn
SHAPES = [(8, 3, False, False), (24, 20, False, True), (6, 21, False, True),
          (64, 64, True, False), (48, 64, True, True)]
DENSE, DRAWN, FAST = SHAPES[0], SHAPES[1], SHAPES[4]


def layer(shape, kind=HadamardLinear, **keys):
    torch.manual_seed(0)
    return kind(*shape[:2], **keys)


def entries(fixed):
    """H[:C, columns] by scipy, with the columns that the layer has taken."""
    size = 2
    while size < max(fixed.features, fixed.classes):
        size *= 2
    matrix = scipy.linalg.hadamard(size)[:fixed.classes]
    if fixed.fast:
        return matrix[:, fixed.columns.cpu()]
    taken = -fixed.matrix.cpu().numpy()
    drawn = [next(column for column in range(size)
                  if (matrix[:, column] == values).all())
             for values in taken.T]
    if fixed.classes == size:
        assert len(set(drawn)) == fixed.features
    return matrix[:, drawn]


def by_loop(fixed, x):
    """Equation and eps of the paper's code, one number after the other."""
    matrix, scale = entries(fixed), fixed.scale.item()
    logits = x.new_zeros(len(x), fixed.classes)
    for i, row in enumerate(x.tolist()):
        norm = sum(value * value for value in row)**0.5
        for c in range(fixed.classes):
            dot = sum(int(sign) * value / (norm + 1e-8)
                      for sign, value in zip(matrix[c], row, strict=True))
            logits[i, c] = fixed.bias[c].item() - scale * dot
    return logits


@pytest.mark.parametrize('shape', SHAPES)
def test_the_equation(shape):
    fixed = layer(shape).double()
    assert fixed.fast is shape[2]
    first = scipy.linalg.hadamard(fixed.size)[:shape[1], :shape[0]]
    assert (entries(fixed) != first).any() == shape[3]
    x = torch.randn(3, shape[0], dtype=torch.float64)
    torch.testing.assert_close(fixed(x).cpu(), by_loop(fixed, x.cpu()),
                               rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('shape', [DENSE, DRAWN, FAST])
def test_gradients(shape):
    fixed = layer(shape).double()
    x = torch.randn(2, shape[0], dtype=torch.float64, requires_grad=True)

    def logits(x, scale, bias):
        return torch.func.functional_call(
            fixed, dict(scale=scale, bias=bias), x)

    assert torch.autograd.gradcheck(logits, (x, fixed.scale, fixed.bias))


def test_what_is_learned_and_how_it_begins():
    fixed = layer((512, 100))
    assert fixed.state_dict().keys() == {'scale', 'bias'}
    assert fixed.scale.tolist() == pytest.approx([0.1])
    assert 0.09 < fixed.bias.abs().max() <= 0.1
    other = layer((512, 100), FixedOrthogonalLinear)
    assert other.scale.tolist() == [10] and not other.bias.any()
    assert {name for name, _ in other.named_parameters()} == {'scale', 'bias'}


@pytest.mark.parametrize('shape, cosine, first', [
    ((512, 10), 0, 0), ((768, 256), 0, 0),  # 256 divides 768
    ((768, 1000), 0.055, 1 / 3), ((512, 1000), 0.098, 1),
])
def test_the_rows_that_are_left(shape, cosine, first):
    """Against all products of two rows; what the first columns leave."""
    fixed = layer(shape)
    rows = torch.tensor(entries(fixed).astype(float))
    products = (rows @ rows.T / shape[0]).fill_diagonal_(0).abs()
    assert fixed.coherence == pytest.approx(products.max().item(), abs=1e-6)
    assert fixed.coherence == pytest.approx(cosine, abs=1e-3)
    rows = torch.tensor(scipy.linalg.hadamard(fixed.size)[
        :shape[1], :shape[0]].astype(float))
    products = (rows @ rows.T / shape[0]).fill_diagonal_(0).abs()
    assert products.max().item() == pytest.approx(first)


class HadamardProj(nn.Module):
    """That of eladhoffer/fix_your_classifier, without its switches."""

    def __init__(self, input_size, output_size):
        super().__init__()
        size = 2**int(math.ceil(math.log2(max(input_size, output_size))))
        self.proj = torch.tensor(scipy.linalg.hadamard(size)).double()
        self.input_size, self.output_size = input_size, output_size

    def forward(self, x, scale, bias):
        x = x / (x.norm(2, -1, keepdim=True) + 1e-8)
        return -scale * nn.functional.linear(
            x, self.proj[:self.output_size, :self.input_size]) + bias


@pytest.mark.parametrize('shape', [*SHAPES, (768, 1000)])
def test_the_official_logits(shape):
    """Also where rows repeat, and by matrix and by transform."""
    fixed = layer(shape, columns='first').double()
    x = torch.randn(3, shape[0], dtype=torch.float64)
    torch.testing.assert_close(
        fixed(x), HadamardProj(*shape[:2])(x, fixed.scale, fixed.bias),
        rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('columns', ['best', 'first'])
@pytest.mark.parametrize('shape, first', [
    ((8, 3), 1), ((8, 4), 1), ((24, 20), 1), ((48, 63), 1),
    ((768, 1000), 24)])
def test_rows_from_another_one_on(shape, first, columns):
    """Those of scipy's matrix, and the largest of their cosines."""
    fixed = layer(shape, columns=columns, first_row=first).double()
    rows = -fixed._product(torch.eye(shape[0], dtype=torch.float64)).T.cpu()
    matrix = torch.tensor(scipy.linalg.hadamard(fixed.size)).double()
    matrix = matrix[first:first + shape[1]]
    if columns == 'first':
        assert torch.equal(rows, matrix[:, :shape[0]])
    else:
        columns_of = {tuple(column) for column in matrix.T.tolist()}
        assert {tuple(column) for column in rows.T.tolist()} <= columns_of
    products = (rows @ rows.T / shape[0]).fill_diagonal_(0).abs()
    assert fixed.coherence == pytest.approx(products.max().item(), abs=1e-9)


def test_the_columns_are_the_same_everywhere():
    """They are not saved, so that a checkpoint lives on these numbers."""
    assert layer((512, 1000)).columns[:9].tolist() == [
        9, 10, 12, 14, 15, 19, 22, 23, 24]
    again, other = layer((512, 1000)), layer((512, 1000), seed=1)
    assert not torch.equal(again.columns, other.columns)


@pytest.mark.parametrize('shape', [(8, 3), (3, 8)])
def test_orthogonal(shape):
    fixed = layer(shape, FixedOrthogonalLinear).double()
    q = fixed.matrix
    product = q @ q.T if shape[0] > shape[1] else q.T @ q
    torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64),
                               atol=1e-6, rtol=0)
    x = torch.randn(4, shape[0], dtype=torch.float64)
    expected = 10 * x @ q.T / x.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(fixed(x), expected)
    torch.manual_seed(5)  # its seed is its own
    assert torch.equal(FixedOrthogonalLinear(*shape).matrix, q.float())
    assert not torch.equal(FixedOrthogonalLinear(*shape, seed=1).matrix, q)


@pytest.mark.parametrize('kinds', [
    (HadamardLinear, HadamardConv2d),
    (FixedOrthogonalLinear, FixedOrthogonalConv2d)])
@pytest.mark.parametrize('bias', [True, False])
def test_a_convolution_is_the_linear_layer_at_each_pixel(kinds, bias):
    linear, conv = (layer((48, 64), kind, bias=bias) for kind in kinds)
    conv.load_state_dict(linear.state_dict())
    x = torch.randn(2, 48, 3, 5)
    torch.testing.assert_close(conv(x).movedim(1, -1),
                               linear(x.movedim(1, -1)))


@pytest.mark.parametrize('shape', [(512, 10), (512, 1000)])
def test_half_precision_has_its_norm_in_fp32(shape):
    """fp16 ends at 65504, below the sum of 512 squares of 200."""
    fixed = layer(shape)
    x = 200 * torch.randn(4, 512).half()
    expected = fixed(x.float())
    torch.testing.assert_close(copy.deepcopy(fixed).half()(x).float(),
                               expected, atol=2e-3, rtol=2e-3)
    with torch.autocast(x.device.type, torch.bfloat16):
        found = fixed(x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_features_that_are_all_zero(dtype):
    """As behind a ReLU, which lets no gradient through then."""
    fixed = layer(DENSE).to(dtype)
    x = torch.zeros(1, 8, dtype=dtype, requires_grad=True)
    logits = fixed(x.relu())
    assert torch.equal(logits[0], fixed.bias)
    logits.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize('kind, shape', [
    (HadamardLinear, FAST), (HadamardConv2d, DRAWN)])
def test_export(kind, shape, device, tmp_path):
    fixed = layer(shape, kind).eval()
    linear = fixed.dim == -1
    x = torch.randn(5, shape[0], *([] if linear else [3, 4]))
    exported = torch.export.export(fixed, (x, ), dynamic_shapes=(
        {0: torch.export.Dim('batch', min=2)}, ))
    torch.testing.assert_close(exported.module()(x[:2]), fixed(x[:2]))
    if device != 'cpu':
        return
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    torch.onnx.export(
        exported, (), tmp_path / 'fixed.onnx', dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / 'fixed.onnx')
    found, = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), fixed(x).detach())


@pytest.mark.parametrize('make, message', [
    (lambda: HadamardLinear(8, 1), r'cannot tell 1 class.*because'),
    (lambda: HadamardConv2d(1, 8), r'by 1 feature.*keep the learned'),
    (lambda: FixedOrthogonalLinear(8, 1), 'keep the learned layer'),
    (lambda: HadamardLinear(4, 100), 'cannot be told by 4 features.*give'),
    (lambda: HadamardLinear(8, 3, columns='last'), "use 'best' or 'first'"),
    (lambda: HadamardLinear(8, 8, first_row=1), 'of the 8 rows: use 0 to 0'),
    (lambda: HadamardConv2d(8, 3, 3, padding=1), 'kernel_size=3.*learned'),
    (lambda: HadamardConv2d(8, 4, (1, 1), groups=2), 'groups=2.*each pixel'),
])
def test_what_is_not_possible(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_checkpoint_of_another_layer():
    """Is named, and does not stop what loads with strict=False."""
    kinds = nn.Linear, HadamardLinear, FixedOrthogonalLinear
    for kind in kinds[1:]:
        for other in kinds:
            model = nn.ModuleDict(dict(fc=layer((8, 3), kind)))
            state = nn.ModuleDict(dict(fc=layer((8, 3), other))).state_dict()
            if other is kind:
                model.load_state_dict(state)
                continue
            name = 'a learned' if other is nn.Linear else 'another fixed'
            with pytest.warns(UserWarning, match=f"'fc'.* is {name} class.*"
                              f'{kind.__name__} cannot take over.*anew'):
                model.load_state_dict(state, strict=False)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError):
        model.load_state_dict(dict(state, **{'fc.weight': state['fc.scale']}))


@pytest.mark.parametrize('features, classes, fast', [
    (512, 10, False), (512, 1000, True), (64, 1000, False),
    (512, 21841, True)])
def test_the_transform_is_taken_where_it_was_faster(features, classes, fast):
    assert HadamardLinear(features, classes).fast is fast
