"""Pictures on the web: no host is asked that nobody allowed, neither by a record nor by way of a redirect."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from glip_model.images import ImageError
from pipeline.store.filesystem import read_many
from pipeline.store.web import PUBLIC_WEB


@pytest.fixture
def bystander() -> Iterator[socket.socket]:
    """Listen on this machine; a test fails that leaves a connection there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def outcome(url: str, *roots: str) -> str:
    """Return the content of a file, or why it is not read."""
    (found,) = read_many([url], roots)
    return found.reason if isinstance(found, ImageError) else found.decode()


def test_hosts_that_a_root_names_are_reached_wherever_they_are(web: Any) -> None:
    (web.folder / "pictures").mkdir()
    for name in ("pictures/a", "b"):
        (web.folder / name).write_text(name)
    root = f"{web.url}/pictures"
    assert outcome(f"{root}/a", root) == "pictures/a"
    assert outcome(f"{web.url}/b", root) == "image_outside_folder"
    assert outcome(f"{web.url}/b", f"{web.url.rpartition(':')[0]}:1/") == "image_outside_folder"
    assert web.requests == ["GET /pictures/a"]
    assert outcome(f"{web.url}/to/{quote(f'{web.url}/b', safe='')}", f"{web.url}/to") == "b"
    assert outcome(f"{web.url}/to/%2Fb", f"{web.url}/to") == "b"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433"]
)
def test_a_redirect_leads_to_no_host_that_is_not_allowed(web: Any, bystander: socket.socket, host: str) -> None:
    target = f"http://{host}:{bystander.getsockname()[1]}/a.png"
    redirect = f"{web.url}/to/{quote(target, safe='')}"
    assert outcome(redirect, web.url) in ("image_outside_folder", "image_missing")
    assert outcome(redirect, web.url, *PUBLIC_WEB) in ("image_outside_folder", "image_missing")
    assert len(web.requests) == 2


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "https://pictures.example/a"])
def test_a_redirect_leads_to_the_hosts_of_roots_alone(web: Any, target: str) -> None:
    assert outcome(f"{web.url}/to/{quote(target, safe='')}", web.url) in ("image_outside_folder", "image_missing")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        *((host, "image_outside_folder") for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::1]")),
        *((host, "image_outside_folder") for host in ("169.254.169.254", "10.0.0.1", "192.168.1.1", "100.64.0.1")),
        *((host, "image_outside_folder") for host in ("[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "224.0.0.1")),
        *((host, "image_outside_folder") for host in ("[2002:7f00:1::]", "user@127.0.0.1")),
        *((host, None) for host in ("127.1", "2130706433", "0x7f.1")),
    ],
)
def test_of_the_public_web_no_private_address_is_asked(bystander: socket.socket, host: str, reason: str | None) -> None:
    found = outcome(f"http://{host}:{bystander.getsockname()[1]}/a.png", *PUBLIC_WEB)
    assert found == (reason or found)
    assert found.startswith("image_")
    found = outcome(f"zip://a.png::http://{host}:{bystander.getsockname()[1]}/a.zip", *PUBLIC_WEB)
    assert found.startswith("image_")


def test_control_characters_make_no_way_out() -> None:
    for name in (".\t./b", ".%2e/b", "..\\b", "a/../../b", "\x7f"):
        assert (
            outcome(f"https://pictures.example/mine/{name}", "https://pictures.example/mine") == "image_outside_folder"
        )
