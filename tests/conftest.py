"""What holds for every test."""
import os

# Before torch is imported: threads sum in another order than the processes
# that tests start, which have one, and only wait for each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.visualization import Visualizer  # noqa: E402


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
