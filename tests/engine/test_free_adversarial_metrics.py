"""Metrics against closed forms and scipy; the networks' shapes and sizes."""
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.linalg import sqrtm

from mmpsw.engine.free_adversarial.metrics import (
    ClassifierFeatures,
    GeneratedImages,
    InceptionFeatures,
    class_score,
    frechet_distance,
    precision_and_recall,
)
from mmpsw.engine.free_adversarial.networks import (
    ConditionalBatchNorm,
    ResidualDiscriminator,
    ResidualGenerator,
)
from mmpsw.models import build_model
from mmpsw.registry import METRICS, MODELS

CLASSIFIER = 'configs/study/resnet18_digits.py'


def draws(count, size, seed=0):
    return torch.randn(count, size, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_against_scipy():
    one = draws(60, 5) @ draws(5, 5, 1)
    other = draws(40, 5, 2) @ draws(5, 5, 3) + 1
    cov, cov_other = (x.T.cov().numpy() for x in (one, other))
    expected = float((one.mean(0) - other.mean(0)).square().sum()) + (
        cov + cov_other - 2 * sqrtm(cov @ cov_other)).trace().real
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_what_is_shifted_and_scaled():
    """In one dimension: (m - m')^2 + (s - s')^2. Singular ones work too."""
    one = draws(50, 1)
    std = float(one.std())
    assert frechet_distance(one, 3 * one + 2) == pytest.approx(
        float((2 * one.mean() + 2)**2) + (2 * std)**2)
    few = draws(4, 20)  # fewer samples than features
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)


def test_class_score_by_its_extremes():
    sure = 100. * torch.eye(4).repeat(3, 1)
    assert class_score(sure) == pytest.approx(4)
    assert class_score(sure[:1].repeat(8, 1)) == pytest.approx(1)
    p = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    kl = [sum(q * math.log(q / m) for q, m in zip(row, (0.6, 0.4)))
          for row in p.tolist()]
    assert class_score(p.log()) == pytest.approx(math.exp(sum(kl) / 2))


def test_precision_and_recall_by_hand():
    """k = 1 on a line: balls as wide as to the nearest neighbour."""
    real = torch.tensor([[0.], [1.], [10.]])  # radii 1, 1, 9
    fake = torch.tensor([[-0.5], [2.5], [30.], [31.]])  # 3, 3, 1, 1
    # 2.5 is in the ball around 10; 30 and 31 are in none.
    assert precision_and_recall(real, fake, 1) == (0.5, pytest.approx(2 / 3))


def test_features_are_the_classifiers_own(tmp_path):
    """Of RGB images in [-1, 1] as of the BGR bytes that it was trained on."""
    from mmengine.config import Config
    torch.manual_seed(0)
    model = build_model(Config.fromfile(CLASSIFIER)).eval()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    metric = METRICS.build(dict(
        type='mmpsw.GeneratedImages', features=dict(
            type='mmpsw.ClassifierFeatures', name='digits',
            config=CLASSIFIER, checkpoint=str(tmp_path / 'weights.pth'))))
    bytes_bgr = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    images = bytes_bgr.flip(1) / 127.5 - 1
    metric.process(None, [dict(real=x, fake=x, label=k % 3)
                          for k, x in enumerate(images)])
    inputs = model.data_preprocessor(dict(inputs=bytes_bgr))['inputs']
    expected = model.extract_feat(inputs)[-1]
    torch.testing.assert_close(
        torch.stack([real for real, *_ in metric.results]).to(expected),
        expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        metric.results[0][2].to(expected), model(inputs)[0],
        rtol=1e-4, atol=1e-5)
    found = metric.evaluate(8)
    assert {*found} == {f'digits/{name}' for name in (
        'frechet', 'class_score', 'class_accuracy', 'precision', 'recall')}
    asked = torch.arange(8) % 3
    assert found['digits/class_accuracy'] == (
        model(inputs).argmax(1).cpu() == asked).float().mean()
    assert found['digits/frechet'] == pytest.approx(0, abs=1e-4)
    assert found['digits/precision'] == found['digits/recall'] == 1


def measured(monkeypatch, real, fake, logits, splits, most=10000):
    monkeypatch.setattr(MODELS, 'build', lambda features: features)
    metric = GeneratedImages(SimpleNamespace(
        name='given', metrics=('frechet', 'score'), splits=splits), most=most)
    labels = [0] * len(real)  # which only a classifier asks for
    first, second = (metric.compute_metrics([*zip(real, fake, logits, labels)])
                     for _ in range(2))
    assert first == second
    return first


def test_a_part_of_the_images_is_one_of_all_classes(monkeypatch):
    """Of data that is sorted by them; here the last five are generated
    badly."""
    classes = torch.arange(10).repeat_interleave(100)
    real, fake = (100 * classes[:, None] + draws(1000, 2, seed)
                  for seed in (0, 1))
    fake[500:] += 5000
    found = measured(monkeypatch, real, fake,
                     50. * torch.eye(10)[classes], splits=10, most=500)
    assert 9 < found['score'] < 10
    assert found['precision'] == pytest.approx(0.5, abs=0.1)
    assert found['recall'] == pytest.approx(0.5, abs=0.1)


