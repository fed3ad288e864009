"""The job server: warnings of open ports, errors of servers that are not there. Jobs: tests/stages/test_submit.py."""

from __future__ import annotations

import logging
import socket

import pytest

from pipeline.errors import ConfigError, MissingInputError
from pipeline.ray_session import warn_of_open_port
from pipeline.submission.job import JobServer


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_is_quiet(host: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_open_port(host, "the job server", encrypted=False)
    assert not caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "head.example"])
def test_an_open_port_is_named_with_its_risk(
    host: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with caplog.at_level(logging.WARNING):
        warn_of_open_port(host, "the job server", encrypted=True)
    assert f"the job server at {host} is open to its network: whoever reaches it runs code" in caplog.text
    assert "RAY_AUTH_MODE=token" in caplog.text


def test_with_a_token_only_its_way_matters(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    warn_of_open_port("head.example", "the job server", encrypted=True)
    assert not caplog.text
    warn_of_open_port("head.example", "the job server", encrypted=False)
    assert "its token travels unencrypted" in caplog.text


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(MissingInputError, match=f"{address}: no job server answers there.*ssh -L"):
            JobServer(address)


def test_an_address_is_a_url() -> None:
    with pytest.raises(ConfigError, match="expected a URL such as http://"):
        JobServer("127.0.0.1:6379")
