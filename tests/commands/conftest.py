"""A folder with generated data, where commands run as a user runs them."""
import pytest

from mmpsw.datasets.digits import generate


@pytest.fixture(scope='session')
def data_folder(tmp_path_factory):
    """A folder whose ``data/digits`` holds a few generated scenes."""
    folder = tmp_path_factory.mktemp('run')
    generate(folder / 'data' / 'digits', train=16, val=4, progress=False)
    return folder


@pytest.fixture
def folder(data_folder, tmp_path, monkeypatch):
    """The current folder: empty, but for the data."""
    (tmp_path / 'data').symlink_to(data_folder / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path
