"""``glip inspect``: what it prints, draws, and answers to mistakes."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli import printable
from pipeline.store.records import GroundingRecord, ImageRef, Phrase, ScoredBox
from pipeline.store.shards import PROVENANCE_KEY, shard_name, write_shard
from stages.glip import main


def row(key: str, image: bytes) -> GroundingRecord:
    dog = Phrase(text="dog", char_spans=((2, 5),), boxes=(ScoredBox(xyxy=(4, 4, 20, 20), score=0.75),))
    return GroundingRecord(
        key=key, image=ImageRef(bytes=image), height=32, width=48, caption="a dog", source="t", phrases=(dog,)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(data, "PNG")
    write_shard(tmp_path / "labels" / shard_name(0), [row("k1", data.getvalue()), row("k2", b"x")], GroundingRecord)
    return tmp_path / "labels"


def glip_inspect(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *map(str, words)])
    return int(ended.value.code or 0)


def test_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert glip_inspect(folder) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"{folder}\n")
    assert "2 rows, 2 phrases, 2 boxes" in page


def test_figures_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert glip_inspect(folder, "--json", "--top", 1) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["boxes"] == 2
    assert figures["most_frequent_phrases"] == {"dog": 2}


def test_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert glip_inspect(folder, "--keys") == 0
    assert capsys.readouterr().out == "k1\ta dog\nk2\ta dog\n"


ESCAPE = "\x1b[2J\u202e"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--json"],
        ["--keys"],
        ["--sample", "1"],
        ["--sample", "1", "--json"],
        ["--phrase", ESCAPE],
        ["--row", f"k{ESCAPE}"],
        ["--row", f"no{ESCAPE}"],
        ["--against", "OTHER"],
        ["--against", "OTHER", "--json"],
        ["--sql", "SELECT * FROM boxes"],
        ["--sql", "SELECT * FROM boxes", "--json"],
        ["--sql", f"SELECT {ESCAPE}"],
        ["--reason", ESCAPE],
        ["--html", "page.html"],
        ["--export", "coco", "--out", ESCAPE],
    ],
)
def test_texts_of_shards_reach_the_terminal_escaped(
    tmp_path: Path, words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(data, "PNG")
    plain = row(f"k{ESCAPE}", data.getvalue())
    dog = dataclasses.replace(plain.phrases[0], text=f"dog{ESCAPE}", reject_reason=f"r{ESCAPE}")
    hostile = dataclasses.replace(plain, caption=f"a dog{ESCAPE}", source=f"s{ESCAPE}", phrases=(dog,))
    provenance = json.dumps({"teacher": {"name": ESCAPE}, "parser": ESCAPE, "settings": {ESCAPE: ESCAPE}})
    write_shard(tmp_path / f"l{ESCAPE}" / shard_name(0), [hostile], GroundingRecord, {PROVENANCE_KEY: provenance})
    write_shard(tmp_path / "OTHER" / shard_name(0), [plain], GroundingRecord)
    glip_inspect(f"l{ESCAPE}", *words)
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    assert not set(ESCAPE) & set(captured.out + captured.err) - set(printable(ESCAPE))
    assert captured.out + captured.err


def test_one_pair_drawn(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "pair.png"
    assert glip_inspect(folder, "--row", "k1", "--save", picture) == 0
    assert "“a dog”" in capsys.readouterr().out
    with Image.open(picture) as drawn:
        assert drawn.width == 480
        assert drawn.height > 320


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "k9"], "no row has the key 'k9'; keys look like k"),
        (["--row", "k2", "--save", "pair.png"], "row k2: image_unreadable"),
        (["--row", "k1", "--save", "pair.nonsense"], "name a file ending in .png or .jpg"),
        (["--save", "pair.png"], "name it with --row KEY"),
        (["--keys", "--limit", "-1"], "--limit: '-1': expected a whole number of at least 1"),
        (["--sample", "many"], "--sample: 'many': expected a whole number of at least 0"),
        (["--min-score", "nan"], "--min-score: 'nan': expected a number from 0 to 1"),
        (["--against", "nonsense://a/b"], "nonsense://a/b: "),
    ],
)
def test_mistakes_exit_2_with_a_message(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert glip_inspect(folder, *words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_broken_shards_and_empty_folders_exit_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / shard_name(0)).write_bytes(b"PAR1")
    assert glip_inspect(folder) == 2
    assert "part-00000.parquet: not a readable Parquet file" in capsys.readouterr().err
    assert glip_inspect(folder / "nothing") == 2
    assert "no Parquet shards" in capsys.readouterr().err


def test_a_sample_with_filters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert glip_inspect(folder, "--sample", 5, "--phrase", "DOG", "--min-score", 0.7) == 0
    assert capsys.readouterr().out.count("“a dog”") == 2
    assert glip_inspect(folder, "--min-score", 0.8) == 0
    assert capsys.readouterr().out == "no pair is like that\n"
    assert glip_inspect(folder, "--sample", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["phrases"] == [["dog", [[4.0, 4.0, 20.0, 20.0, 0.75]]]]


def test_an_answer_to_sql(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = "SELECT phrase, count(*) AS n, max(score) AS best FROM boxes GROUP BY phrase"
    assert glip_inspect(folder, "--sql", ask, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"phrase": "dog", "n": 2, "best": 0.75}
    assert glip_inspect(folder, "--sql", ask) == 0
    assert "dog" in capsys.readouterr().out
    assert glip_inspect(folder, "--sql", "SELECT colour FROM boxes") == 2
    assert "colour" in capsys.readouterr().err


def test_a_page_and_an_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / shard_name(0)).unlink()
    data = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(data, "PNG")
    write_shard(folder / shard_name(0), [row("k1", data.getvalue())], GroundingRecord)
    page = tmp_path / "new" / "labels.html"
    assert glip_inspect(folder, "--html", page) == 0
    assert f"1 pairs, 0.0 MB → {page}" in capsys.readouterr().out
    assert glip_inspect(folder, "--export", "coco", "--out", tmp_path / "coco") == 0
    assert "1 pairs with boxes as coco" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "coco" / "annotations.json").read_text())["annotations"]) == 1
    assert glip_inspect(folder, "--export", "coco") == 2
    assert "--export FORMAT and --out DIR go together" in capsys.readouterr().err


def test_two_versions_and_names(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    write_shard(other / shard_name(0), [row("k1", b"x")], GroundingRecord)
    assert glip_inspect(folder, "--against", other) == 0
    page = capsys.readouterr().out
    assert str(folder) in page
    assert str(other) in page
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    assert glip_inspect(folder, "--names", tmp_path / "names.txt") == 0
    assert "1 of 2 names" in capsys.readouterr().out
