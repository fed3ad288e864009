"""glip odinw: a folder of metrics to the paper's table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import BenchmarkError, MissingInputError
from pipeline.evaluation.odinw_tuned import read_runs
from stages.glip import main


def write(folder: Path, place: str, ap: float, source: str = "odinw_raccoon") -> None:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"test": {"detection": {source: {"all": {"AP": ap}}}}}), encoding="utf-8")


def test_the_table_has_means_spreads_and_published_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, ap in ((3, 50.0), (30, 60.0)):
        write(tmp_path / "runs", f"full/1/{seed}/raccoon.json", ap)
    write(tmp_path / "runs", "prompt/all/3/raccoon.json", 33.3, "odinw_manual_raccoon")
    with pytest.raises(SystemExit) as ended:
        main(["odinw", str(tmp_path / "runs"), "--json", str(tmp_path / "out.json")])
    assert ended.value.code == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["full", "1", "55.0", "±", "7.1", "2", "1", "43.5", "48.0", "49.6", "51.1", "59.9"]
    assert second.split() == ["prompt", "all", "33.3", "1", "1", "43.3", "58.5", "62.8", "62.4", "67.9"]
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["full/1"]["ap"] == 55.0


@pytest.mark.parametrize("place", ["half/1/3/raccoon.json", "full/2/3/raccoon.json", "full/1/x/raccoon.json"])
def test_a_file_out_of_place_is_named(tmp_path: Path, place: str) -> None:
    write(tmp_path, place, 1.0)
    with pytest.raises(BenchmarkError, match=r"raccoon\.json: expected MODE/SHOTS/SEED/DATA_SET\.json"):
        read_runs(tmp_path, "test")


def test_metrics_of_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="judge tuned models"):
        read_runs(tmp_path, "test")
    write(tmp_path, "full/1/3/raccoon.json", 1.0, source="coco_val2017")
    with pytest.raises(BenchmarkError, match="no AP of odinw_raccoon on test"):
        read_runs(tmp_path, "test")
