"""Captions by a tiny model of transformers and by an endpoint that misbehaves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glip_model.images import ImageError
from pipeline.errors import MissingInputError
from pipeline.recaption.captioners import EndpointCaptioner, describe_captioner, open_captioner
from pipeline.recaption.settings import RecaptionConfig
from pipeline.settings import PROJECT_PARAMS, load
from pipeline.store.endpoint import Endpoint


@pytest.fixture
def config() -> RecaptionConfig:
    return dataclasses.replace(load(PROJECT_PARAMS, RecaptionConfig), max_tokens=5, precision="float32")


@pytest.fixture(scope="module")
def blip(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save BLIP with a few thousand random weights."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    folder = tmp_path_factory.mktemp("models") / "blip"
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 30524, "encoder_hidden_size": 16, "projection_dim": 16, "bos_token_id": 101, **small}
    vision = {"image_size": 32, "patch_size": 16, "projection_dim": 16, **small}
    torch.manual_seed(1)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_transformers_says_the_same_every_time_whatever_the_batch(
    blip: Path,
    config: RecaptionConfig,
    noise: Callable[[int, int], Image.Image],
) -> None:
    captioner = open_captioner(str(blip), config)
    pictures = [noise(50, 40), Image.new("RGB", (20, 60), "red")]
    both = captioner.caption(pictures)
    assert both == [captioner.caption([picture])[0] for picture in pictures]
    assert all(isinstance(each, str | ImageError) for each in both)
    assert describe_captioner(str(blip), config)["name"] == "blip"


def test_what_is_no_captioner_is_told(config: RecaptionConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(MissingInputError, match="not a usable captioner"):
        open_captioner(str(tmp_path), config)
    with pytest.raises(MissingInputError):
        describe_captioner(os.fspath(tmp_path / "none"), config)


def test_an_endpoint_is_asked_until_it_says_a_caption(server: Any) -> None:
    settings = Endpoint(server.url, "eyes", retries=2, requests_per_minute=1e6, max_side=32)
    captioner = EndpointCaptioner(settings, "What is there?", lambda seconds: None)
    answers = iter(["", " A red\n square. "])
    server.reply = lambda body: next(answers)
    assert captioner.caption([Image.new("RGB", (64, 64), "red")]) == ["A red square."]
    text, _ = server.asked[0][1]["messages"][0]["content"]
    assert text["text"] == "What is there?"
    assert "response_format" not in server.asked[0][1]
    server.reply = lambda body: "x" * 5000
    (failed,) = captioner.caption([Image.new("RGB", (64, 64), "red")])
    assert isinstance(failed, ImageError)
    assert failed.reason == "answer_unusable"


def test_what_is_asked_is_part_of_what_captions_depend_on(server: Any, tmp_path: Path, config: RecaptionConfig) -> None:
    path = tmp_path / "eyes.yaml"
    path.write_text(f"endpoint: {server.url}\nmodel: eyes\n", encoding="utf-8")
    before = describe_captioner(str(path), config)
    after = describe_captioner(str(path), dataclasses.replace(config, question="And now?"))
    assert before["name"] == "eyes"
    assert before["sha256"] != after["sha256"]
