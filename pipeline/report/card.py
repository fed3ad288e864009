"""What lies beside a tuned model: its numbers, pictures of its mistakes, and a card that tells how it came about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cli import printable
from pipeline.evaluation.benchmark import Benchmark
from pipeline.report.mistakes import write_mistakes
from pipeline.store.atomic import replacing, write_json
from pipeline.store.storage import Place

CARD_FILE, RESULT_FILE = "card.md", "finetune.json"
_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~])")
_SHOWN_NAMES = 200


@dataclass(frozen=True)
class Tuned:
    """What a card tells."""

    start: str
    """Model to start from."""
    data: str
    layout: str
    """What was read of the data, in words."""
    names: Sequence[str]
    pictures: Mapping[str, int]
    """Part of the data to how many."""
    is_chosen: bool
    """Whether pictures chose when to stop, or what to keep."""
    kept: str
    """What other names were judged by."""
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    """COCO's measures of own names, and ``other`` names' AP where there are any."""
    trained: Mapping[str, Any]
    """Metrics of the training."""
    trials: Sequence[Mapping[str, Any]]
    """Models between before and after, the chosen one first, see ``training.averaging``."""
    settings: Mapping[str, Any]


def write_results(out: Place, tuned: Tuned, benchmark: Benchmark, predictions: Place, model: str) -> None:
    """Write numbers, card and pictures of mistakes into the folder of a model.

    Args:
        out: the folder.
        tuned: what is told.
        benchmark: that judged the model.
        predictions: folder of MODEL/SPLIT/TASK.
        model: name of its folder there.
    """
    numbers = {"before": tuned.before, "after": tuned.after, "pictures": tuned.pictures, **tuned.trained}
    chosen = {"share": tuned.trials[0]["share"], "trials": tuned.trials, "settings": tuned.settings}
    write_json(out / RESULT_FILE, numbers | chosen)
    write_card(out / CARD_FILE, tuned)
    write_mistakes(benchmark, predictions, model, out)


def write_card(place: Place, tuned: Tuned) -> None:
    """Write the card as Markdown; names and places are shown as they are and never as marks."""
    with replacing(place) as path:
        path.write_text("\n".join(_lines(tuned)) + "\n", encoding="utf-8")


def _lines(tuned: Tuned) -> Iterator[str]:
    yield f"# A model tuned on {_plain(tuned.data)}"
    yield ""
    yield f"It started from {_plain(tuned.start)} and finds {len(tuned.names)} names:"
    shown = ", ".join(_plain(name) for name in tuned.names[:_SHOWN_NAMES])
    yield shown + (f" and {len(tuned.names) - _SHOWN_NAMES} more." if len(tuned.names) > _SHOWN_NAMES else ".")
    yield ""
    yield "## What it is worth"
    yield ""
    yield "| | before | after |"
    yield "| --- | ---: | ---: |"
    for measure in ("AP", "AP50", "AP75"):
        yield f"| own names, {measure} | {_number(tuned.before, measure)} | {_number(tuned.after, measure)} |"
    yield f"| other names, AP | {_number(tuned.before, 'other')} | {_number(tuned.after, 'other')} |"
    yield ""
    judges, choosers = tuned.pictures["validation"], tuned.pictures.get("choose")
    yield f"Own names by {judges} pictures that it did not learn from."
    if choosers:
        yield f"{choosers} others chose when to stop and what to keep."
    elif tuned.is_chosen:
        yield "They chose when to stop and what to keep as well, which flatters it a little: there were too few others."
    yield f"Other names: {_plain(tuned.kept)}."
    yield ""
    yield "## Data"
    yield ""
    yield f"- {_plain(tuned.layout)}"
    yield from (f"- {part}: {count} pictures" for part, count in tuned.pictures.items())
    yield ""
    yield "## How it was made"
    yield ""
    yield f"- {tuned.trained['steps']} steps, {tuned.trained['seconds'] / 60:.1f} minutes"
    yield f"- {100 * tuned.trials[0]['share']:.0f} % of the way from the weights before to those after tuning"
    yield from (f"- {name}: {_plain(str(value))}" for name, value in tuned.settings.items())


def _number(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return "–" if value is None else f"{value:.1f}"


def _plain(text: str) -> str:
    return _MARKS.sub(r"\\\1", printable(text, ""))
