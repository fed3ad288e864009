"""The tour, run from its first cell to its last in a kernel of its own, on a model and pictures of noise alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from glip_model.config import GLIPConfig
from glip_model.glip import GLIP

ROOT = Path(__file__).resolve().parents[2]
TOUR = ROOT / "notebooks/tour.ipynb"


@pytest.fixture
def settings(
    tiny_glip: GLIPConfig, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, object]:
    torch.manual_seed(3)
    GLIP(replace(tiny_glip, score_threshold=0.0)).save_pretrained(tmp_path / "model", tokenizer)
    (tmp_path / "photos").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    values = {
        "GLIP_TOUR_MODEL": tmp_path / "model",
        "GLIP_TOUR_PHOTOS": tmp_path / "photos",
        "GLIP_TOUR_NAMES": "red box, table",
        "GLIP_TOUR_MIN_SCORE": 0.0,
        "GLIP_TOUR_STEPS": 2,
        "GLIP_TOUR_OUT": tmp_path / "out",
        "PYTHONPATH": ROOT,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    return values


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("settings")
def test_every_cell_runs_and_shows_what_it_promises(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(ROOT)}}).execute()
    text = "".join(str(output) for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "data:image/jpeg;base64," in text  # detections and rows of labels
    assert "reject_reason" in text  # pandas
    assert "finetune →" in text
    assert "zero-shot-object-detection" in text  # the card
    assert (tmp_path / "out/tuned/model.safetensors").is_file()


def test_the_tour_is_kept_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
