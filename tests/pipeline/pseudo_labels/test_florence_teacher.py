"""Florence-2 with tiny random weights, and what is read of the words that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    BartTokenizerFast,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)

from glip_model.prompts import caption_prompt
from pipeline.errors import MissingInputError
from pipeline.pseudo_labels.teachers import open_teacher

pytestmark = pytest.mark.filterwarnings("ignore")


def save(folder: Path, bins: int = 1000) -> Path:
    """Save a model, and a tokenizer that knows letters and places."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [*special, "Ġ", *"abcdefghijklmnopqrstuvwxyzLT.,:"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    places = [*(f"<loc_{i}>" for i in range(bins)), "<poly>", "</poly>"]
    tokenizer = BartTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt"), extra_special_tokens={"image_token": "<image>"}
    )
    tokenizer.add_tokens(places)
    pictures = CLIPImageProcessor(size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64})
    pictures.image_seq_length = 5  # 4 places of the picture and their mean
    Florence2Processor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    text = {
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "max_position_embeddings": 256,
    }
    vision = {
        "depths": [1, 1, 1, 1],
        "embed_dim": [8, 8, 16, 16],
        "num_heads": [1, 1, 2, 2],
        "num_groups": [1, 1, 2, 2],
        "projection_dim": 16,
        "window_size": 2,
        "drop_path_rate": 0.0,
    }
    config = Florence2Config(
        text_config={"model_type": "bart", **text}, vision_config=vision, image_token_id=tokenizer.image_token_id
    )
    torch.manual_seed(0)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("florence"))


def test_words_for_places_become_boxes_in_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher: Any = open_teacher(str(folder), "cpu")
    first, polygon = teacher._first, teacher._polygon

    def places(*numbers: int) -> list[int]:
        return [first + number for number in numbers]

    answers = {
        "red hat": [5, *places(100, 200, 500, 600, 0, 0, 999, 999), 2],
        "dog": [polygon, *places(1, 1, 500, 500), 2, *places(500, 0, 400, 9), *places(7, 8)],
    }

    def write(images: Any, phrases: Any) -> Any:
        words = [answers[phrase] + [2] * (20 - len(answers[phrase])) for phrase in phrases]
        scores = torch.tensor([[0.5] * 5 + [0.9] * 15] * len(words))
        return torch.tensor(words), scores

    monkeypatch.setattr(teacher, "_write", write)
    prompt = caption_prompt("a red hat on a dog", [[(2, 9)], [(15, 18)]])
    (found,) = teacher.ground([Image.new("RGB", (200, 100))], [prompt])
    assert found.labels == ("red hat", "red hat")
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.boxes_xyxy[1].tolist() == pytest.approx([20.1, 20.05, 100.1, 60.05])
    assert found.boxes_xyxy[0].tolist() == pytest.approx([0.1, 0.05, 199.9, 99.95])
    assert found.char_spans == prompt.char_spans


def test_a_model_answers_for_every_phrase_of_every_picture(folder: Path) -> None:
    teacher: Any = open_teacher(str(folder), "cpu")
    words, scores = teacher._write([Image.new("RGB", (30, 60), "red")] * 2, ["red hat", "dog"])
    assert words.shape == scores.shape
    assert words.shape[0] == 2
    assert bool(((scores >= 0) & (scores <= 1)).all())
    found = teacher.ground(
        [Image.new("RGB", (80, 40)), Image.new("RGB", (30, 60))],
        [caption_prompt("a red hat", [[(2, 9)]]), caption_prompt("dogs and a cat", [[(0, 4)], [(11, 14)]])],
    )
    assert [len(each.phrases) for each in found] == [1, 2]
    assert all(bool((each.scores[:-1] >= each.scores[1:]).all()) for each in found)


def test_a_tokenizer_without_words_for_places_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="<loc_999>"):
        open_teacher(str(save(tmp_path, bins=10)), "cpu")
