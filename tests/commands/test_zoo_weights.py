"""The weights that a zoo publishes: found here, or downloaded, or named."""
import http.server
import socket
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmpsw import configs, zoo
from mmpsw.commands import test as testing
from mmpsw.commands import train
from mmpsw.compare.runs import read_run
from mmpsw.models import build_model

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'
PSPNET = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'
CIFAR = 'mmpretrain::resnet/resnet18_8xb16_cifar10'
R50 = 'resnet50_v1c-2cccc1ad.pth'


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.delenv('MMPSW_WEIGHTS', raising=False)


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


def test_the_metafiles_name_the_weights(tmp_path):
    assert zoo.weights_of(RETINANET).endswith(
        '/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth')
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = '{PSPNET}.py'\nmodel = dict(a=1)\n")
    assert str(zoo.find_stock(mine)) == f'{PSPNET}.py'
    assert zoo.weights_of(mine).endswith('_20200605_003338-2966598c.pth')
    mine.write_text('a = 1')
    with pytest.raises(ValueError, match='stems from no config of a model zo'):
        zoo.weights_of(mine)
    with pytest.raises(ValueError, match='mmpretrain publishes no weights'):
        zoo.weights_of('mmpretrain::lenet/lenet5_mnist')


def test_this_machine_is_asked_before_the_server(tmp_path, cache,
                                                 monkeypatch):
    address = 'http://localhost:1/a/net-12345678.pth'
    own = tmp_path / 'own'
    own.mkdir()
    for place in (cache, own):
        (place / 'net-12345678.pth').write_text('x')
        folder = own if place == own else None
        assert zoo.fetch(address, folder).parent == place
    monkeypatch.setenv('MMPSW_WEIGHTS', str(own))
    assert zoo.fetch(address).parent == own
    with pytest.raises(ValueError, match="--weights '/nowhere' is no folder"):
        zoo.fetch(address, '/nowhere')


@pytest.fixture
def server(tmp_path):
    """The address of a server that has the folder ``there``."""
    folder = tmp_path / 'there'
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler,
                      directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{served.server_address[1]}'
        served.shutdown()


def test_what_is_downloaded_is_kept(tmp_path, server):
    (tmp_path / 'there' / 'net.pth').write_text('weights')
    path = zoo.fetch(f'{server}/net.pth')
    assert path == tmp_path / 'torch/hub/checkpoints/net.pth'
    (tmp_path / 'there' / 'net.pth').unlink()
    assert zoo.fetch(f'{server}/net.pth').read_text() == 'weights'


def test_a_server_that_sends_nothing_is_named(tmp_path, server, monkeypatch):
    (tmp_path / 'there' / 'net-00000000.pth').write_text('others')
    silent = socket.create_server(('127.0.0.1', 0))
    monkeypatch.setattr(zoo, '_PATIENCE', 0.2)
    for address, why in [
            (f'{server}/no.pth', '404'),
            (f'{server}/net-00000000.pth', 'invalid hash'),
            ('http://127.0.0.1:1/no.pth', 'refused'),
            (f'http://127.0.0.1:{silent.getsockname()[1]}/no.pth', 'timed')]:
        with pytest.raises(ValueError, match=why) as info:
            zoo.fetch(address)
        assert f"the weights '{address.rpartition('/')[2]}' are not on this" \
            in str(info.value)
        assert '--weights or MMPSW_WEIGHTS names, or into' in str(info.value)
    assert not list(tmp_path.rglob('torch/**/*.pth*'))
    assert socket.getdefaulttimeout() is None


def test_a_backbone_of_the_server_is_found_by_name(tmp_path, cache,
                                                   monkeypatch):
    """Half of mmseg's users met a traceback there."""
    cfg = configs.load_config(PSPNET)
    assert cfg.model.pretrained == 'open-mmlab://resnet50_v1c'
    monkeypatch.setattr(
        torch.hub, 'download_url_to_file',
        lambda *_, **__: (_ for _ in ()).throw(OSError('silent')))
    with pytest.raises(ValueError, match=f"'{R50}' are not on this machine"):
        zoo.localise(cfg, PSPNET)
    (cache / R50).write_text('')  # where mmengine looks for it
    zoo.localise(cfg, PSPNET)
    assert cfg.model.pretrained == 'open-mmlab://resnet50_v1c'
    own = tmp_path / 'own'
    own.mkdir()
    (own / R50).write_text('')
    zoo.localise(cfg, PSPNET, own)
    assert cfg.model.pretrained == str(own / R50)


