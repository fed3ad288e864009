"""Settings of section ``prepare``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.settings import Amount, Count, Natural, Share, parse_options, section


@section
class EmbeddedConfig:
    """Section ``prepare.embedded``: the emoji scenes that ship with the project."""

    ADDED: ClassVar[tuple[str, ...]] = (
        *("human_styles", "web_styles"),
        *("web_skew", "web_doubles_share", "web_wrong_captions_share", "web_blank_share"),
    )

    base_concepts: Count
    """Concepts that human data shows and names."""
    novel_concepts: Count
    """Concepts that only web pairs show."""
    image_size: Annotated[int, Field(ge=32, le=2048)]
    """Side of the square pictures in pixels."""
    min_objects: Count
    max_objects: int
    human_detection: Natural
    """Pictures with category boxes."""
    human_grounding: Natural
    """Pictures with a caption and boxes for its phrases."""
    web: Natural
    """Pictures with a caption alone."""
    dev: Count
    """Pictures of the dev split: choose settings on it."""
    test: Count
    """Pictures of the test split: final numbers alone."""
    novel_share: Share
    """Share of objects in web, dev and test pictures that show a novel concept, 0 to 1."""
    omitted_mention_share: Share
    """Share of objects in web pictures that the caption leaves out, 0 to 1."""
    absent_mention_share: Share
    """Share of web captions that mention something absent, 0 to 1."""
    human_styles: Annotated[tuple[Literal["google", "twitter"], ...], Field(min_length=1)]
    """Art styles of what human data shows."""
    web_styles: Annotated[tuple[Literal["google", "twitter"], ...], Field(min_length=1)]
    """Art styles of what web, dev and test pictures show: with other ones the student has to cross over."""
    web_skew: Amount
    """How much more often web pictures show some concepts than others: with 1 the second of a list half as often as the
    first, by Zipf's law; with 0 all alike."""
    web_doubles_share: Share
    """Noise beside web pairs, as a share of them: pairs that come again, their picture compressed anew."""
    web_wrong_captions_share: Share
    """Noise: pictures with captions of others, each of which many have, as the pages of a shop."""
    web_blank_share: Share
    """Noise: blank pictures with captions."""

    def __post_init__(self) -> None:
        """Check what depends on another setting."""
        if self.max_objects < self.min_objects:
            raise ConfigError(f"max_objects is {self.max_objects}; expected at least {self.min_objects}")


SourceEntry = Mapping[str, Any]
"""One raw data set, ``{reader: NAME, …}`` with the reader's own options beside it, or ``{mixture: NAME}``. Either may
have ``repeat``, how often its rows come in one pass of training, and a reader ``name``, what its records are called."""


@section
class PrepareConfig:
    """Section ``prepare``: raw data sets into records."""

    ADDED: ClassVar[tuple[str, ...]] = ("licenses",)

    data_root: str
    """Where relative paths and URLs of all sources start: a folder or a URL such as ``s3://bucket/raw``."""
    human: tuple[SourceEntry, ...]
    web: tuple[SourceEntry, ...]
    dev: tuple[SourceEntry, ...]
    test: tuple[SourceEntry, ...]
    held_out: tuple[SourceEntry, ...]
    """Data sets whose pictures are kept out of ``human`` and ``web``, besides ``dev`` and ``test``: by id where both
    sides have one, by perceptual hash otherwise."""
    mixtures: Mapping[str, tuple[SourceEntry, ...]]
    """Named groups of sources."""
    embedded: EmbeddedConfig
    pictures: Literal["embed", "reference", "unread"]
    """``embed`` stores the bytes of pictures in the shards. ``reference`` opens each picture once and stores its URL,
    with a byte range inside of an archive. ``unread`` believes the annotations' sizes and never opens one: for
    annotations alone, without the check by perceptual hash."""
    rows_per_shard: Count
    """Records in one Parquet shard at most."""
    shard_mb: Count
    """Megabytes of pictures in one Parquet shard, about."""
    max_reject_share: Share
    """The stage stops when a larger share of a folder's rows was rejected, 0 to 1. Held-out pictures do not count."""
    max_image_pixels: Count
    """Pictures with more pixels are refused before they are decoded."""
    licenses: tuple[str, ...]
    """Patterns of licences whose pictures human and web data may have, such as ``*/licenses/by/*``, whatever the case;
    ``unknown`` stands for those whose data set says nothing. None means all."""

    def __post_init__(self) -> None:
        """Check the form of sources."""
        for role in ("human", "web", "dev", "test", "held_out"):
            check_sources(role, getattr(self, role), self.mixtures)
        for name, sources in self.mixtures.items():
            check_sources(f"mixtures.{name}", sources, None)


def check_sources(where: str, sources: tuple[SourceEntry, ...], mixtures: Mapping[str, Any] | None) -> None:
    """Check the form of sources; with ``mixtures`` None they are those of a mixture, which names readers alone."""
    for i, source in enumerate(sources):
        place = f"{where}[{i}]"
        if ("reader" in source) == ("mixture" in source) or ("mixture" in source and mixtures is None):
            wanted = "a reader" if mixtures is None else "a reader or a mixture"
            raise ConfigError(f"{place} must name {wanted}, found {dict(source)!r}")
        if mixtures is not None and "mixture" in source:
            if source["mixture"] not in mixtures:
                raise ConfigError(f"{place} names mixture {source['mixture']!r}; mixtures: {', '.join(mixtures)}")
            parse_options({"mixture": str, "repeat": int}, {"repeat": 1}, source, place)
        repeat = source.get("repeat", 1)
        if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
            raise ConfigError(f"{place}.repeat is {repeat!r}; expected a whole number of at least 1")
