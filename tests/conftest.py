"""What holds for every test."""
import pytest
from mmengine.logging import MMLogger


@pytest.fixture(autouse=True)
def no_logger_outlives_its_test():
    """mmengine names a run's logger by the second, and keeps it.

    The next run in the same second would get it, with a handler that writes
    to the output of the test before, which is closed.
    """
    yield
    MMLogger._instance_dict.clear()
