"""The card of a model on the hub: what it is, how good, trained on what and how, in words and as metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from glip_model.config import GLIPConfig
from glip_model.trained_on import TrainedOn
from pipeline.publishing.markdown import block, items, plain, table

TASK = "zero-shot-object-detection"
PICTURE = "example.png"
"""The card's picture, in the repository."""
SPLITS = ("test", "dev")
"""Of the metrics, the first that is there is published."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model."""

    config: GLIPConfig
    parameters: int
    trained_on: TrainedOn | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Split, task, source, part, measure, as ``evaluate`` writes them, in percent."""
    tuning: Mapping[str, Any] = field(default_factory=dict)
    """What ``glip finetune`` writes."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """What ``calibrate`` writes of the pseudo-labels that it learned from."""
    recipe: str = ""
    """YAML."""
    licence: str
    has_picture: bool = False


@dataclass(frozen=True)
class Result:
    """One measure of one benchmark, in percent."""

    split: str
    task: str
    source: str
    part: str
    measure: str
    value: float


def results(metrics: Mapping[str, Any]) -> list[Result]:
    """Return the measures of the split that is published; entries that are no numbers are left out."""
    split = next((name for name in SPLITS if metrics.get(name)), None)
    return [] if split is None else list(_results(split, metrics[split]))


def _results(split: str, tasks: Any) -> Iterator[Result]:
    for (task, source, part, measure), value in _leaves(tasks, 4):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Result(split, task, source, part, measure, value)


def _leaves(tree: Any, depth: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what lies so deep in mappings, with the names on the way there."""
    if depth == 0:
        yield (), tree
    elif isinstance(tree, Mapping):
        for name, branch in tree.items():
            for names, leaf in _leaves(branch, depth - 1):
                yield (str(name), *names), leaf


def model_card(name: str, facts: ModelFacts) -> str:
    """Return README.md of a model's repository.

    Args:
        name: ``owner/model``.
        facts: what is known of it; what is not known is not spoken of.
    """
    from huggingface_hub import EvalResult, ModelCardData

    found = results(facts.metrics)
    data = ModelCardData(
        license=facts.licence,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["glip", "object-detection", "phrase-grounding", *(["self-training"] if facts.calibration else [])],
        model_name=name.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type=TASK,
                task_name=each.task,
                dataset_type=each.source,
                dataset_name=each.source,
                dataset_split=each.split,
                metric_type=each.measure,
                metric_name=each.measure if each.part == "all" else f"{each.measure} ({each.part})",
                metric_value=each.value,
            )
            for each in found
        ]
        or None,
    )
    lines = [
        "---",
        data.to_yaml().rstrip(),
        "---",
        "",
        f"# {plain(name.rpartition('/')[2])}",
        "",
        "A detector that finds what is named in words: GLIP (Li et al., CVPR 2022), "
        f"{facts.parameters:,} parameters, pictures of {facts.config.test_short_side} to "
        f"{facts.config.test_long_side} pixels.",
        "",
        *([f"![What it finds]({PICTURE})", ""] if facts.has_picture else []),
        "## Use",
        "",
        *block(_usage(name), "python"),
        *_training(facts),
        *_numbers(facts, found),
        "## Licence",
        "",
        f"{plain(facts.licence)}, of the weights and the code beside them. What the data's owners ask for is told by "
        "the data.",
    ]
    return "\n".join(lines) + "\n"


def _usage(name: str) -> str:
    return f"""\
import torch
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

# The code is in this repository; with the package glip-self-training installed, `import glip_model` in its place.
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForZeroShotObjectDetection.from_pretrained("{name}", trust_remote_code=True)
picture = Image.open("street.jpg").convert("RGB")
names = ["cat", "remote control"]
inputs = processor(images=picture, text=names)
with torch.no_grad():
    outputs = model(**inputs)
(found,) = processor.post_process_grounded_object_detection(
    outputs, threshold=0.3, target_sizes=[picture.size[::-1]], text_labels=names
)
print(found["text_labels"], found["boxes"], found["scores"])"""


def _training(facts: ModelFacts) -> list[str]:
    lines = ["## Trained on", ""]
    seen = facts.trained_on
    if seen is None:
        lines += ["Nobody wrote down what.", ""]
    else:
        lines += [f"{plain(seen)}. Expect little of it on pictures of another kind.", ""]
        lines += table(("source", "rows"), [(name, f"{rows:,}") for name, rows in seen.sources.items()])
    if facts.recipe:
        lines += ["<details><summary>Recipe</summary>", "", *block(facts.recipe, "yaml"), "</details>", ""]
    return lines


def _numbers(facts: ModelFacts, found: list[Result]) -> list[str]:
    lines: list[str] = []
    if found:
        lines += [f"## Results, in percent, on {plain(found[0].split)}", ""]
        measures = [(f"{each.task}, {each.source}", each.part, each.measure, f"{each.value:.1f}") for each in found]
        lines += table(("benchmark", "part", "measure", "value"), measures)
    before, after = facts.tuning.get("before"), facts.tuning.get("after")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        lines += ["## Tuned", "", "On pictures that were held out, in percent, before and after:", ""]
        gains = [
            (name, f"{before[name]:.1f}", f"{after[name]:.1f}")
            for name in after
            if isinstance(after[name], int | float) and isinstance(before.get(name), int | float)
        ]
        lines += table(("measure", "before", "after"), gains)
    labels = facts.calibration.get("at_min_score")
    if isinstance(labels, Mapping):
        lines += [
            "## The labels that it learned from",
            "",
            "Pseudo-labels against human boxes, at their threshold:",
            "",
        ]
        lines += items({name: f"{value:.3f}" for name, value in labels.items() if isinstance(value, int | float)})
    return lines
