"""The web as a store of pictures: which hosts are asked for them, also by way of redirects."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

PUBLIC_WEB = ("http://", "https://")
"""Roots that allow all public hosts."""


class OutsideError(aiohttp.ClientError):
    """A host that no root allows."""


@dataclass(frozen=True)
class WebClient:
    """Makes the sessions of fsspec's HTTP file system, which reach the hosts of some roots and no other.

    A host that a root names is reached wherever it is, under any path, for what is below its roots was looked at before
    and a redirect is its own say. Other hosts are reached where a root of ``PUBLIC_WEB`` allows that and their address
    is a public one: none of this machine, its network or its cloud's services. What is asked is the address that is
    connected to, so that a name cannot mean another one meanwhile; every redirect is asked about anew.
    """

    roots: tuple[str, ...]
    connections: int = 100
    """At once, of one session."""

    async def __call__(self, **options: Any) -> aiohttp.ClientSession:
        """Open a session."""
        return aiohttp.ClientSession(connector=_Connector(self.roots, self.connections), **options)


class _Connector(aiohttp.TCPConnector):
    """Refuses what ``WebClient`` does; connections are made for redirects as for first requests."""

    def __init__(self, roots: Sequence[str], connections: int) -> None:
        named = [URL(root) for root in roots if root not in PUBLIC_WEB]
        self._named = {(url.raw_host, port) for url in named for port in _ports(url)}
        self._schemes = {URL(root).scheme for root in roots if root in PUBLIC_WEB}
        super().__init__(limit=connections, resolver=_Resolver(self._named))

    async def connect(self, req: Any, *args: Any, **named: Any) -> Any:
        """Connect to the host of a request."""
        url = req.url
        if req.proxy is not None:  # the user's own, which asks for names itself
            self._named.add((req.proxy.raw_host, req.proxy.port))
        if (url.raw_host, url.port) not in self._named:
            if url.scheme not in self._schemes:
                raise OutsideError(f"{url.origin()} is a host that no root allows")
            _refuse_private(url.raw_host, url.raw_host)
        return await super().connect(req, *args, **named)


class _Resolver(AbstractResolver):
    """Finds the addresses of hosts that are named, and public ones of others."""

    def __init__(self, named: set[tuple[str | None, int | None]]) -> None:
        self._named, self._inner = named, DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host; OutsideError where one may not be asked."""
        found: list[ResolveResult] = await self._inner.resolve(host, port, family)
        if (host, port) not in self._named:
            for each in found:
                _refuse_private(each["host"], host)
        return found

    async def close(self) -> None:
        """Release the resolver."""
        await self._inner.close()


def _ports(url: URL) -> set[int | None]:
    """Return the ports that a root means: both usual ones where it names none, for many hosts redirect to https."""
    return {80, 443} if url.is_default_port() else {url.port}


def _refuse_private(address: str | None, host: str | None) -> None:
    """Raise OutsideError for an address that is not public; names are none."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found.sixtofour or found
    if not found.is_global or found.is_multicast:
        raise OutsideError(f"{host} is no public host, but {address}")
