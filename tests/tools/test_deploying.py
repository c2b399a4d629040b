"""What tools/README.md says of deploying, done with the three real models."""
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from mmpsw.commands import average_checkpoints
from mmpsw.configs import load_config
from mmpsw.models import build_model

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / 'tools/README.md').read_text()
CODE = re.search(r'```python\n(import torch\n.*?)```', README, re.S)[1]


def average(*argv):
    assert average_checkpoints.main([*argv, '--out', 'deployed.pth']) == 0
    return torch.load('deployed.pth', weights_only=True)


@pytest.mark.parametrize('part', ['live'])
def test_the_weights_beside_the_deployed_ones(folder, config, part):
    """Of two checkpoints of psw, against what they hold."""
    deployed = average('run/iter_6.pth')
    paths = ['run/iter_6.pth', 'run/iter_8.pth']
    found = average(*paths, '--overwrite', '--weights', part)
    saved = [torch.load(path, weights_only=False) for path in paths]
    assert found['meta']['sources'] == ['iter_6.pth', 'iter_8.pth']
    named = [one['live_state_dict'] if part == 'live' else
             one['psw'][''][part] for one in saved]
    model = build_model(load_config_of(config))
    differs = False
    for name, _ in model.named_parameters():
        value = found['state_dict'][name]
        torch.testing.assert_close(value, sum(
            one[name].cpu() for one in named) / 2)
        differs |= not torch.equal(value, deployed['state_dict'][name])
    assert differs
    # counters are the last checkpoint's
    counter = 'backbone.bn1.num_batches_tracked'
    assert found['state_dict'][counter] == saved[-1]['state_dict'][counter]


def load_config_of(config):
    from mmpsw.commands import options
    cfg = load_config(config[0])
    parsed = average_checkpoints.parse_args(['x', '--out', 'x', *config[1]])
    options.merge_options(cfg, parsed)
    return cfg


def test_weights_that_are_not_there(folder, config, capsys):
    assert average_checkpoints.main([
        'run/iter_8.pth', '--weights', 'mean', '--out', 'out.pth']) == 2
    assert "has no 'mean' weights" in capsys.readouterr().err
    assert not Path('out.pth').exists()


@pytest.mark.parametrize(('config', 'size', 'outputs'), [
    ('study/resnet18_sign_digits', (96, 96), 1),
    ('study/unet_fcn_dsb2018', (64, 64), 1),
    ('study/retinanet_r18_bccd', (96, 128), 10),
])
@pytest.mark.filterwarnings('ignore')
def test_torch_export_and_onnx(config, size, outputs, tmp_path, monkeypatch):
    for needed in ('onnx', 'onnxscript'):
        pytest.importorskip(needed)
    onnxruntime = pytest.importorskip('onnxruntime')
    monkeypatch.chdir(tmp_path)
    path = str(ROOT / f'configs/{config}.py')
    torch.manual_seed(0)
    model = build_model(load_config(path)).cpu()
    for module in model.modules():  # fresh ones would show no mistake
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save(dict(state_dict=model.state_dict(), meta={}), 'epoch_1.pth')
    average('epoch_1.pth')
    code = re.sub('config, size = .*', f'config, size = {path!r}, {size}',
                  CODE)
    exec(code, {})
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        expected = tree_leaves(model.eval()(images))
    session = onnxruntime.InferenceSession('deployed.onnx')
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    program = torch.export.load('deployed.pt2').module()
    assert len(found) == len(expected) == outputs
    for one, other, right in zip(found, tree_leaves(program(images)),
                                 expected):
        torch.testing.assert_close(torch.from_numpy(one), right, rtol=1e-4,
                                   atol=1e-4)
        torch.testing.assert_close(other, right, rtol=1e-4, atol=1e-4)
