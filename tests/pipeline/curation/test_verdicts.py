"""Every filter with what it rejects and what it lets pass, and what a double may cost."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.curation.captions import CaptionRules, blocked_words, caption_hash, check_languages
from pipeline.curation.measures import SCORE_SCHEMA, measure_looks, write_measure
from pipeline.curation.settings import CurateConfig, ScoreConfig
from pipeline.curation.verdicts import Evidence, hear_shard, judge, reasons
from pipeline.errors import ConfigError, MissingInputError, ShardError
from pipeline.settings import load_all
from pipeline.store.records import CaptionRecord, ImageRef
from pipeline.store.shards import shard_name, write_shard

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def off() -> CurateConfig:
    """Give filters that reject nothing."""
    return replace(load_all(ROOT / "params.yaml").curate, duplicates="off", min_contrast=0.0)


def noise(seed: int, height: int = 64, width: int = 64) -> Image.Image:
    """Return a picture of large random patches, whose hash survives what the web does to it."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pair(
    image: Image.Image | bytes, caption: str = "a dog in a park", key: str = "", kind: str = "PNG"
) -> CaptionRecord:
    if isinstance(image, bytes):
        data, (width, height) = image, (64, 64)
    else:
        out = io.BytesIO()
        image.save(out, kind)
        data, (width, height) = out.getvalue(), image.size
    return CaptionRecord(key=key, image=ImageRef(bytes=data), height=height, width=width, source="web", caption=caption)


def verdicts(tmp_path: Path, config: CurateConfig, *shards: Sequence[CaptionRecord], **scores: Any) -> list[str]:
    """Return the verdicts on all pairs; ``scores`` are of a single shard."""
    parts = []
    for number, pairs in enumerate(shards):
        named = [replace(each, key=f"{number}-{row}") for row, each in enumerate(pairs)]
        shard, looks = tmp_path / shard_name(number), tmp_path / f"looks-{number}.parquet"
        write_shard(shard, named, CaptionRecord)
        write_measure(looks, measure_looks(named, 10_000, []), {})
        places = {}
        for name, values in scores.items():
            places[name] = tmp_path / f"{name}.parquet"
            rows = {"key": [each.key for each in named], "score": values}
            write_measure(places[name], pa.Table.from_pydict(rows, schema=SCORE_SCHEMA), {})
        parts.append(hear_shard(shard, looks, places, config, blocked_words(config)))
    return [reasons(config)[verdict] for verdict in judge(Evidence.joined(parts), config)]


def test_filters_that_are_off_reject_what_nobody_can_open_alone(tmp_path: Path, off: CurateConfig) -> None:
    pairs = [pair(noise(0)), pair(noise(0)), pair(Image.new("RGB", (1, 200)), ""), pair(b"no picture")]
    assert verdicts(tmp_path, off, pairs) == ["kept", "kept", "kept", "picture_unreadable"]


def test_of_doubles_the_first_that_is_good_stays(tmp_path: Path, off: CurateConfig) -> None:
    dog, cat = noise(1), noise(2)
    first = [pair(dog, "dog"), pair(dog, "a dog of mine"), pair(cat, "the cat there")]
    second = [pair(dog.resize((48, 48)), "my dog again"), pair(cat, "a cat once more"), pair(cat, "cat", kind="JPEG")]
    exact = replace(off, duplicates="exact", min_words=2)
    assert verdicts(tmp_path, exact, first, second) == [
        *("caption_short", "kept", "kept"),
        *("kept", "duplicate_exact", "caption_short"),
    ]
    near = replace(off, duplicates="near")
    assert verdicts(tmp_path, near, first, second) == [
        *("kept", "duplicate_exact", "kept"),
        *("duplicate_near", "duplicate_exact", "duplicate_near"),
    ]


