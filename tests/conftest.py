"""What several test files share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from hypothesis import settings

from pipeline.ray_session import ray_session

# Machines are busy: how long an example takes says nothing about it.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


@pytest.fixture(scope="session")
def ray_running() -> Iterator[None]:
    """Start one local Ray for all tests that ask for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own start, in this process
        with ray_session():
            yield
