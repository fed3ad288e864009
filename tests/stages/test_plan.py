"""``glip plan`` from its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.store.records import CaptionRecord, ImageRef
from pipeline.store.shards import shard_name, write_shard
from stages import glip


@pytest.fixture
def web(tmp_path: Path) -> Path:
    image = ImageRef(path="x")
    rows = [CaptionRecord(key=str(i), image=image, height=1, width=1, caption="a dog", source="t") for i in range(500)]
    for number in range(4):
        write_shard(tmp_path / "web" / shard_name(number), rows, CaptionRecord)
    return tmp_path / "web"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        glip.main(["plan", *map(str, words)])
    return int(ended.value.code or 0)


def test_plan_scales_to_24_million_pairs_and_a_price(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--records", web, "--images-per-s", 20, "--pairs", "24e6", "--gpus", 64, 512, "--price", 2.5]
    assert run(*words, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["input"]["pairs"] == 24_000_000
    assert plan["input"]["shards"] == 48_000
    hours = 24e6 / 20 / 3600
    assert [outcome["gpus"] for outcome in plan["runs"]] == [64, 512]
    assert plan["runs"][0]["gpu_hours"] == pytest.approx(hours, rel=0.01)
    assert plan["runs"][0]["cost"] == pytest.approx(2.5 * hours, rel=0.01)
    assert run(*words, "--interrupted-every", 4) == 0
    text = capsys.readouterr().out
    assert "24,000,000 pairs in 48,000 shards" in text
    assert "20.0 images/s a GPU, as given" in text
    assert "machines  last 4 h and are replaced within 300 s" in text


def test_rounds_label_all_pairs_anew(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--records", web, "--images-per-s", 20, "--gpus", 8, "--price", 2.5]
    assert run(*words, "--json") == 0
    once = json.loads(capsys.readouterr().out)
    assert run(*words, "--rounds", 3, "--json") == 0
    thrice = json.loads(capsys.readouterr().out)
    for name in ("wall_hours", "gpu_hours", "cost"):
        assert thrice["runs"][0][name] == pytest.approx(3 * once["runs"][0][name])
    assert thrice["runs"][0]["wasted_share"] == once["runs"][0]["wasted_share"]
    assert run(*words, "--rounds", 3) == 0
    assert "rounds    3: what follows is of all" in capsys.readouterr().out
    assert run(*words, "--rounds", 0) == 2


def test_an_endpoint_is_planned_by_requests_and_not_asked(
    web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eyes = tmp_path / "eyes.yaml"
    eyes.write_text("endpoint: http://127.0.0.1:9\nmodel: eyes\nrequests_per_minute: 100\nprice_per_request: 0.01\n")
    assert run("--records", web, "--teacher", eyes, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan == {"requests": 2000, "wall_hours_of_one_process": pytest.approx(1 / 3), "cost": pytest.approx(20)}
    assert run("--records", web, "--teacher", eyes, "--rounds", 3) == 0
    assert "6,000 requests" in capsys.readouterr().out


def test_nonsense_is_a_message(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--records", web / "none") == 2
    assert "no Parquet shards" in capsys.readouterr().err
    assert run("--records", web, "--images-per-s", 5, "--gpus", 0) == 2
    assert "expected all above zero" in capsys.readouterr().err
    assert run("--records", web, "--images-per-s", 5, "--pairs", 0) == 2
    assert "--pairs is 0" in capsys.readouterr().err
