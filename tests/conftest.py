"""What several test files share."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from typing import Any

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a headless Chromium, which ``make test`` installs where it can."""
    from playwright.sync_api import sync_playwright

    programs = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, programs), None)
    if program is None:
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=quiet)
        yield started
        started.close()
