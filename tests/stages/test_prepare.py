"""The stage ``prepare`` on small settings: what it writes, and what it says about mistakes."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import run_stage
from pipeline.store.records import CaptionRecord, DetectionRecord, GroundingRecord
from pipeline.store.shards import list_shards, read_categories, read_shard
from stages import prepare

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"human_detection": 5, "human_grounding": 7, "web": 9, "dev": 4, "test": 6}

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_running")]


def write_params(folder: Path, **changes: Any) -> Path:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["seed"] = changes.pop("seed", 0)
    params["prepare"]["embedded"].update(SIZES)
    params["prepare"].update({"rows_per_shard": 4, **changes})
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    return path


def status_of(folder: Path, out: str = "records", **changes: Any) -> int:
    """Run the stage as a command does; return its exit status."""
    words = ["--params", str(write_params(folder, **changes))]
    words += ["--out", str(folder / out), "--metrics", str(folder / f"{out}.json")]
    with pytest.raises(SystemExit) as caught:
        run_stage(prepare.__doc__, prepare.add_arguments, prepare.run, words)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def read_all(folder: Path, kind: Any) -> list[Any]:
    return [record for path in list_shards(folder) for record in read_shard(path, kind)]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.parquet"))
    }


def test_all_roles_are_written_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert status_of(tmp_path) == 0
    records = tmp_path / "records"
    rows = {
        "human/detection": len(read_all(records / "human/detection", DetectionRecord)),
        "human/grounding": len(read_all(records / "human/grounding", GroundingRecord)),
        "web": len(read_all(records / "web", CaptionRecord)),
    }
    for split in ("dev", "test"):
        rows[f"{split}/detection"] = len(read_all(records / split / "detection", DetectionRecord))
        for task in ("grounding", "referring"):
            rows[f"{split}/{task}"] = len(read_all(records / split / task, GroundingRecord))
    metrics = json.loads((tmp_path / "records.json").read_text(encoding="utf-8"))
    assert {folder: figures["rows"] for folder, figures in metrics.items()} == rows
    for name in ("human_detection", "human_grounding"):
        assert rows[name.replace("_", "/")] == SIZES[name]
    assert rows["web"] == SIZES["web"]
    assert len(list_shards(records / "web")) == 3
    assert f"prepare: {sum(rows.values())} rows, 0 rejected" in caplog.messages[-1]


def test_equal_seeds_make_equal_bytes_and_other_seeds_other_pictures(tmp_path: Path) -> None:
    for out, seed in (("first", 3), ("second", 3), ("third", 4)):
        assert status_of(tmp_path, out, seed=seed) == 0
    first, second, third = (digests(tmp_path / out) for out in ("first", "second", "third"))
    assert first == second
    assert first.keys() == third.keys()
    assert not set(first.values()) & set(third.values())
    # The concepts that are novel are a matter of the data set and not of the seed.
    vocabularies = [read_categories(list_shards(tmp_path / out / "test/detection")[0]) for out in ("first", "third")]
    assert vocabularies[0] == vocabularies[1]


def coco(**changes: Any) -> list[dict[str, Any]]:
    return [{"reader": "coco_detection", "annotations": "absent.json", "images": ".", **changes}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"human": coco()}, "absent.json: no such file; mend the path in params.yaml"),
        ({"dev": coco(annotations=None)}, "prepare.dev[0].annotations is None; expected Url"),
        (
            {"dev": coco(splits="val")},
            "prepare.dev[0].splits is not a setting; settings here: reader, name, data_set, repeat",
        ),
        ({"web": coco(reader="lviss")}, "prepare.web[0]: no reader 'lviss'; readers: "),
        ({"test": [{"annotations": "a"}]}, "prepare.test[0] must name a reader or a mixture"),
        ({"rows_per_shards": 3}, "prepare.rows_per_shards is not a setting; did you mean rows_per_shard?"),
        ({"web": "embedded"}, "prepare.web is 'embedded'; expected a list"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert status_of(tmp_path, **changes) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "records").exists()
    assert not (tmp_path / "records.json").exists()


def test_more_concepts_than_there_are_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    embedded = {**params["prepare"]["embedded"], **SIZES, "base_concepts": 9999}
    assert status_of(tmp_path, embedded=embedded) == 2
    assert "prepare.embedded asks for 9999 base and" in capsys.readouterr().err
