"""Manifests: DVC follows shards in a store by the hashes that their ends carry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from upath import UPath

from pipeline.data.manifest import describe_shards
from pipeline.data.records import CaptionRecord, ImageRef
from pipeline.data.shards import write_shard

ROOT = Path(__file__).resolve().parents[3]


def pairs(number: int, caption: str = "a red cup on a table") -> list[CaptionRecord]:
    image = ImageRef(path="nowhere.jpg")
    return [
        CaptionRecord(key=f"{number}-{i}", image=image, height=8, width=8, caption=caption, source="test")
        for i in range(3)
    ]


def fill(folder: Path | UPath) -> None:
    for number in range(3):
        write_shard(folder / f"part-{number:05d}.parquet", pairs(number), CaptionRecord)


def test_one_changed_shard_changes_one_entry(s3: Any, tmp_path: Path) -> None:
    store = UPath("s3://raw/web")
    fill(store)
    fill(tmp_path)
    before = describe_shards(store)
    assert before == describe_shards(tmp_path)
    assert [entry["rows"] for entry in before] == [3, 3, 3]
    write_shard(store / "part-00001.parquet", pairs(1, "a dog"), CaptionRecord)
    after = describe_shards(store)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    write_shard(store / "part-00001.parquet", pairs(1), CaptionRecord, {"glip.repeat": "2"})
    assert describe_shards(store)[1]["sha256"] not in (before[1]["sha256"], after[1]["sha256"])


@pytest.mark.ray
@pytest.mark.slow
def test_dvc_runs_again_what_a_changed_shard_concerns(s3: Any, tmp_path: Path) -> None:
    fill(UPath("s3://raw/records/web"))
    graph = yaml.safe_load((ROOT / "cluster/large.yaml").read_text(encoding="utf-8"))
    graph["vars"][0]["store"] = "s3://raw"
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False), encoding="utf-8")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }

    def dvc(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    dvc("init", "--no-scm", "-q")
    assert "phrases: 9 captions" in dvc("repro", "phrases")
    manifest = tmp_path / "manifests/phrases.json"
    before = json.loads(manifest.read_text())["shards"]
    assert "captions" not in dvc("repro", "phrases")
    write_shard(UPath("s3://raw/records/web/part-00001.parquet"), pairs(1, "two dogs"), CaptionRecord)
    log = dvc("repro", "phrases")
    assert "2 of 3 shards were finished already" in log
    after = json.loads(manifest.read_text())["shards"]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
