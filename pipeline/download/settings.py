"""Settings of section ``download``."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.prepare.settings import SourceEntry, check_sources
from pipeline.settings import Amount, Count, Natural, section


@section
class DownloadConfig:
    """Section ``download``: pictures of lists of URLs, into tar shards."""

    ADDED: ClassVar[tuple[str, ...]] = ("robots_txt",)

    lists: tuple[SourceEntry, ...]
    """What is downloaded: sources as in ``prepare.web`` whose pictures are URLs, such as ``{reader: url_list, …}``."""
    rows_per_shard: Count
    connections: Count
    """Requests on their way at once, of one worker; there is a worker a core."""
    connections_per_host: Count
    """Of them to one host, of all workers together; each worker has one at least."""
    host_pause_s: Amount
    """Seconds between the beginnings of two requests to one host, of all workers together."""
    timeout_s: Annotated[float, Field(gt=0)]
    """Seconds that one request may take, with all that it sends."""
    retries: Natural
    """How often a URL is asked again that fails for a reason that may pass; pauses double."""
    max_wait_s: Amount
    """Seconds that a host may ask for by ``Retry-After``; one that wants more is not asked again for the URL."""
    max_redirects: Natural
    max_mb: Annotated[float, Field(gt=0)]
    """Larger files are given up when that is known."""
    user_agent: Annotated[str, Field(pattern=r"^[\x20-\x7e]+$")]
    """What servers are told; say who you are and how to reach you."""
    robots_txt: bool
    """Leave alone what robots.txt of a host forbids to everybody or to ``user_agent``; it costs a request a host and
    shard."""
    opt_out: tuple[str, ...]
    """Words of ``X-Robots-Tag`` by which a site keeps its pictures from machines that learn; they are obeyed."""

    def __post_init__(self) -> None:
        """Check the form of lists."""
        check_sources("lists", self.lists, None)
