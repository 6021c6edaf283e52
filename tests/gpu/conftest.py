"""Tests that need a GPU. ``make gpu`` runs them; elsewhere each is skipped, and says why.

``XLSTM_DISTILL_GPU_TESTS=cpu`` runs the same bodies on a processor, as far as one goes.
"""

import pytest
import torch

from stages.compute.device import choose_device
from tests.support.devices import asked_device, obstacle


def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := obstacle():
        pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What other packages warn of on a GPU is not known beforehand; what we warn of is an error."""
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            filters = ("default", "error:.*without torch.compile")  # the last one that fits holds
            item.add_marker(pytest.mark.filterwarnings(*filters))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or the processor in its place."""
    return choose_device("cuda:0" if asked_device() == "cuda" else "cpu")
