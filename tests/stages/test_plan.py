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
    asked = {"model": "eyes", "requests": 2000, "requests_per_minute": 100, "cost": pytest.approx(20)}
    assert plan["endpoints"] == [asked | {"wall_hours_of_one_process": pytest.approx(1 / 3)}]
    assert run("--records", web, "--teacher", eyes, "--rounds", 3) == 0
    assert "6,000 requests" in capsys.readouterr().out


def test_several_teachers_look_at_every_picture_in_turn(
    web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--records", web, "--gpus", 1, "--teacher", "one/a", "--teacher", "two/b"]
    assert run(*words, "--images-per-s", 20, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["teachers"] == ["a", "b"]
    assert plan["rates"]["images_per_s"] == pytest.approx(10)
    assert plan["runs"][0]["gpu_hours"] == pytest.approx(2000 / 10 / 3600)
    assert run(*words, "--images-per-s", 20, 5) == 0
    text = capsys.readouterr().out
    assert "4.0 images/s a GPU" in text
    assert "teachers  2 look at every picture in turn, at that speed together: a, b" in text
    eyes = tmp_path / "eyes.yaml"
    eyes.write_text("endpoint: http://127.0.0.1:9\nmodel: eyes\nrequests_per_minute: 300\nprice_per_request: 0.01\n")
    assert run(*words, "--teacher", eyes, "--images-per-s", 20, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rates"]["images_per_s"] == pytest.approx(1 / (1 / 20 + 1 / 20 + 1 / 5))
    assert [each["cost"] for each in plan["endpoints"]] == [pytest.approx(20)]
    assert run(*words, "--teacher", eyes, "--images-per-s", 20) == 0
    assert "endpoint  eyes: 2,000 requests" in capsys.readouterr().out
    for speeds, message in (((1, 2, 3), "3 numbers for 2 teachers"), ((5, 0), "5, 0 images/s; expected all above")):
        assert run(*words, "--images-per-s", *speeds) == 2
        assert message in capsys.readouterr().err
    assert run("--records", web, "--teacher", "a", "--teacher", "a") == 2
    assert "named twice" in capsys.readouterr().err


def test_nonsense_is_a_message(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--records", web / "none") == 2
    assert "no Parquet shards" in capsys.readouterr().err
    assert run("--records", web, "--images-per-s", 5, "--gpus", 0) == 2
    assert "expected all above zero" in capsys.readouterr().err
    assert run("--records", web, "--images-per-s", 5, "--pairs", 0) == 2
    assert "--pairs is 0" in capsys.readouterr().err