def test_blank_small_and_narrow_pictures_go(tmp_path: Path, off: CurateConfig) -> None:
    blank = Image.new("RGB", (64, 64), (200, 10, 10))
    pairs = [pair(blank), pair(noise(1, 20, 64)), pair(noise(2, 30, 90)), pair(noise(3, 90, 30)), pair(noise(4))]
    config = replace(off, min_contrast=8.0, min_side=24, max_aspect=2.5, duplicates="near")
    expected = ["picture_blank", "picture_small", "picture_narrow", "picture_narrow", "kept"]
    assert verdicts(tmp_path, config, pairs) == expected
    # Blank pictures hash alike whatever they are: they are no doubles of one another.
    assert verdicts(tmp_path, replace(config, min_contrast=0.0), [pair(blank), pair(Image.new("RGB", (64, 64)))]) == [
        "kept",
        "kept",
    ]


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("dog", "caption_short"),
        ("a dog in a very big park somewhere in town", "caption_long"),
        ("BUY NOW this dog", "caption_blocked"),
        ("buy   now, this dog", "caption_blocked"),
        ("a buyer nowhere", None),
        ("une photo XXX", "caption_blocked"),
        ("a dog in a park", None),
    ],
)
def test_captions_are_judged_by_length_and_words(
    tmp_path: Path, off: CurateConfig, caption: str, reason: str | None
) -> None:
    (tmp_path / "words.txt").write_text("xxx\n\n  a.c \n")
    config = replace(
        off, min_words=2, max_words=8, blocked_words=("buy now",), blocked_words_file=str(tmp_path / "words.txt")
    )
    words = blocked_words(config)
    assert words == ("a.c", "buy now", "xxx")
    assert CaptionRules(config, words).reason_of(caption) == reason


def test_words_that_are_not_there_are_named(off: CurateConfig) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere\.txt: no such file of words"):
        blocked_words(replace(off, blocked_words_file="nowhere.txt"))


def test_languages_are_told_where_they_are_certain(off: CurateConfig) -> None:
    pytest.importorskip("py3langid")
    config = replace(off, languages=("en",))
    check_languages(config)
    rules = CaptionRules(config, ())
    assert rules.reason_of("a small dog is running through the garden behind the house") is None
    assert rules.reason_of("ein kleiner Hund läuft durch den Garten hinter dem Haus") == "caption_language"
    assert rules.reason_of("小狗在房子后面的花园里奔跑") == "caption_language"
    assert rules.reason_of("IMG 2041") is None
    with pytest.raises(ConfigError, match=r"curate\.languages: xx: no such language; known: .*en"):
        check_languages(replace(off, languages=("en", "xx")))


def test_boilerplate_goes_and_one_picture_that_comes_again_makes_none(tmp_path: Path, off: CurateConfig) -> None:
    config = replace(off, max_caption_repeats=2, duplicates="exact")
    many = [pair(noise(number), f"Image {number}: stock photo!") for number in range(3)]
    again = [pair(noise(9), "my dog")] * 3
    assert verdicts(tmp_path, config, many, again) == [
        *["caption_repeated"] * 3,
        *("kept", "duplicate_exact", "duplicate_exact"),
    ]
    assert caption_hash("Stock photo 12") == caption_hash("stock, PHOTO")
    assert caption_hash("犬") != caption_hash("猫")


def test_scores_are_held_against_limits(tmp_path: Path, off: CurateConfig) -> None:
    likeness = ScoreConfig(model="m", min=0.2)
    config = replace(off, scores={"likeness": likeness, "nsfw": ScoreConfig(model="m", max=0.5)})
    pairs = [pair(noise(number)) for number in range(4)]
    found = verdicts(tmp_path, config, pairs, likeness=[0.1, 0.9, 0.9, None], nsfw=[0.9, 0.9, 0.1, 0.1])
    assert found == ["score_likeness", "score_nsfw", "kept", "picture_unreadable"]


def test_a_measure_of_other_rows_is_refused(tmp_path: Path, off: CurateConfig) -> None:
    one, other = [replace(pair(noise(n)), key=f"{n}") for n in range(2)]
    write_shard(tmp_path / shard_name(0), [one], CaptionRecord)
    write_measure(tmp_path / "looks.parquet", measure_looks([other], 10_000, []), {})
    with pytest.raises(ShardError, match="measured of other rows"):
        hear_shard(tmp_path / shard_name(0), tmp_path / "looks.parquet", {}, off, ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_words": 5, "max_words": 3}, "max_words is 3; expected 0 or at least min_words = 5"),
        ({"scores": {"A b": ScoreConfig(model="m")}}, r"scores\.A b: expected a name of small letters"),
    ],
)
def test_settings_that_cannot_be_are_refused(off: CurateConfig, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(off, **settings)


def test_kinds_of_scores_need_their_words() -> None:
    with pytest.raises(ConfigError, match="kind is prompts; expected some prompts, and some in against"):
        ScoreConfig(model="m", kind="prompts", prompts=("a",))
    with pytest.raises(ConfigError, match="kind is label; expected the label"):
        ScoreConfig(model="m", kind="label")
