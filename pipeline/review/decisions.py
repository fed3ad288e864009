"""What people say of rows: one decision holds the whole truth of one row, so that the latest one stands alone.

Decisions come from pages and files that anybody may have written; ``parse_decision`` checks all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import PipelineError
from pipeline.inspection.defects import OUTSIDE_PIXELS

MOST_BYTES = 1 << 20
"""Of one decision; thousands of boxes are less."""
Side = Annotated[float, Field(ge=-1e6, le=1e6)]
Row = tuple[str, str]
"""Key and fingerprint, see ``row_fingerprint``."""
_RULES = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DecisionError(PipelineError):
    """What should be a decision is none."""


class JudgedPhrase(BaseModel):
    """A phrase as it should be."""

    model_config = _RULES

    text: Annotated[str, Field(min_length=1, max_length=1000)]
    spans: Annotated[tuple[tuple[int, int], ...], Field(max_length=1000)] = ()
    """Where it stands in the caption; none where it does not."""
    boxes: Annotated[tuple[tuple[Side, Side, Side, Side], ...], Field(max_length=5000)] = ()
    """All of it in the picture, x1 y1 x2 y2 in pixels."""
    verdict: Literal["right", "absent", "open"]
    """``right`` has boxes, ``absent`` is not in the picture, of ``open`` nobody said where it is."""

    @model_validator(mode="after")
    def _boxes_are_boxes(self) -> JudgedPhrase:
        if not self.text.strip():
            raise ValueError("a phrase without letters")
        if (self.verdict == "right") != bool(self.boxes):
            raise ValueError(f"{len(self.boxes)} boxes of a phrase that is {self.verdict}")
        if any(x1 >= x2 or y1 >= y2 for x1, y1, x2, y2 in self.boxes):
            raise ValueError("a box without width or height")
        if any(not 0 <= start < end for start, end in self.spans):
            raise ValueError("a span that is none")
        return self


class Decision(BaseModel):
    """What one person says of one row."""

    model_config = _RULES

    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{8,64}$")]
    """Of this decision alone: one that is sent twice counts once."""
    key: Annotated[str, Field(min_length=1, max_length=4096)]
    row: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Fingerprint of the row as the person saw it."""
    reviewer: Annotated[str, Field(min_length=1, max_length=100)]
    at: AwareDatetime
    verdict: Literal["judged", "withdrawn"] = "judged"
    """``withdrawn`` takes back what the same person said of the row before."""
    phrases: Annotated[tuple[JudgedPhrase, ...], Field(max_length=2000)] = ()

    @property
    def about(self) -> Row:
        """The row that it speaks of."""
        return self.key, self.row


@dataclass(frozen=True)
class Settled:
    """What stands of all decisions about a row."""

    decision: Decision
    is_disputed: bool
    """Another person said something else; the latest decision stands."""


def parse_decision(text: str | bytes) -> Decision:
    """Read a decision from JSON.

    Raises:
        DecisionError: it is none.
    """
    if len(text) > MOST_BYTES:
        raise DecisionError(f"a decision of {len(text):,} bytes; expected at most {MOST_BYTES:,}")
    try:
        return Decision.model_validate_json(text)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, found["loc"]))
        raise DecisionError(f"no decision: {where or 'it'}: {found['msg']}") from None
    except RecursionError:
        raise DecisionError("no decision: too deep") from None


def check_places(decision: Decision, size: tuple[int, int], caption_length: int) -> None:
    """Raise DecisionError where a box leaves the picture, of this width and height, or a span the caption."""
    width, height = size
    for phrase in decision.phrases:
        if any(end > caption_length for _, end in phrase.spans):
            raise DecisionError(f"a span of {phrase.text!r:.60} leaves the caption")
        for x1, y1, x2, y2 in phrase.boxes:
            if min(x1, y1) < -OUTSIDE_PIXELS or x2 > width + OUTSIDE_PIXELS or y2 > height + OUTSIDE_PIXELS:
                raise DecisionError(f"a box of {phrase.text!r:.60} leaves the picture of {width} × {height}")


def settle(decisions: Iterable[Decision]) -> dict[Row, Settled]:
    """Return what stands of every row: the latest decision, of each person the last one, unless it was withdrawn."""
    last: dict[Row, dict[str, Decision]] = {}
    for decision in sorted(decisions, key=attrgetter("at", "id")):
        of_row = last.setdefault(decision.about, {})
        of_row.pop(decision.reviewer, None)  # the dictionary keeps the order of the last words
        if decision.verdict == "judged":
            of_row[decision.reviewer] = decision
    found = {}
    for row, by_reviewer in last.items():
        if by_reviewer:
            *others, latest = by_reviewer.values()
            found[row] = Settled(latest, any(each.phrases != latest.phrases for each in others))
    return found
