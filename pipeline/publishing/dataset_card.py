"""The card of pseudo-labels on the hub: schema, teacher, thresholds, counts, reasons, and how to load them."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from pipeline.inspection.figures import SCORE_BINS, Statistics, by_licence, collect_statistics
from pipeline.publishing.markdown import block, items, plain, table
from pipeline.store.shards import list_shards, read_table
from pipeline.store.storage import Place

FREQUENT = 20
_SIZES = (("1K", 1_000), ("10K", 10_000), ("100K", 100_000), ("1M", 1_000_000), ("10M", 10_000_000))
_COLUMNS = {
    "key": "unique, made of the content",
    "image": "the picture: its encoded bytes, or a path or URL",
    "height": "pixels of the decoded picture",
    "width": "pixels of the decoded picture",
    "source": "data set that the row is of",
    "caption": "exactly as it came",
    "phrases": "noun phrases of the caption: where they stand [start, end), their boxes x1 y1 x2 y2 score in pixels, "
    "or the reason why there are none",
    "objects": "boxes of named categories, in pixels",
    "reject_reason": "null when the row has boxes",
    "reviewed": "whether a person judged the row",
    "license": "of the picture, as its data set names it; null where it says nothing",
}


def dataset_card(name: str, place: Place, licence: str) -> str:
    """Return README.md of a repository of labels.

    Args:
        name: ``owner/dataset``.
        place: of the shards.
        licence: as the hub names it.

    Raises:
        MissingInputError: there are no shards.
        ShardError: they hold no labels, or one is broken.
    """
    import yaml

    stats = collect_statistics(place, FREQUENT)
    shards = list_shards(place)
    schema = read_table(shards[0]).schema
    has_bytes = _has_bytes(shards[0])
    metadata = {
        "license": licence,
        "pretty_name": name.rpartition("/")[2],
        "task_categories": ["object-detection", "zero-shot-object-detection"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [_size(stats.rows)],
        "tags": ["glip", "phrase-grounding", "pseudo-labels"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "part-*.parquet"}]}],
        "dataset_info": {"features": features(schema, has_bytes)},
    }
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {plain(name.rpartition('/')[2])}",
        "",
        f"{stats.rows:,} pictures with {stats.boxes:,} boxes that a detector drew: pseudo-labels, in {stats.shards:,} "
        "Parquet files.",
        "",
        "## Load",
        "",
        *block(_usage(name), "python"),
        *_made_by(stats),
        *_counts(stats),
        "## Columns",
        "",
        *table(
            ("column", "type", "what it is"),
            [(each.name, _short(each.type), _COLUMNS.get(each.name, "")) for each in schema],
        ),
        "## Licence",
        "",
        f"{plain(licence)}, of the labels. Pictures and captions are their owners'; the column source says whose.",
        *_licences(stats),
    ]
    return "\n".join(lines) + "\n"


def _usage(name: str) -> str:
    return f"""\
from datasets import load_dataset

labels = load_dataset("{name}", split="train")
print(labels[0]["caption"] if "caption" in labels.column_names else labels[0]["objects"])"""


def _made_by(stats: Statistics) -> list[str]:
    made = stats.provenance
    if not made:
        return ["## Made by", "", "Nobody wrote down what.", ""]
    teacher, names = made.get("teacher", {}), made.get("names")
    entries: dict[str, Any] = {"teacher": teacher.get("name"), "SHA-256 of its weights": teacher.get("sha256")}
    if isinstance(names, dict) and isinstance(names.get("classes"), list):
        entries["names asked for"] = ", ".join(map(str, names["classes"]))
    else:
        entries["parser of captions"] = made.get("parser")
    settings = json.dumps(made.get("settings", {}), indent=2, sort_keys=True)
    mixed = f"MIXED: {stats.provenances} different teachers, parsers or settings; this is the first of them."
    return [
        "## Made by",
        "",
        *items({name: value for name, value in entries.items() if value}),
        *([mixed, ""] if stats.provenances > 1 else []),
        "Thresholds and other settings:",
        "",
        *block(settings, "json"),
    ]


def _licences(stats: Statistics) -> list[str]:
    """Return what the data sets say of their pictures, which is not for whoever labels them to choose."""
    if not stats.licensed:
        return ["Their data sets name no licence of any picture."]
    rows = [(name, f"{count:,}") for name, count in by_licence(stats).items()]
    told = "What their data sets say of each is in the column license:"
    return [told, "", *table(("licence of the picture", "rows"), rows)]


def _counts(stats: Statistics) -> list[str]:
    bins = [(f"{i / SCORE_BINS:.1f}–{(i + 1) / SCORE_BINS:.1f}", f"{n:,}") for i, n in enumerate(stats.scores) if n]
    lines = ["## Counts", ""]
    lines += items({"rows": f"{stats.rows:,}", "phrases": f"{stats.phrases:,}", "boxes": f"{stats.boxes:,}"})
    lines += table(("score", "boxes"), bins)
    lines += table(("most frequent with boxes", "times"), [(k, f"{n:,}") for k, n in stats.most_frequent.items()])
    for what, reasons in (("rows", stats.row_rejects), ("phrases", stats.phrase_rejects)):
        lines += table((f"{what} without boxes, by reason", "count"), [(k, f"{n:,}") for k, n in reasons.items()])
    if stats.defects:
        lines += table(("broken", "count"), [(kind, f"{n:,}") for kind, n in stats.defects.items()])
    return lines


def features(schema: pa.Schema, has_bytes: bool) -> list[dict[str, Any]]:
    """Return a schema as the hub's metadata has it; pictures that are in the shards are shown by its viewer."""
    found = [_feature(each) for each in schema]
    return [{"name": "image", "dtype": "image"} if has_bytes and f["name"] == "image" else f for f in found]


def _feature(field: pa.Field) -> dict[str, Any]:
    return {"name": field.name, **_kind(field.type)}


def _kind(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(kind):
        return {"struct": [_feature(kind.field(i)) for i in range(kind.num_fields)]}
    if pa.types.is_list(kind):
        inner = _kind(kind.value_type)
        return {"list": inner.get("struct") or inner.get("dtype") or inner}
    return {"dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind))}


def _short(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return "struct " + ", ".join(kind.field(i).name for i in range(kind.num_fields))
    return f"list of {_short(kind.value_type)}" if pa.types.is_list(kind) else str(kind)


def _has_bytes(shard: Place) -> bool:
    """Tell whether the pictures of a shard are in it."""
    images = read_table(shard, ("image",))["image"].combine_chunks()
    return len(images) > 0 and images.field("bytes").null_count == 0


def _size(rows: int) -> str:
    """Return the hub's word for so many rows."""
    below = "n"
    for name, limit in _SIZES:
        if rows < limit:
            return f"{below}<n<{name}" if below != "n" else f"n<{name}"
        below = name
    return "n>10M"
