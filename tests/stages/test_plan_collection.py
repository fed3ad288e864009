"""``glip plan`` of downloads and curation: a sample's metrics, scaled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages import glip

DOWNLOAD = {
    "urls": 1000,
    "pictures": 700,
    "bytes": 70_000_000,
    "urls_per_s": 100.0,
    "busiest_host_urls": 500,
    "reasons": {"http_404": 300},
}
CURATE = {"rows": 700, "kept": 350, "pairs_per_s": 50.0}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    (tmp_path / "download.json").write_text(json.dumps(DOWNLOAD))
    (tmp_path / "curate.json").write_text(json.dumps(CURATE))
    (tmp_path / "params.yaml").write_text(
        f"extends: {Path(__file__).resolve().parents[2] / 'params.yaml'}\ndownload: {{host_pause_s: 0.036}}\n"
    )
    return tmp_path


def plan(folder: Path, *words: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        glip.main(["plan", "--params", str(folder / "params.yaml"), *words])
    assert (ended.value.code or 0) == status


def test_numbers_grow_with_the_urls(metrics: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--download", str(metrics / "download.json"), "--curate", str(metrics / "curate.json")]
    plan(metrics, *files, "--pairs", "3.6e6", "--machines", "1", "20", "--json")
    found: Any = json.loads(capsys.readouterr().out)
    # 10 h at 100 a second; the busiest host has half of the URLs, which are 36 ms apart
    assert found["download"]["hours"] == {"1": pytest.approx(18.0), "20": pytest.approx(18.0)}
    assert found["download"]["hours_of_busiest_host"] == pytest.approx(18.0)
    assert found["download"]["pictures"] == 2_520_000
    assert found["download"]["bytes"] == 252_000_000_000
    assert found["curate"]["hours"] == {"1": pytest.approx(20.0), "20": pytest.approx(1.0)}
    assert found["curate"]["kept"] == 1_800_000
    plan(metrics, *files, "--price-per-gb", "0.1")
    text = capsys.readouterr().out
    assert "download  1,000 URLs, 100.0 a second and machine" in text
    assert "storage   0.1 GB of 700 pictures" in text
    assert "egress    0.01" in text
    assert "about 350 stay" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file of metrics; run the stage on a sample with --metrics"),
        ("[]", "no metrics of that stage"),
        (json.dumps(DOWNLOAD | {"urls_per_s": None}), "urls_per_s: expected a number above 0, found None"),
    ],
)
def test_metrics_that_say_nothing_are_refused(
    metrics: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    (metrics / "download.json").unlink()
    if content is not None:
        (metrics / "download.json").write_text(content)
    plan(metrics, "--download", str(metrics / "download.json"), status=2)
    assert message in capsys.readouterr().err
