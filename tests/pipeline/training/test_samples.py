"""Records to samples: prompts, spans, negatives, ignored tokens, and the order of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glip_model.alignment import tokenize_prompt
from pipeline.errors import MissingInputError, TrainingError
from pipeline.store.records import Category, DetectedObject, GroundingRecord
from pipeline.store.shards import REPEAT_KEY, shard_name, write_shard
from pipeline.training.counting import count_rows
from pipeline.training.prompts import DetectionPrompter, GroundingPrompter, Sample
from pipeline.training.rows import Rows, make_sources
from pipeline.training.settings import SamplesConfig

Ground = Callable[..., Rows]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def count_words(text: str) -> int:
    return len(text.split())


def named(sample: Sample) -> list[tuple[tuple[float, ...], set[str]]]:
    """Every box with the text of the phrases that name it."""
    phrases = sample.prompt.phrases
    return [(box, {phrases[i] for i in rows}) for box, rows in zip(sample.boxes, sample.box_phrases, strict=True)]


# Detection


@pytest.fixture
def detection(tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig) -> Rows:
    rows = [tiny.detection_record("a", ["apple", "sea", "apple"]), tiny.detection_record("b", [])]
    return Rows(tiny.write_detection(tmp_path, rows), DetectionPrompter(samples_config, count_words))


def test_boxes_are_named_by_their_category(detection: Rows, tiny: SimpleNamespace) -> None:
    record = tiny.detection_record("a", ["apple", "sea", "apple"])
    for seed in range(10):
        sample = detection.sample(0, rng(seed))
        expected = [(item.xyxy, {name}) for item, name in zip(record.objects, ["apple", "sea", "apple"], strict=True)]
        assert sample.key == "a"
        assert named(sample) == expected
        assert set(sample.prompt.phrases) >= {"apple", "sea"}
        assert len(set(sample.prompt.phrases)) == len(sample.prompt.phrases)


def test_picture_without_objects_has_a_prompt_of_negatives(detection: Rows) -> None:
    sample = detection.sample(1, rng())
    assert sample.boxes == ()
    assert sample.prompt.phrases


def test_every_shard_is_read_with_its_own_vocabulary(
    tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig
) -> None:
    tiny.write_detection(tmp_path, [tiny.detection_record("a", ["apple"])])
    other = [Category(id=10, name="Apfel_Baum (Garten)"), Category(id=20, name="Birne")]
    tiny.write_detection(tmp_path, [tiny.detection_record("b", ["apple"])], other, number=1)
    source = Rows(tmp_path, DetectionPrompter(samples_config, count_words))
    assert named(source.sample(1, rng()))[0][1] == {"Apfel Baum"}


def test_crowds_and_unknown_categories_are_neither_shown_as_boxes_nor_denied(
    tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig
) -> None:
    record = tiny.detection_record("a", ["apple", "sea"])
    crowd = replace(record.objects[1], is_crowd=True)
    stranger = DetectedObject(category_id=999, xyxy=(0, 0, 5, 5))
    record = replace(record, objects=(record.objects[0], crowd, stranger))
    config = replace(samples_config, max_negatives=10, full_negatives=1.0)
    source = Rows(tiny.write_detection(tmp_path, [record]), DetectionPrompter(config, count_words))
    sample = source.sample(0, rng())
    assert [names for _, names in named(sample)] == [{"apple"}]
    assert "sea" not in sample.prompt.phrases
    assert len(sample.prompt.phrases) == 5


def test_pictures_labelled_with_names_are_pseudo_labels_and_what_was_not_looked_at_is_left_out(
    tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    rows = [
        replace(tiny.detection_record("broken", []), reject_reason="image_unreadable"),
        replace(tiny.detection_record("empty", []), reject_reason="no_boxes"),
        tiny.detection_record("a", ["apple"]),
    ]
    folder = tiny.write_detection(tmp_path, rows)
    weights = {"pseudo": 1.0}
    (pseudo,) = make_sources(tmp_path, folder, weights, samples_config, tokenizer).values()
    shown = [pseudo.sample(row, rng()) for row in range(len(pseudo))]
    assert [sample.key for sample in shown if sample is not None] == ["empty", "a"]
    assert count_rows(tmp_path, folder, weights) == {"pseudo": 2}


# Grounding


@pytest.fixture
def ground(tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig) -> Ground:
    """Open a source over some rows, as captions unless told otherwise."""

    def make(rows: list[GroundingRecord], ignore: bool = False, **settings: Any) -> Rows:
        config = replace(samples_config, **{"phrase_prompts": 0.0, "caption_negatives": 0, **settings})
        return Rows(tiny.write_grounding(tmp_path / "g", rows), GroundingPrompter(config, count_words, ignore))

    return make


def rows_of(tiny: SimpleNamespace) -> list[GroundingRecord]:
    names = list(tiny.COLOURS)
    return [
        tiny.grounding_record(f"g{i}", [names[i], names[(i + 1) % 6]], i, unlocated=[names[(i + 2) % 6]])
        for i in range(6)
    ]


def test_rows_come_as_often_as_their_shards_say(tmp_path: Path, tiny: SimpleNamespace, samples_config: Any) -> None:
    records = [tiny.grounding_record("a", ["apple"]), tiny.grounding_record("b", ["pear"], 1)]
    for number, (record, repeat) in enumerate(zip(records, ("3", "1"), strict=True)):
        write_shard(tmp_path / shard_name(number), [record], GroundingRecord, {REPEAT_KEY: repeat})
    source = Rows(tmp_path, GroundingPrompter(samples_config, count_words, ignore_unlocated=False))
    assert [source.sample(row, rng()).key for row in range(len(source))] == ["a", "a", "a", "b"]


def test_caption_is_shown_as_it_stands(ground: Ground, tiny: SimpleNamespace) -> None:
    record = rows_of(tiny)[0]
    sample = ground([record]).sample(0, rng())
    assert sample.prompt.text == record.caption
    assert named(sample) == [(p.boxes[0].xyxy, {p.text}) for p in record.phrases[:2]]
    assert sample.ignored_phrases == ()


def test_box_of_two_phrases_is_one_box(ground: Ground, tiny: SimpleNamespace) -> None:
    record = tiny.grounding_record("a", ["apple", "sea"])
    same = replace(record.phrases[1], boxes=record.phrases[0].boxes)
    sample = ground([replace(record, phrases=(record.phrases[0], same))]).sample(0, rng())
    assert named(sample) == [(record.phrases[0].boxes[0].xyxy, {"one apple", "one sea"})]


def test_phrases_without_boxes_are_ignored_on_request(ground: Ground, tiny: SimpleNamespace) -> None:
    sample = ground(rows_of(tiny)[:1], ignore=True).sample(0, rng())
    assert [sample.prompt.phrases[i] for i in sample.ignored_phrases] == ["one plum"]


@pytest.mark.parametrize("seed", range(8))
def test_packed_captions_keep_spans_and_speak_of_other_things(ground: Ground, tiny: SimpleNamespace, seed: int) -> None:
    rows = rows_of(tiny)
    source = ground(rows, ignore=True, caption_negatives=3, caption_negatives_none=0.0)
    sample = source.sample(0, rng(seed))
    assert named(sample) == [(p.boxes[0].xyxy, {p.text}) for p in rows[0].phrases[:2]]
    assert [sample.prompt.phrases[i] for i in sample.ignored_phrases] == ["one plum"]
    assert sample.prompt.text.split(". ").count(rows[0].caption) == 1
    # Row 3 alone (lemon, sea, coal) shares no thing with row 0 (apple, pear, plum), located or not.
    assert set(sample.prompt.segments) <= {rows[0].caption, rows[3].caption}


def test_share_and_number_of_packed_captions(ground: Ground, tiny: SimpleNamespace) -> None:
    names = list(tiny.COLOURS)
    rows = [tiny.grounding_record(f"g{i}", [names[i]], i) for i in range(6)]
    source = ground(rows, caption_negatives=4, caption_negatives_none=0.4, max_prompt_tokens=500)
    draws = [len(source.sample(0, rng(seed)).prompt.segments) - 1 for seed in range(600)]
    # Nothing with probability 0.4, else four draws or a number up to four; a draw of the row itself is discarded.
    assert 0.35 < sum(number == 0 for number in draws) / 600 < 0.5
    assert max(draws) == 4


def test_own_place_among_packed_captions_varies(ground: Ground, tiny: SimpleNamespace) -> None:
    rows = [tiny.grounding_record("a", ["apple"]), tiny.grounding_record("b", ["sea"])]
    source = ground(rows, caption_negatives=1, caption_negatives_none=0.0)
    places = Counter(source.sample(0, rng(seed)).prompt.segments.index(rows[0].caption) for seed in range(60))
    assert set(places) == {0, 1}


@pytest.mark.parametrize("seed", range(8))
def test_phrase_list_has_positives_and_absent_negatives(ground: Ground, tiny: SimpleNamespace, seed: int) -> None:
    rows = rows_of(tiny)
    source = ground(rows, phrase_prompts=1.0, max_negatives=6, full_negatives=1.0)
    sample = source.sample(0, rng(seed))
    assert named(sample) == [(p.boxes[0].xyxy, {p.text}) for p in rows[0].phrases[:2]]
    # "one plum" stands in the caption without a box: it is neither asked for nor denied.
    assert set(sample.prompt.phrases) - {"one apple", "one pear"} <= {"one lemon", "one sea", "one coal"}
    assert len(set(sample.prompt.phrases)) == len(sample.prompt.phrases)


def test_repeated_phrase_is_asked_for_once_with_all_its_boxes(ground: Ground, tiny: SimpleNamespace) -> None:
    record = tiny.grounding_record("a", ["apple", "sea"])
    twin = replace(record.phrases[1], text="One Apple")
    source = ground([replace(record, phrases=(record.phrases[0], twin))], phrase_prompts=1.0)
    sample = source.sample(0, rng())
    assert sample.prompt.phrases == ("one apple",)
    assert sample.box_phrases == ((0,), (0,))


def test_phrase_that_reads_as_nothing_is_shown_in_its_caption(ground: Ground, tiny: SimpleNamespace) -> None:
    record = tiny.grounding_record("a", ["apple"])
    record = replace(record, phrases=(replace(record.phrases[0], text="(apple)"),))
    sample = ground([record], phrase_prompts=1.0, max_negatives=0).sample(0, rng())
    assert sample.prompt.text == record.caption


def test_rejected_rows_and_rows_without_boxes_are_left_out(ground: Ground, tiny: SimpleNamespace) -> None:
    good = tiny.grounding_record("good", ["apple"])
    rejected = replace(tiny.grounding_record("rejected", ["sea"]), reject_reason="no_boxes")
    empty = tiny.grounding_record("empty", [], unlocated=["coal"])
    source = ground([rejected, good, replace(empty, phrases=()), empty])
    assert len(source) == 1
    assert source.sample(0, rng()).key == "good"


def test_shards_of_different_provenance_are_one_source(
    tmp_path: Path, tiny: SimpleNamespace, samples_config: SamplesConfig
) -> None:
    for number, name in enumerate(["apple", "sea"]):
        row = tiny.grounding_record(name, [name])
        tiny.write_grounding(tmp_path, [row], number, {"glip.provenance": f'{{"shard": {number}}}'})
    source = Rows(tmp_path, GroundingPrompter(samples_config, count_words, True))
    assert [source.sample(row, rng()).key for row in range(len(source))] == ["apple", "sea"]


@pytest.mark.parametrize(("kind", "budget"), [("detection", 11), ("captions", 20), ("phrases", 14)])
def test_prompts_use_the_token_budget_and_stay_within_it(
    human: Path, samples_config: SamplesConfig, tokenizer: Any, kind: str, budget: int
) -> None:
    config = replace(
        samples_config,
        max_prompt_tokens=budget,
        detection_prompts="sampled",
        max_negatives=30,
        caption_negatives=10,
        caption_negatives_none=0.0,
        phrase_prompts=float(kind == "phrases"),
    )
    name = "detection" if kind == "detection" else "grounding"
    source = make_sources(human, None, {name: 1.0}, config, tokenizer)[name]
    prompts = [source.sample(row, rng(seed)).prompt for row in range(len(source)) for seed in range(5)]
    lengths = [len(tokenize_prompt(tokenizer, prompt, 256).input_ids) for prompt in prompts]
    assert budget - 3 <= max(lengths) <= budget


def test_samples_are_a_function_of_row_and_chance_alone(
    human: Path, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    weights = {"detection": 1.0, "grounding": 1.0}
    first, second = (make_sources(human, None, weights, samples_config, tokenizer) for _ in range(2))
    for name in weights:
        forwards = [first[name].sample(row, rng(row)) for row in range(8)]
        backwards = [second[name].sample(row, rng(row)) for row in reversed(range(8))]
        assert forwards == backwards[::-1]


def test_digest_knows_what_changed(
    human: Path, tiny: SimpleNamespace, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    def digests() -> list[str]:
        sources = make_sources(human, None, {"detection": 1.0, "grounding": 1.0}, samples_config, tokenizer)
        return [source.digest() for source in sources.values()]

    before = digests()
    assert before == digests()
    record = tiny.grounding_record("g0", ["apple", "pear"], 50)
    box = replace(record.phrases[0].boxes[0], score=0.9)
    rows = [replace(record, phrases=(replace(record.phrases[0], boxes=(box,)), record.phrases[1]))]
    tiny.write_grounding(human / "grounding", rows)
    tiny.write_detection(
        human / "detection",
        [tiny.detection_record("d", ["apple"])],
        [replace(tiny.CATEGORIES[0], name="Apple")],
    )
    after = digests()
    assert before[0] != after[0]
    assert before[1] != after[1]


# Sources and their mixture


def test_only_sources_with_weight_are_opened(human: Path, samples_config: SamplesConfig, tokenizer: Any) -> None:
    assert set(make_sources(human, None, {"detection": 1.0, "pseudo": 0.0}, samples_config, tokenizer)) == {"detection"}


def test_pseudo_labels_need_a_folder(human: Path, samples_config: SamplesConfig, tokenizer: Any) -> None:
    with pytest.raises(TrainingError, match="pass --pseudo-labels FOLDER"):
        make_sources(human, None, {"pseudo": 1.0}, samples_config, tokenizer)
    with pytest.raises(MissingInputError, match="no Parquet shards"):
        make_sources(human, human / "nowhere", {"pseudo": 1.0}, samples_config, tokenizer)


def test_pseudo_labels_ignore_what_they_did_not_locate_and_people_do_not(
    human: Path, tiny: SimpleNamespace, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    tiny.write_grounding(human / "grounding", rows_of(tiny))
    config = replace(samples_config, phrase_prompts=0.0)
    weights = {"grounding": 1.0, "pseudo": 1.0}
    sources = make_sources(human, human / "grounding", weights, config, tokenizer)
    assert sources["pseudo"].sample(0, rng()).ignored_phrases
    assert not sources["grounding"].sample(0, rng()).ignored_phrases
    believed = make_sources(human, human / "grounding", weights, replace(config, ignore_unlocated=False), tokenizer)
    assert not believed["pseudo"].sample(0, rng()).ignored_phrases


def test_pseudo_labels_alone_may_be_shown_as_phrases(
    human: Path, samples_config: SamplesConfig, tokenizer: Any
) -> None:
    weights = {"grounding": 1.0, "pseudo": 1.0}
    for share, shown in ((None, False), (1.0, True)):
        config = replace(samples_config, phrase_prompts=0.0, pseudo_phrase_prompts=share, caption_negatives=0)
        sources = make_sources(human, human / "grounding", weights, config, tokenizer)
        assert sources["grounding"].sample(0, rng()).prompt.text.startswith("a picture of ")
        assert sources["pseudo"].sample(0, rng()).prompt.text.startswith("a picture of ") != shown


def test_captions_of_human_data_may_stand_alone(human: Path, samples_config: SamplesConfig, tokenizer: Any) -> None:
    config = replace(samples_config, phrase_prompts=0.0, caption_negatives_none=0.0)
    for pack, most in ((True, 2), (False, 1)):
        weights = {"grounding": 1.0, "pseudo": 1.0}
        changed = replace(config, caption_negatives=1, pack_human_captions=pack)
        sources = make_sources(human, human / "grounding", weights, changed, tokenizer)
        counts = {
            name: max(len(source.sample(row, rng(row)).prompt.segments) for row in range(8))
            for name, source in sources.items()
        }
        assert counts == {"grounding": most, "pseudo": 2}
