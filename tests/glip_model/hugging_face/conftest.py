"""Tiny models whose random weights find things, in folders as the project writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP


def finding_model(config: GLIPConfig) -> GLIP:
    """Return a model of random weights which differ enough to tell words apart."""
    torch.manual_seed(3)
    model = GLIP(config)
    with torch.no_grad():
        model.text_encoder.body.embeddings.word_embeddings.weight.mul_(50)
        model.head.text_projection.weight.mul_(10)
        model.head.bbox_pred.weight.mul_(50)
        model.head.bias0.fill_(-1.0)
    return model.eval()


@pytest.fixture(scope="session")
def as_run(tiny_glip: GLIPConfig) -> GLIPConfig:
    """Give settings as those of the project's run: names encoded one by one, boxes that end where pixels begin."""
    return replace(tiny_glip, max_detections=30)


@pytest.fixture(scope="session")
def as_published(as_run: GLIPConfig) -> GLIPConfig:
    """Give settings as the published ones: prompts encoded as a whole, inclusive corners, deformable convolution."""
    text = replace(as_run.text, encoding="joint", frozen=False)
    return replace(as_run, text=text, inclusive_corners=True, deformable=True)


@pytest.fixture(scope="session", params=["as_run", "as_published"])
def folder(request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a model."""
    path = tmp_path_factory.mktemp("models") / request.param
    finding_model(request.getfixturevalue(request.param)).save_pretrained(path, tokenizer)
    return path


@pytest.fixture(scope="session")
def published_folder(as_published: GLIPConfig, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "glip"
    finding_model(as_published).save_pretrained(path, tokenizer)
    return path
