"""What a run logs reaches TensorBoard, MLflow and W&B, in local mode.

Each is skipped where it is not installed. What is compared with: the message
hub, and a validation by hand of the average that was saved.
"""
import json
import struct
import time

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from toy import Points, Toy, runner

pytestmark = pytest.mark.filterwarnings('ignore')


def read_tensorboard(folder):
    from tensorboard.backend.event_processing import event_accumulator
    (path, ) = folder.rglob('events.*')
    events = event_accumulator.EventAccumulator(str(path))
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)}
            for name in events.Tags()['scalars']}


def read_mlflow(folder):
    import mlflow
    client = mlflow.MlflowClient(f'sqlite:///{folder}.db')
    (run, ) = client.search_runs([
        one.experiment_id for one in client.search_experiments()])
    return {
        name: {point.step: point.value
               for point in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics}


def read_wandb(folder):
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record
    wandb.finish()
    (path, ) = folder.rglob('*.wandb')
    records = []
    while not any(record.HasField('exit') for record in records):
        time.sleep(0.1)  # another process is still writing
        records = [Record.FromString(data)
                   for data in leveldb_records(path.read_bytes())]
    found, epoch = {}, 0
    for record in records:
        row = {item.key or item.nested_key[0]: json.loads(item.value_json)
               for item in record.history.item}
        # mmengine gives it no step: a row has its iteration, or is validated
        epoch += 'error' in row
        for name, value in row.items():
            found.setdefault(name, {})[row.get('iter', epoch)] = value
    return found


def leveldb_records(content, block=2**15):
    """W&B's offline file: 7 bytes, then a log as LevelDB writes it."""
    place, whole = 7, b''
    while place + 7 <= len(content):
        if block - place % block < 7:  # too little for a header: padding
            place += block - place % block
        _, length, kind = struct.unpack_from('<IHB', content, place)
        whole += content[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            yield whole
            whole = b''


BACKENDS = {
    'tensorboard': (dict(type='TensorboardVisBackend'), read_tensorboard),
    # mmengine's own choice, a folder, is refused by MLflow >= 3.7
    'mlflow': (dict(type='MLflowVisBackend', exp_name='toys',
                    tracking_uri='sqlite:///run.db'), read_mlflow),
    'wandb': (dict(type='WandbVisBackend', init_kwargs=dict(mode='offline')),
              read_wandb),
}


@pytest.mark.parametrize('name', BACKENDS)
def test_resamplings_and_the_averages_validations(name, tmp_path, monkeypatch):
    pytest.importorskip(name)
    settings, read = BACKENDS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('WANDB_SILENT', 'true')
    run = runner(tmp_path / 'run', dict(type='PSWA', write_back=False),
                 cfg=Config(dict(work_dir=str(tmp_path / 'run'))),
                 visualizer=dict(type='Visualizer', vis_backends=[settings]))
    (logger, ) = (hook for hook in run.hooks if isinstance(hook, LoggerHook))
    logger.interval = 3
    run.train()
    found = read(tmp_path / 'run')

    # an epoch is 6 iterations; what was logged stays until the next one
    assert found['psw/samples'] == dict.fromkeys(range(6, 25, 3), 6)
    hub = MessageHub.get_current_instance().log_scalars['train/psw/shift']
    shifts = [float(value) for value in hub.data[0]]
    assert len(set(shifts)) == 4
    at_ends = [found['psw/shift'][step] for step in (6, 12, 18, 24)]
    assert at_ends == pytest.approx(shifts, rel=1e-6)
    # of validations, the step is the epoch
    model, points, errors = Toy().eval(), Points(), []
    for update in (6, 12, 18, 24):
        saved = torch.load(tmp_path / f'run/iter_{update}.pth')
        model.load_state_dict(saved['state_dict'])
        with torch.no_grad():
            errors.append((model.net(points.x) - points.y).square().mean())
    expected = {epoch: pytest.approx(float(error), rel=1e-4)
                for epoch, error in enumerate(errors, start=1)}
    assert found['error'] == expected
