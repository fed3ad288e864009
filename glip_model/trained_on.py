"""The data that a model was trained on, as its folder records it, and inputs that are far from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

TRAINED_ON = "trained_on"
"""Key of config.json."""
FAR = 3.0
"""Pictures whose longer side is so many times longer, or shorter, than any seen in training are called far from it."""


@dataclass(frozen=True)
class TrainedOn:
    """Sources of a training's rows, and how large their pictures are; ValueError where a value is none."""

    sources: Mapping[str, int] = field(default_factory=dict)
    """Name of a source, such as ``coco``, to its rows."""
    shortest_side: int = 0
    """Shortest of the pictures' longer sides in pixels; 0 where it is not known."""
    longest_side: int = 0
    words: str = ""
    """Description for people, such as "emoji scenes"; empty where the names of the sources say it."""

    def __post_init__(self) -> None:
        """Check what may come from a file of anybody's."""
        if not isinstance(self.sources, Mapping) or not all(
            isinstance(name, str) and type(rows) is int for name, rows in self.sources.items()
        ):
            raise ValueError(f"{TRAINED_ON}.sources is {self.sources!r:.60}; expected names and their rows")
        sides = self.shortest_side, self.longest_side
        if not all(type(side) is int and side >= 0 for side in sides) or sides[0] > sides[1]:
            raise ValueError(f"{TRAINED_ON} has sides {sides!r:.60}; expected the shortest and the longest in pixels")
        if not isinstance(self.words, str):
            raise ValueError(f"{TRAINED_ON}.words is {self.words!r:.60}; expected a text")

    @classmethod
    def from_dict(cls, values: Any) -> TrainedOn:
        """Read what ``to_dict`` wrote; ValueError where it is none."""
        known = {"sources", "shortest_side", "longest_side", "words"}
        if not isinstance(values, Mapping) or set(values) - known:
            raise ValueError(f"{TRAINED_ON} is {values!r:.60}; expected a mapping of {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def joined(self, later: TrainedOn) -> TrainedOn:
        """Return what a model has seen that was trained on this and then on what is ``later``."""
        counts = dict(self.sources)
        for name, rows in later.sources.items():
            counts[name] = max(rows, counts.get(name, 0))  # the same rows again are no more rows
        sides = [each for each in (self, later) if each.longest_side]
        return TrainedOn(
            counts,
            min((each.shortest_side for each in sides), default=0),
            max((each.longest_side for each in sides), default=0),
            ", ".join(dict.fromkeys(each.words for each in (self, later) if each.words)),
        )

    def __str__(self) -> str:
        """Say it in a few words: "96-px emoji scenes"."""
        sides = sorted({self.shortest_side, self.longest_side} - {0})
        pixels = f"{'-'.join(map(str, sides))}-px " if sides else ""
        return pixels + (self.words or ", ".join(self.sources) or "pictures of unknown origin")

    def far_from(self, width: int, height: int) -> str:
        """Return why a picture of that size is far from what the model knows; an empty text where it is not."""
        side = max(width, height)
        if not self.longest_side or self.shortest_side / FAR <= side <= self.longest_side * FAR:
            return ""
        return f"a picture of {width}×{height} is far from what the model was trained on ({self} alone)"
