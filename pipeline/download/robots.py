"""What robots.txt of a host says, by RFC 9309: the longest rule that fits a path decides, with ``*`` and ``$``.

Python's ``urllib.robotparser`` takes the first rule that fits and takes ``/*.jpg$`` by the letter, by which hosts keep
their pictures to themselves. What a host sends is untrusted: nothing here takes longer than its length times that of a
path, and a host's rules are kept only as far as they speak to us.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from yarl import URL

MAX_BYTES = 500 * 1024
"""Read of a robots.txt, as much as the RFC demands; what follows is not."""
KEPT_BYTES = 64 << 20
"""Of the rules of all hosts together; beyond it those that came first are forgotten, and asked for again."""
EVERYBODY = "*"


@dataclass(frozen=True)
class Rules:
    """Rules of a host for us: pieces between the stars of a path, whether they go to its end, and what they say."""

    lines: tuple[tuple[tuple[str, ...], bool, bool], ...] = ()

    @classmethod
    def parse(cls, data: bytes, user_agent: str) -> Rules:
        """Read a robots.txt for a robot: those of its groups that name it, else those for everybody.

        Args:
            data: its first bytes; one that is cut off loses its last line.
            user_agent: as hosts are told; a group names it by one of its words.
        """
        if len(data) > MAX_BYTES:
            data = data[:MAX_BYTES].rpartition(b"\n")[0]
        groups: dict[str, list[tuple[tuple[str, ...], bool, bool]]] = {}
        agents: list[str] = []
        has_rules = False
        for line in data.decode("utf-8-sig", "replace").splitlines():
            key, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
            key = key.lower()
            if key == "user-agent":
                agents, has_rules = ([] if has_rules else agents) + [value.lower()], False
                groups.setdefault(value.lower(), [])
            elif key in ("allow", "disallow"):
                has_rules = True
                for agent in set(agents) if value else ():
                    groups[agent].append(_rule(value, is_allowed=key == "allow"))
        ours = [agent for agent in groups if agent != EVERYBODY and _is_named(agent, user_agent)]
        return cls(tuple(rule for agent in ours or [EVERYBODY] for rule in groups.get(agent, ())))

    @property
    def num_bytes(self) -> int:
        """About what they take of memory."""
        return sum(100 + sum(map(len, pieces)) for pieces, _, _ in self.lines)

    def allow(self, path: str) -> bool:
        """Tell whether a path with its query may be asked for."""
        asked = _plain(path)
        fitting = [
            (sum(map(len, pieces)) + len(pieces), is_allowed)
            for pieces, is_end, is_allowed in self.lines
            if _fits(asked, pieces, is_end)
        ]
        return max(fitting, default=(0, True))[1]  # of two that are as long, the one that allows


class RulesByHost:
    """The rules of hosts, each read once at a time and for as long as there is room.

    Args:
        read: gives the rules of a host, or the reason why it does not say them.
    """

    def __init__(self, read: Callable[[URL], Awaitable[Rules | str]]) -> None:
        self._read = read
        self._known: dict[URL, asyncio.Future[Rules | str]] = {}
        self._bytes = 0

    async def of(self, host: URL) -> Rules | str:
        """Return what ``read`` gave for the origin of a host; all who ask meanwhile wait for the same."""
        if host not in self._known:
            self._known[host] = asyncio.ensure_future(self._remembered(host))
        return await self._known[host]

    async def _remembered(self, host: URL) -> Rules | str:
        rules = await self._read(host)
        self._bytes += _size(rules)
        for other in [other for other, known in self._known.items() if known.done()]:
            if self._bytes <= KEPT_BYTES:
                break
            self._bytes -= _size(self._known.pop(other).result())
        return rules


def _size(rules: Rules | str) -> int:
    return rules.num_bytes if isinstance(rules, Rules) else 0


def _rule(pattern: str, is_allowed: bool) -> tuple[tuple[str, ...], bool, bool]:
    is_end = pattern.endswith("$")
    return tuple(_plain(piece) for piece in pattern.removesuffix("$").split("*")), is_end, is_allowed


def _plain(path: str) -> str:
    """Return a path in the one way of many to write it: ``%7e`` is ``~``, and ``é`` is ``%C3%A9``."""
    return quote(unquote_to_bytes(path))


def _fits(path: str, pieces: tuple[str, ...], is_end: bool) -> bool:
    """Tell whether pieces come in a path one after the other, from its beginning and, it may be, to its end."""
    first, *others = pieces
    if not path.startswith(first):
        return False
    if not others:
        return not is_end or path == first
    at = len(first)
    for piece in others[:-1]:
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    last = others[-1]
    return path.endswith(last) and len(path) - len(last) >= at if is_end else path.find(last, at) >= 0


def _is_named(agent: str, user_agent: str) -> bool:
    """Tell whether a word of a user agent is the one that a group is for, of which versions do not count."""
    word = agent.partition("/")[0].strip()
    return bool(word) and re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", user_agent.lower()) is not None