def test_a_whole_models_weights_need_no_backbone(tmp_path):
    """Its file may be as far away, and Swin asks whether there is one."""
    for name in (RETINANET, PSPNET):
        cfg = configs.load_config(name)
        cfg.load_from = zoo.FROM_ZOO
        path = tmp_path / zoo.weights_of(name).rpartition('/')[2]
        path.write_text('')
        zoo.localise(cfg, name, tmp_path)
        assert cfg.load_from == str(path)
        assert cfg.model.backbone.get('init_cfg') is None
        assert cfg.model.get('pretrained') is None
        assert 'Pretrained' not in str(cfg.model.to_dict())


def test_torchvisions_weights_and_paths_are_left_alone():
    cfg = configs.load_config(RETINANET)
    cfg.load_from = 'mine.pth'
    before = cfg.to_dict()
    zoo.localise(cfg, RETINANET)
    assert cfg.to_dict() == before


# From the zoo's weights, in a checkpoint of the old form


@pytest.fixture
def mine(folder):
    """A config that inherits a stock one, with the digits for data."""
    digits = Config.fromfile(Path(__file__).resolve().parents[2] / (
        'configs/_base_/datasets/digits_classification.py'))
    text = f"_base_ = '{CIFAR}.py'\ntrain_cfg = dict(max_epochs=1)\n"
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader',
                'data_preprocessor'):
        settings = dict(digits[key].to_dict(), _delete_=True)
        if 'dataset' in settings:
            settings.update(num_workers=0, persistent_workers=False)
            settings['dataset']['indices'] = 40
        text += f'{key} = {settings!r}\n'
    Path('mine.py').write_text(text)
    cfg = configs.load_config('mine.py')
    torch.manual_seed(5)
    weights = build_model(cfg).state_dict()
    Path('published').mkdir()
    name = zoo.weights_of('mine.py').rpartition('/')[2]
    torch.save(dict(meta=dict(CLASSES=('a', 'b'), config='model = dict()',
                              mmcls_version='0.12.0', epoch=200, iter=7),
                    state_dict={f'module.{key}': value
                                for key, value in weights.items()}),
               f'published/{name}', _use_new_zipfile_serialization=False)
    return 'mine.py'


def test_point_0_is_the_zoos_number(mine, capsys):
    assert testing.main([mine, 'zoo', '--weights', 'published',
                         '--work-dir', 'tested']) == 0
    tested, = Path('tested').glob('*/*.json')
    assert train.main([
        mine, '--from-zoo', '--weights', 'published', '--seed', '0',
        '--work-dir', 'run', '--cfg-options',
        'optim_wrapper.optimizer.lr=0.0']) == 0
    points = read_run('run').validations
    assert list(points) == [0, 1]
    assert f'"accuracy/top1": {points[0]["accuracy/top1"]}' in (
        tested.read_text())


def test_the_first_validation_leaves_the_training_as_it_is(mine):
    weights = []
    for flag in ([], ['--validate-first']):
        assert train.main([mine, '--seed', '0', '--work-dir', 'run',
                           '--overwrite', *flag]) == 0
        weights.append(torch.load('run/epoch_1.pth')['state_dict'])
    assert all(torch.equal(weights[0][key], weights[1][key])
               for key in weights[0])


def test_weights_that_are_nowhere_are_told_before_anything_is_made(
        mine, capsys, monkeypatch):
    monkeypatch.setattr(
        torch.hub, 'download_url_to_file',
        lambda *_, **__: (_ for _ in ()).throw(OSError('silent')))
    for command in (partial(train.main, [mine, '--from-zoo']),
                    partial(testing.main, [mine, 'zoo'])):
        assert command() == 2
        error = capsys.readouterr().err
        assert 'resnet18_b16x8_cifar10_20210528-bd6371c8.pth' in error
        assert '(silent)' in error and error.count('\n') == 1
    assert not Path('work_dirs').exists()
