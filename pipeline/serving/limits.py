"""What a server takes upon itself, and what it answers to more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of each request, and of all that wait."""

    max_bytes: int = 20_000_000
    """Of a request's body, and of a picture that a URL leads to."""
    max_pixels: int = 50_000_000
    """Of a picture, looked at before anything of it is unpacked."""
    timeout_s: float = 60.0
    """From the whole request to its answer."""
    max_waiting: int = 64
    """Requests that are being answered or wait for that; further ones are refused at once."""
    max_names: int = 200
    """Of a request; each prompt that they fill costs its time."""
    max_characters: int = 10_000
    """Of the text that holds the names."""
    allows_urls: bool = False
    """Fetch pictures that a request names by URL, from public hosts."""


class Refusal(Exception):
    """A request that gets no boxes.

    Args:
        status: of HTTP.
        code: of a fixed list, for programs.
        message: what was expected, what was found, what to do.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)  # as they are unpickled
        self.status, self.code, self.message = status, code, message


def too_large(limit: int) -> Refusal:
    """Return what is said of too many bytes."""
    return Refusal(413, "too_many_bytes", f"the picture has more than {limit} bytes; send a smaller one")


def overloaded(waiting: int) -> Refusal:
    """Return what is said where too many wait already."""
    return Refusal(503, "overloaded", f"{waiting} requests are waiting already; try again in a second")


def too_slow(seconds: float) -> Refusal:
    """Return what is said when the time is up."""
    return Refusal(504, "timeout", f"no answer within {seconds:g} seconds; send a smaller picture or fewer names")
