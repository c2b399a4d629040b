"""Everything here runs on a GPU too, where there is one."""
import pytest
import torch

DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']


@pytest.fixture(params=DEVICES, autouse=True)
def device(request):
    """Where tensors are made that do not say it."""
    with torch.device(request.param):
        yield request.param