def test_the_order_matters_to_parts_only(monkeypatch):
    real, fake, logits = draws(60, 3), draws(60, 3, 1), draws(60, 4, 2)
    found = measured(monkeypatch, real, fake, logits, splits=1)
    assert found.pop('score') == pytest.approx(class_score(logits), rel=1e-12)
    precision, recall = precision_and_recall(real, fake)
    assert found == dict(frechet=frechet_distance(real, fake),
                         precision=precision, recall=recall)


def test_features_without_weights_say_how_to_train_them():
    with pytest.raises(ValueError, match=r'no.pth.*tools/train.py c.py'):
        ClassifierFeatures('x', 'c.py', 'no.pth')


def test_inception_without_its_library_says_so(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'torch_fidelity', None)
    with pytest.raises(ValueError, match='pip install torch-fidelity'):
        GeneratedImages(dict(type='mmpsw.InceptionFeatures'))
    assert InceptionFeatures.metrics == ('FID', 'IS')


@pytest.mark.parametrize('size', [32, 64, 128])
@pytest.mark.parametrize('attention', [False, True])
def test_sizes_of_images(size, attention):
    keys = dict(image_size=size, num_classes=3, width=8, attention=attention)
    net_g, net_d = ResidualGenerator(**keys), ResidualDiscriminator(**keys)
    labels = torch.tensor([0, 2])
    images = net_g(torch.randn(2, 128), labels)
    scores = net_d(images, labels)
    assert images.shape == (2, 3, size, size) and images.abs().max() <= 1
    assert scores.real.shape == (2, ) and scores.classes.shape == (2, 3)
    scores.real.sum().backward()
    assert all(p.grad is not None for p in net_g.parameters())


def test_weights_of_the_published_networks():
    """128 channels everywhere: counted from the architecture by hand."""
    def conv(inputs, outputs, size=3):
        return inputs * outputs * size**2 + outputs

    block = 2 * conv(128, 128) + conv(128, 128, 1)
    net_g = ResidualGenerator(32, 10, 128)
    assert count(net_g) == (
        (128 + 1) * 128 * 4**2 + 3 * (block + 2 * 2 * 10 * 128)
        + 2 * 128 + conv(128, 3))
    net_d = ResidualDiscriminator(32, 10, 128)
    assert count(net_d) == (
        conv(3, 128) + conv(128, 128) + conv(3, 128, 1) + 3 * block
        + 128 + 1 + (128 + 1) * 10)


def count(net):
    return sum(param.numel() for param in net.parameters())


def test_spectral_norm_holds_the_largest_singular_value():
    torch.manual_seed(0)
    net = ResidualDiscriminator(32, 3, 8, head='projection',
                                spectral_norm=True)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    for _ in range(50):
        net(images, labels)
    net.eval()
    for layer in (net.blocks[1].conv1, net.score, net.classes):
        value = torch.linalg.svdvals(layer.weight.flatten(1))[0]
        assert float(value) == pytest.approx(1, abs=0.02)


def test_a_projection_scores_an_image_by_its_class():
    net = ResidualDiscriminator(32, 2, 8, head='projection')
    image = torch.randn(1, 3, 32, 32).repeat(2, 1, 1, 1)
    scores = net(image, torch.tensor([0, 1]))
    features = net.blocks(image).relu().sum((2, 3))[0]
    gap = (net.classes.weight[0] - net.classes.weight[1]) @ features
    torch.testing.assert_close(scores.real[0] - scores.real[1], gap,
                               rtol=1e-3, atol=1e-4)
    assert scores.classes is None


def test_batch_norm_of_a_class():
    norm = ConditionalBatchNorm(2, 3)
    norm.scale.weight.data = torch.tensor([[1., 1.], [2., 3.], [0., 1.]])
    norm.shift.weight.data = torch.tensor([[0., 0.], [1., -1.], [0., 0.]])
    x = torch.randn(2, 2, 4, 4)
    plain = torch.nn.functional.batch_norm(x, None, None, training=True)
    out = norm(x, torch.tensor([1, 1]))
    torch.testing.assert_close(out[:, 0], 2 * plain[:, 0] + 1)
    torch.testing.assert_close(out[:, 1], 3 * plain[:, 1] - 1)


@pytest.mark.parametrize('keys, words', [
    (dict(image_size=48), 'image_size=48'), (dict(head='none'), "head='none'")
])
def test_networks_that_do_not_exist(keys, words):
    with pytest.raises(ValueError, match=words):
        MODELS.build(dict(dict(
            type='mmpsw.ResidualDiscriminator', image_size=32,
            num_classes=2), **keys))


def test_the_shipped_classifiers_are_where_the_configs_say():
    from mmengine.config import Config
    for path in Path('configs/gan').glob('*digits*.py'):
        features = Config.fromfile(path).val_evaluator.features
        assert Path(features.config).is_file()
