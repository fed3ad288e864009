"""Packing emoji packages: what the list of concepts means, and what a wrong package is told."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cli import run_stage
from pipeline.errors import ConfigError
from pipeline.prepare.embedded import pack_sprites
from pipeline.prepare.embedded.pack_sprites import CONCEPTS_FILE, read_concepts
from pipeline.prepare.embedded.sprites import SPRITES_SCHEMA

CONCEPTS = "# a comment\n[animals]\ndog2=dog\nmouse_face=grey_mouse/grey_mice\n\n[food]\npeach/peaches cherry\n"
EMOJI = [
    {"short_name": "dog2", "name": "DOG", "image": "1.png", "short_names": ["dog2", "dog"]},
    {"short_name": "mouse_face", "name": "MOUSE", "image": "2.png", "short_names": ["mouse_face"]},
    {"short_name": "peach", "name": "PEACH", "image": "3.png", "short_names": ["peach"]},
    {"short_name": "cherry", "name": "CHERRY", "image": "4.png", "short_names": ["cherry"]},
]


def picture(shade: int) -> bytes:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[10:50, 5:60] = (shade, 100, 200, 255)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def package(path: Path, style: str, count: int = 4) -> Path:
    files = {"package/emoji.json": json.dumps(EMOJI).encode()}
    files |= {f"package/img/{style}/64/{i}.png": picture(40 * i) for i in range(1, count + 1)}
    # Members that must not be followed or written anywhere.
    files["../outside.txt"] = b"no"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def concepts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "concepts.txt"
    path.write_text(CONCEPTS, encoding="utf-8")
    monkeypatch.setattr(pack_sprites, "CONCEPTS_FILE", path)
    return path


def status_of(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        run_stage(pack_sprites.__doc__, pack_sprites.add_arguments, pack_sprites.run, [*map(str, words)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_word_gives_short_name_name_and_plural(concepts_file: Path) -> None:
    assert read_concepts(concepts_file) == [
        {"short_name": "dog2", "name": "dog", "plural": "dogs", "group": "animals"},
        {"short_name": "mouse_face", "name": "grey mouse", "plural": "grey mice", "group": "animals"},
        {"short_name": "peach", "name": "peach", "plural": "peaches", "group": "food"},
        {"short_name": "cherry", "name": "cherry", "plural": "cherries", "group": "food"},
    ]


@pytest.mark.parametrize(
    ("name", "plural"),
    [("dog", "dogs"), ("fly", "flies"), ("key", "keys"), ("bus", "buses"), ("box", "boxes"), ("torch", "torches")],
)
def test_regular_plurals_need_not_be_written(tmp_path: Path, name: str, plural: str) -> None:
    path = tmp_path / "concepts.txt"
    path.write_text(f"[x]\n{name}\n", encoding="utf-8")
    assert read_concepts(path)[0]["plural"] == plural


def test_a_name_given_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "concepts.txt"
    path.write_text("[x]\ndog dog2=dog\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="names given twice: dog"):
        read_concepts(path)


def test_every_emoji_is_one_concept() -> None:
    short_names = [concept["short_name"] for concept in read_concepts(CONCEPTS_FILE)]
    assert len(short_names) == len(set(short_names))


def test_packages_become_one_file(tmp_path: Path, concepts_file: Path) -> None:
    google, twitter = package(tmp_path / "g.tgz", "google"), package(tmp_path / "t.tgz", "twitter")
    out = tmp_path / "sprites.parquet"
    assert status_of(google, twitter, "--out", out) == 0
    table = pq.read_table(out)
    assert table.schema.equals(SPRITES_SCHEMA)
    rows = {row["name"]: row for row in table.to_pylist()}
    assert list(rows) == ["cherry", "dog", "grey mouse", "peach"]
    assert rows["dog"]["keywords"] == ["dog", "dog2"]
    sprite = np.asarray(Image.open(io.BytesIO(rows["peach"]["twitter"])).convert("RGBA"))
    original = np.asarray(Image.open(io.BytesIO(picture(120))))
    assert (sprite[..., 3] == original[..., 3]).all()
    assert np.abs(sprite.astype(int) - original)[original[..., 3] > 0].max() <= 8  # palette, not the very colour
    assert not (tmp_path.parent / "outside.txt").exists()
    first = out.read_bytes()
    assert status_of(google, twitter, "--out", out) == 0
    assert out.read_bytes() == first


def test_an_emoji_that_is_not_there_is_told(
    tmp_path: Path, concepts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concepts_file.write_text("[x]\nunicorn_cup\n", encoding="utf-8")
    google, twitter = package(tmp_path / "g.tgz", "google"), package(tmp_path / "t.tgz", "twitter")
    assert status_of(google, twitter, "--out", tmp_path / "out") == 2
    assert "no emoji is called unicorn_cup" in capsys.readouterr().err


def test_a_package_that_is_missing_broken_or_another_is_told(
    tmp_path: Path, concepts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    google, out = package(tmp_path / "g.tgz", "google"), tmp_path / "out"
    assert status_of(google, tmp_path / "absent.tgz", "--out", out) == 2
    assert "absent.tgz: no such file; get it with: npm pack" in capsys.readouterr().err
    assert status_of(google, package(tmp_path / "few.tgz", "twitter", count=2), "--out", out) == 2
    assert "holds no package/img/twitter/64/3.png (2 missing)" in capsys.readouterr().err
    (tmp_path / "broken.tgz").write_bytes(google.read_bytes()[:200])
    assert status_of(google, tmp_path / "broken.tgz", "--out", out) == 2
    assert "broken.tgz: not a readable package" in capsys.readouterr().err
    assert not out.exists()
