"""Models of the project by transformers' ways: Auto classes, pipeline, Trainer; the predictor says what is right."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline

from glip_model.boxes import to_inclusive
from glip_model.checkpoint import load_strictly
from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.hugging_face.configuration_glip import GLIPPreTrainedConfig
from glip_model.hugging_face.files import image_settings, reading_config
from glip_model.hugging_face.image_processing_glip import GLIPImageProcessor
from glip_model.hugging_face.modeling_glip import GLIPForZeroShotObjectDetection
from glip_model.hugging_face.processing_glip import GLIPProcessor
from glip_model.losses import GroundingCriterion
from glip_model.predictor import GLIPPredictor
from glip_model.preprocess import collate, image_to_tensor
from glip_model.prompts import category_prompt
from glip_model.structures import Detections, GroundingTarget

transformers.utils.logging.disable_progress_bar()
NAMES = ["red apple", "kite", "smörgåsbord"]
CLOSE = 1e-4


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def asked(folder: Path, images: Any, text: Any, **options: Any) -> list[dict[str, Any]]:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=images, text=text, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    several = images if isinstance(images, list) else [images]
    sizes = [image.size[::-1] for image in several]
    options = {"threshold": 0.0, "target_sizes": sizes, **options}
    return processor.post_process_grounded_object_detection(outputs, inputs["input_ids"], **options)  # type: ignore[no-any-return]


def same(result: dict[str, Any], found: Detections) -> None:
    assert len(found) > 3
    torch.testing.assert_close(result["scores"], found.scores, rtol=0, atol=CLOSE)
    torch.testing.assert_close(result["boxes"], found.boxes_xyxy, rtol=0, atol=CLOSE)
    assert result["labels"].tolist() == found.phrase_index.tolist()


def test_a_folder_is_known_to_the_auto_classes(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, GLIPPreTrainedConfig)
    assert config.glip_config() == GLIP.from_pretrained(folder).config
    assert isinstance(AutoProcessor.from_pretrained(folder), GLIPProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), GLIPImageProcessor)
    model, report = AutoModelForZeroShotObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, GLIPForZeroShotObjectDetection)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_names_are_found_where_the_predictor_finds_them(folder: Path) -> None:
    image = picture(96, 152)
    (result,) = asked(folder, image, NAMES, text_labels=NAMES)
    (found,) = GLIPPredictor.from_pretrained(folder).predict(image, NAMES)
    same(result, found)
    assert result["text_labels"] == list(found.labels)
    assert len(set(result["text_labels"])) > 1


def test_the_text_labels_are_the_tokens_where_no_names_are_given(folder: Path) -> None:
    (result,) = asked(folder, picture(96, 152), NAMES)
    assert set(result["text_labels"]) <= {"red apple", "kite", "smorgasbord"}


def test_a_text_is_asked_as_it_is_and_its_phrases_stand_between_periods(folder: Path) -> None:
    image = picture(64, 64, 1)
    text = "a red apple. a U.S. kite."
    (result,) = asked(folder, image, text)
    (found,) = GLIPPredictor.from_pretrained(folder).predict(image, text)
    same(result, found)
    assert set(result["text_labels"]) <= {"a red apple", "a u. s. kite"}


def test_pictures_of_a_batch_have_names_of_their_own(folder: Path) -> None:
    images = [picture(64, 64, seed) for seed in (1, 2)]
    names = [["kite"], ["red apple", "dog"]]
    predictor = GLIPPredictor.from_pretrained(folder)
    for image, of_it, result in zip(images, names, asked(folder, images, names), strict=True):
        same(result, predictor.predict(image, of_it)[0])
    for image, result in zip(images, asked(folder, images, NAMES), strict=True):  # one list of names for all
        same(result, predictor.predict(image, NAMES)[0])


def test_a_smaller_picture_of_a_batch_keeps_its_own_scale(folder: Path) -> None:
    small, large = picture(64, 64, 1), picture(64, 128, 2)
    results = asked(folder, [small, large], ["kite"])
    for image, result in zip((small, large), results, strict=True):
        assert (result["boxes"] >= 0).all()
        assert result["boxes"][:, 0::2].max() <= image.width
        assert result["boxes"][:, 2].max() > 0.6 * image.width


def test_boxes_without_target_sizes_are_shares(folder: Path) -> None:
    image = picture(96, 152)
    (shares,) = asked(folder, image, NAMES, target_sizes=None)
    (pixels,) = asked(folder, image, NAMES)
    corners = torch.tensor([152.0, 96.0] * 2)
    resized = reading_config(image_settings(GLIP.from_pretrained(folder).config)).test_short_side / 96
    # A pixel of the model's is none of the picture's, where corners are inclusive.
    torch.testing.assert_close(shares["boxes"] * corners, pixels["boxes"], rtol=0, atol=1 / resized)
    assert shares["boxes"].max() <= 1


def test_thresholds_leave_out_what_does_not_reach_them(folder: Path) -> None:
    image = picture(96, 152)
    (everything,) = asked(folder, image, NAMES)
    middle = everything["scores"].median().item()
    (better,) = asked(folder, image, NAMES, threshold=middle)
    assert (better["scores"] > middle).all()
    assert len(better["scores"]) == int((everything["scores"] > middle).sum())
    assert len(asked(folder, image, NAMES, text_threshold=1.0)[0]["scores"]) == 0


def test_the_pipeline_asks_label_by_label(folder: Path) -> None:
    image = picture(96, 152)
    detector = pipeline("zero-shot-object-detection", model=str(folder))
    found = detector(image, candidate_labels=NAMES, threshold=0.0)
    predictor = GLIPPredictor.from_pretrained(folder)
    for name in NAMES:
        (alone,) = predictor.predict(image, [name])
        of_name = [each for each in found if each["label"] == name]
        assert [each["score"] for each in of_name] == pytest.approx(alone.scores.tolist(), abs=CLOSE)
        for each, box in zip(of_name, alone.boxes_xyxy.tolist(), strict=True):
            corners = [each["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
            assert corners == pytest.approx(box, abs=1 + CLOSE)  # the pipeline cuts off what is behind the point
    batched = detector([image, image], candidate_labels=NAMES, threshold=0.0, batch_size=2)
    assert [len(each) for each in batched] == [len(found)] * 2


def test_boxes_by_grounding_dinos_convention_are_the_decoded_ones(published_folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(published_folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(published_folder).eval()
    inputs = processor(images=picture(64, 96), text=["kite"])
    with torch.no_grad():
        outputs = model(**inputs)
    (result,) = processor.post_process_grounded_object_detection(outputs, threshold=0.0, target_sizes=[(64, 96)])
    centre, size = outputs.pred_boxes[0].split(2, -1)
    corners = torch.cat([centre - size / 2, centre + size / 2], -1) * torch.tensor([96, 64, 96, 64])
    corners = torch.minimum(corners.clamp(min=0), torch.tensor([96.0, 64, 96, 64]))
    distances = torch.cdist(result["boxes"], corners, p=1).min(1).values
    assert distances.max() < 1e-3  # every box that is read off is one of pred_boxes


def test_what_transformers_saves_the_predictor_loads(folder: Path, tmp_path: Path) -> None:
    AutoModelForZeroShotObjectDetection.from_pretrained(folder).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    image = picture(96, 152)
    expected, found = (GLIPPredictor.from_pretrained(each).predict(image, NAMES)[0] for each in (folder, tmp_path))
    assert torch.equal(expected.boxes_xyxy, found.boxes_xyxy)
    assert torch.equal(expected.scores, found.scores)
    same(asked(tmp_path, image, NAMES)[0], found)


def test_too_many_names_are_refused(folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"lies beyond the 64 tokens that the model reads; ask for fewer"):
        processor(images=picture(64, 64), text=[f"name {i}" for i in range(40)])
    with pytest.raises(ValueError, match=r"2 pictures need a prompt each, or one for all; got 3"):
        processor(images=[picture(64, 64)] * 2, text=[["a"], ["b"], ["c"]])
    with pytest.raises(ValueError, match=r"no phrases in the text"):
        processor(images=picture(64, 64), text=" . ")
    with pytest.raises(ValueError, match=r"PyTorch's tensors alone"):
        processor(images=picture(64, 64), text=["a"], return_tensors="np")


def annotations() -> dict[str, Any]:
    boxes = [(8, 8, 40, 30), (60, 16, 30, 44)]
    rows = [{"bbox": list(box), "category_id": i} for i, box in enumerate(boxes)]
    return {"image_id": 1, "annotations": rows}


def test_the_loss_is_that_of_the_projects_own_trainings(folder: Path, tokenizer: Any) -> None:
    image, names = picture(64, 96), ["kite", "red apple"]
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=image, text=names, annotations=annotations())
    outputs = model(**inputs)

    predictor = GLIPPredictor.from_pretrained(folder)
    config = predictor.model.config
    prompt = predictor.tokenize(category_prompt(names))
    boxes = torch.tensor([[8.0, 8, 48, 38], [60, 16, 90, 60]])  # the picture is of the model's size
    target = GroundingTarget(to_inclusive(boxes) if config.inclusive_corners else boxes, prompt.positive_map)
    states = predictor._text_states([prompt.prompt.segments])
    batch = collate(
        [image_to_tensor(image, config.backbone)], [prompt], size_divisor=32, targets=[target], text_states=states
    )
    expected = GroundingCriterion(config)(predictor.model(batch), batch)
    assert outputs.loss_dict.keys() == expected.keys()
    for name, value in expected.items():
        assert outputs.loss_dict[name].item() == pytest.approx(value.item(), rel=1e-4)
    assert outputs.loss.item() == pytest.approx(sum(value.item() for value in expected.values()), rel=1e-4)
    assert model(**inputs, return_dict=False)[0].item() == pytest.approx(outputs.loss.item(), rel=1e-6)


def test_labels_that_name_no_phrase_are_refused(published_folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(published_folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(published_folder)
    inputs = processor(images=picture(64, 96), text=["kite"], annotations=annotations())
    with pytest.raises(ValueError, match=r"class_labels count the 1 phrases of the prompt from 0, got \[0, 1\]"):
        model(**inputs)
    with pytest.raises(ValueError, match=r"2 pictures need annotations each, got 1"):
        processor(images=[picture(64, 96)] * 2, text=["kite"], annotations=annotations())


@pytest.mark.slow
def test_the_trainer_tunes_a_model(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    rows = [{"image": picture(64, 96, seed), "annotations": annotations()} for seed in range(4)]

    def collated(examples: list[dict[str, Any]]) -> Any:
        images, marks = ([each[name] for each in examples] for name in ("image", "annotations"))
        return processor(images=images, text=["kite", "red apple"], annotations=marks)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=2,
        learning_rate=3e-3,
        logging_steps=1,
        save_steps=6,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer's own
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collated)  # type: ignore[arg-type]
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    processor.save_pretrained(tmp_path / "checkpoint-12")
    (found,) = GLIPPredictor.from_pretrained(tmp_path / "checkpoint-12").predict(rows[0]["image"], ["kite"])
    same(asked(tmp_path / "checkpoint-12", rows[0]["image"], ["kite"])[0], found)
    # What a training that goes on takes: names as the model has them.
    again = GLIPForZeroShotObjectDetection(model.config)
    saved = transformers.modeling_utils.load_state_dict(str(tmp_path / "checkpoint-6" / "model.safetensors"))
    assert not again.load_state_dict(saved, strict=True).missing_keys


def test_supervision_takes_the_result(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses OpenCV
        supervision = pytest.importorskip("supervision")
    image = picture(96, 152)
    (result,) = asked(folder, image, NAMES, text_labels=NAMES)
    taken = supervision.Detections.from_transformers(result, id2label=dict(enumerate(NAMES)))
    assert taken.xyxy.tolist() == result["boxes"].tolist()
    assert taken.data["class_name"].tolist() == result["text_labels"]


def test_names_in_words_of_transformers_are_no_settings(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "glip"
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": "red"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"colour is not a model setting"):
        GLIP.from_pretrained(tmp_path)


def test_weights_by_either_name_are_the_same(as_run: GLIPConfig) -> None:
    model, other = GLIP(as_run), GLIP(as_run)
    load_strictly(other, {f"glip.{name}": value for name, value in model.state_dict().items()}, "here")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        "import glip_model; from transformers import AutoConfig, AutoProcessor, AutoModelForZeroShotObjectDetection",
        "from transformers import AutoConfig, AutoProcessor, AutoModelForZeroShotObjectDetection; import glip_model",
        "from transformers import BertModel; import glip_model; from transformers import AutoConfig, AutoProcessor",
    ],
)
def test_who_is_imported_first_does_not_matter(published_folder: Path, order: str) -> None:
    program = (
        f"{order}\nfrom transformers import AutoModelForZeroShotObjectDetection as M\n"
        f"folder = {str(published_folder)!r}\n"
        "print(*(type(each.from_pretrained(folder)).__name__ for each in (AutoConfig, AutoProcessor, M)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    names = done.stdout.split()
    assert names == ["GLIPPreTrainedConfig", "GLIPProcessor", "GLIPForZeroShotObjectDetection"], done.stderr


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    program = "import sys, glip_model; print(*({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split() == []
    )
