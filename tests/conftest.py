"""What holds for every test."""
import pytest
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def nothing_named_by_the_second_outlives_its_test():
    """mmengine names a run's logger and visualizer so, and keeps them.

    The next run in the same second would get them, with a handler that writes
    to the output of the test before, which is closed, and its folder.
    """
    yield
    MMLogger._instance_dict.clear()
    kinds = [Visualizer]
    for kind in kinds:
        kind._instance_dict.clear()
        kinds += kind.__subclasses__()
