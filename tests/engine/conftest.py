"""Everything here runs on a GPU too, where there is one."""
import pytest
import torch

DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']


@pytest.fixture(params=DEVICES, autouse=True, scope='module')
def device(request):
    """Where mmengine's runners train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.device.utils.DEVICE', request.param)
        yield request.param


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    """mmengine sleeps 2 s whenever an iteration-based loop starts over."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda s: None)
