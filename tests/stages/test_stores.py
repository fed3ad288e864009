"""Places in stores as the commands take them: what is wrong with one is told, with status 2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from pipeline.cli import run_stage
from pipeline.store.storage import read_text, to_place
from stages import calibrate, evaluate, finetune, phrases, prepare, pseudo_label, report, score, train

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ["--params", str(ROOT / "params.yaml")]
COMMANDS: dict[str, tuple[Any, list[str]]] = {
    "prepare": (prepare, ["--out", "{}/records", *PARAMS]),
    "train": (train, ["teacher", "--human", "{}/human", "--out", "{}/model", *PARAMS]),
    "teacher": (train, ["control", "--human", "{}/human", "--teacher", "{}/teacher", "--out", "{}/model", *PARAMS]),
    "dev": (train, ["teacher", "--human", "{}/human", "--dev", "{}/dev", "--out", "{}/model", *PARAMS]),
    "dry": (train, ["teacher", "--human", "{}/human", "--dry-run", *PARAMS]),
    "phrases": (phrases, ["--records", "{}/web", "--out", "{}/phrases", *PARAMS]),
    "pseudo_label": (
        pseudo_label,
        ["--records", "{}/web", "--phrases", "{}/phrases", "--teacher", "{}/teacher", "--out", "{}/labels", *PARAMS],
    ),
    "calibrate": (calibrate, ["--records", "{}/dev", "--teacher", "{}/teacher", "--out", "{}/curve.csv", *PARAMS]),
    "evaluate": (
        evaluate,
        ["--model", "{}/m", "--records", "{}/records", "--out", "{}/found", "--metrics", "{}/m.json", *PARAMS],
    ),
    "report": (
        report,
        ["--records", "{}/r", "--predictions", "{}/p", "--metrics", "{}/m", "--out", "{}/out", *PARAMS],
    ),
    "score": (score, ["--protocol", "coco", "--annotations", "{}/truth.json", "--predictions", "{}/found.json"]),
    "finetune": (finetune, ["--data", "{}/pictures", "--from", "{}/model", "--out", "{}/tuned", *PARAMS]),
}


def status_of(stage: Any, words: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        run_stage(stage.__doc__, stage.add_arguments, stage.run, words)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def place_with_a_fault(
    request: pytest.FixtureRequest,
    s3: Any,
    s3_denied: Callable[[], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Give a URL that is of no use, and a pattern of why."""
    if request.param == "denied":
        with s3_denied():
            yield "s3://raw", "forbidden|access key id you provided does not exist"
    elif request.param == "nobody":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        S3FileSystem.clear_instance_cache()
        yield "s3://raw", "credentials"
    else:
        yield {
            "bucket": ("s3://no-such-bucket", "no such bucket"),
            "prefix": ("s3://raw/nothing", ""),
            "scheme": ("nowhere://raw", "no such kind of store here"),
        }[request.param]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_running")
@pytest.mark.parametrize("place_with_a_fault", ["bucket", "prefix", "denied", "nobody", "scheme"], indirect=True)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_is_of_no_use_is_told_by_every_command(
    name: str,
    place_with_a_fault: tuple[str, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, why = place_with_a_fault
    if name == "prepare" and url == "s3://raw/nothing":
        pytest.skip("nothing is wrong with a new prefix")
    monkeypatch.chdir(tmp_path)
    stage, words = COMMANDS[name]
    assert status_of(stage, [word.replace("{}", url) for word in words]) == 2
    told = capsys.readouterr().err
    assert "error: " in told
    assert url in told
    assert re.search(why, told.lower())
    assert "Traceback" not in told


def test_detections_are_scored_from_a_store(s3: Any, tmp_path: Path) -> None:
    truth = {
        "images": [{"id": 1, "width": 10, "height": 10}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.9}]
    place = to_place("s3://raw/score")
    (place / "truth.json").write_text(json.dumps(truth))
    (place / "found.json").write_text(json.dumps(found))
    words = ["--protocol", "coco", "--annotations", f"{place}/truth.json", "--predictions", f"{place}/found.json"]
    with pytest.raises(SystemExit) as caught:
        run_stage(score.__doc__, score.add_arguments, score.run, [*words, "--json", f"{place}/out.json"])
    assert caught.value.code == 0
    assert json.loads(read_text(place / "out.json") or "")["AP"] == pytest.approx(1)
