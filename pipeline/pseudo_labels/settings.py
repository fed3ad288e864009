"""Settings of section ``pseudo_label``, and what a round of self-training sets for itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from glip_model.precision import Precision
from pipeline.errors import ConfigError
from pipeline.settings import Count, Natural, Share, parse, section
from pipeline.store.ontology import Ontology
from pipeline.store.vocabulary import read_table_of_names


@section
class PassConfig:
    """One of ``pseudo_label.passes``: a further pass over phrases that have no box yet."""

    min_score: Share
    """Instead of the least score, where it is lower than that."""
    alone: bool
    """Ask the teacher for each such phrase by itself, which costs a look at the picture each; else what it said of all
    of them together is gone through once more."""


@section
class PseudoLabelConfig:
    """Section ``pseudo_label``: what of the teacher's output is kept."""

    ADDED: ClassVar[tuple[str, ...]] = (
        "min_score",
        "min_score_by_source",
        "flip_agreement",
        "precision",
        "tile",
        "names",
        "other_phrases",
        "skip_known",
        "min_agreement",
        "fusion_threshold",
        "passes",
    )

    min_score: Share
    """Boxes below this score are dropped, 0 to 1. Higher is cleaner and sparser; 0.5 in the paper."""
    min_score_by_source: Mapping[str, Share]
    """Other values for the rows of some sources."""
    names: Mapping[str, Any]
    """One's own classes, which phrases of captions are mapped to by their last words: class → list of further phrases
    that mean it, phrase → its class, or phrase → null where it means none. Empty: phrases are as they come."""
    other_phrases: Literal["keep", "drop"]
    """What becomes of the boxes of phrases that mean none of ``names``; rows without any other ones are not looked at
    where they are dropped."""
    skip_known: Natural
    """A word is known that names so many boxes of human data. Pairs whose phrases have no others are not looked at, and
    those where no others were found are rejected: what was found is often the new thing, under a name that the teacher
    knows. 0 keeps both."""
    min_agreement: Share
    """Share of the teachers that must have found a box, 0 to 1; 0 keeps what any of them found."""
    fusion_threshold: Share
    """IoU above which boxes of several teachers for one phrase are merged."""
    passes: tuple[PassConfig, ...]
    """Further passes over phrases without a box, in order; every box records its pass."""
    tile: Natural
    """Side in pixels of overlapping pieces in which larger pictures are looked at besides whole, to find small things;
    0 looks at whole pictures alone."""
    flip_agreement: bool
    """Ask about the mirrored picture too; a box's score is then the mean of what it and its mirror image got. Costs
    twice the time, and is of no use where captions tell left from right."""
    nms_threshold: Share
    """IoU above which boxes of one phrase suppress one another."""
    compete_threshold: Share
    """IoU above which boxes of different phrases compete and the better score stays; 1 turns it off."""
    one_box_per_singular: bool
    """Keep only the best box of a phrase whose head is singular."""
    max_boxes_per_phrase: Count
    min_box_side: float
    """Pixels; smaller boxes are dropped."""
    max_area_share: Share
    """Boxes that cover a larger share of the picture are dropped, 0 to 1."""
    batch_size: Count
    decode_timeout_s: float
    """A picture that takes longer to decode is rejected as ``image_timeout``."""
    num_actors: Count
    """Labelling processes at most; Ray starts as many as the cluster carries."""
    max_reject_share: Share
    """The stage stops when a larger share of rows is rejected as broken, 0 to 1."""
    precision: Precision
    """Precision of the teacher's matrix products and convolutions: ``float32`` (TensorFloat-32 on a GPU), ``bf16``, or
    ``auto``: bf16 where all GPUs compute in it, otherwise float32. Shards of another precision are computed again. A
    custom teacher function receives the device alone and chooses its own precision."""

    def __post_init__(self) -> None:
        """Check what its type does not say."""
        try:
            Ontology.of_settings(self.names)
        except ConfigError as error:
            raise ConfigError(f"names: {error}") from None
        if 0 < self.tile < 32:
            raise ConfigError(f"tile is {self.tile}; expected 0, or at least 32 pixels")


@section
class RoundConfig:
    """Setting ``rounds.NAME``: who labels the web pairs for a round's student, and how."""

    teacher: str
    """The model that labels and that the student starts from: ``teacher``, or the round before."""
    pseudo_label: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of section ``pseudo_label`` that differ in this round."""
    always: bool = False
    """Run this round even where dev saw no gain in the one before."""

    def __post_init__(self) -> None:
        """Check that the settings are some of the section's."""
        known = {each.name for each in dataclasses.fields(PseudoLabelConfig)}
        if unknown := sorted(set(self.pseudo_label) - known):
            raise ConfigError(f"pseudo_label.{unknown[0]} is not a setting; settings here: {', '.join(sorted(known))}")


def of_round(config: PseudoLabelConfig, rounds: Mapping[str, RoundConfig], name: str | None) -> PseudoLabelConfig:
    """Return section ``pseudo_label`` with what a round sets for itself; ``None`` is no round.

    Raises:
        ConfigError: there is no such round, or it sets something out of range.
    """
    if name is None:
        return config
    if name not in rounds:
        raise ConfigError(f"rounds has no {name!r}; rounds: {', '.join(rounds) or 'none'}")
    try:
        return parse(PseudoLabelConfig, {**dataclasses.asdict(config), **rounds[name].pseudo_label}, "pseudo_label")
    except ConfigError as error:
        raise ConfigError(f"rounds.{name}.{error}") from None


def with_names(config: PseudoLabelConfig, text: str | None) -> PseudoLabelConfig:
    """Return settings with the names of a command line in place of theirs; None leaves them.

    Raises:
        ConfigError: there are no names, or they are none.
    """
    if text is None:
        return config
    Ontology.read(text)
    return dataclasses.replace(config, names={key: name or None for key, name in read_table_of_names(text).items()})
