"""The predictor around a tiny model: batching, chunks of categories, saving and loading."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from glip_model.boxes import clip_boxes, to_exclusive
from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.glip import GLIP
from glip_model.postprocess import postprocess
from glip_model.predictor import GLIPPredictor
from glip_model.preprocess import collate, image_to_tensor
from glip_model.prompts import Prompt, caption_prompt, category_prompt
from glip_model.resizing import resize_size
from glip_model.structures import Detections, GroundingBatch

TINY = GLIPConfig(
    backbone=BackboneConfig(swin=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4)),
    text=TextConfig(
        hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_tokens=24, frozen=True, encoding="segments"
    ),
    fusion=FusionConfig(num_layers=1, embed_dim=16, num_heads=2, text_num_heads=2, text_intermediate_size=16),
    channels=16,
    num_levels=3,
    norm_groups=4,
    deformable=False,
    anchor_scale=4.0,
    score_threshold=0.0,
    max_detections=20,
    test_short_side=64,
    test_long_side=96,
)
NAMES = ["red apple", "pear", "plum", "kite", "traffic_light", "dog", "cat", "smörgåsbord", "cup"]


def make_model(config: GLIPConfig = TINY) -> GLIP:
    torch.manual_seed(3)
    model = GLIP(config)
    with torch.no_grad():  # random weights hardly differ between words; these do
        model.text_encoder.body.embeddings.word_embeddings.weight.mul_(50)
        model.head.text_projection.weight.mul_(10)
        model.head.bbox_pred.weight.mul_(50)
    return model


@pytest.fixture
def predictor(tokenizer: Any) -> GLIPPredictor:
    return GLIPPredictor(make_model(), tokenizer)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def same(left: Detections, right: Detections, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(left.scores, right.scores, rtol=0, atol=tolerance)
    assert left.phrase_index.tolist() == right.phrase_index.tolist()
    torch.testing.assert_close(left.boxes_xyxy, right.boxes_xyxy, rtol=0, atol=100 * tolerance)
    assert left.phrases == right.phrases
    assert left.char_spans == right.char_spans


def test_grounding_answers_for_every_picture_in_its_own_pixels(predictor: GLIPPredictor) -> None:
    images = [picture(64, 64), picture(128, 160, seed=1), picture(40, 80, seed=2)]
    prompts = [
        caption_prompt("a red apple on a pear", [[(2, 11)], [(17, 21)]]),
        caption_prompt("kites", [[(0, 5)]]),
        category_prompt(["dog", "cat"]),
    ]
    found = predictor.ground(images, prompts)
    assert len(found) == 3
    for image, prompt, detections in zip(images, prompts, found, strict=True):
        assert 0 < len(detections) <= TINY.max_detections
        assert detections.phrases == prompt.phrases
        assert detections.char_spans == prompt.char_spans
        assert set(detections.phrase_index.tolist()) == set(range(len(prompt.phrases)))
        assert detections.scores.tolist() == sorted(detections.scores.tolist(), reverse=True)
        boxes = detections.boxes_xyxy
        assert (boxes >= 0).all()
        assert (boxes[:, 0::2] <= image.width).all()
        assert (boxes[:, 1::2] <= image.height).all()
        assert boxes[:, 2].max() > 0.7 * image.width  # scaled up to the picture, not left at the model's size


def test_pictures_of_one_size_do_not_depend_on_their_batch(predictor: GLIPPredictor) -> None:
    images = [picture(64, 64, seed) for seed in range(3)]
    prompts = [category_prompt(["dog"]), category_prompt(["pear", "red apple"]), category_prompt(["cat"])]
    together = predictor.ground(images, prompts)
    for image, prompt, detections in zip(images, prompts, together, strict=True):
        same(predictor.ground([image], [prompt])[0], detections)


def written_out(predictor: GLIPPredictor, image: Image.Image, prompt: Prompt) -> Detections:
    """Ask about one picture by the slow path: resized, made floats and normalised here, one after the other."""
    config, asked = predictor.model.config, predictor.tokenize(prompt)
    height, width = resize_size(image.height, image.width, config.test_short_side, config.test_long_side)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    batch = collate([image_to_tensor(resized, config.backbone)], [asked], size_divisor=config.size_divisor)
    states = predictor._text_states([asked.prompt.segments])[0][None]
    with torch.inference_mode():
        output = predictor.model.ground(
            predictor.model.features(batch.pixel_values), batch.input_ids, batch.attention_mask, states
        )
        (found,) = postprocess(
            output, batch.image_sizes, [asked.positive_map], [(image.height, image.width)], predictor.model.config
        )
    boxes = clip_boxes(to_exclusive(found.boxes_xyxy), (image.height, image.width))
    return replace(found, boxes_xyxy=boxes, phrases=prompt.phrases, char_spans=prompt.char_spans)


@pytest.mark.parametrize("size", [(64, 64), (128, 160), (40, 80), (300, 48), (8, 400)])
def test_pictures_resized_elsewhere_are_answered_bit_by_bit_as_by_the_slow_path(
    predictor: GLIPPredictor, size: tuple[int, int]
) -> None:
    image, prompt = picture(*size), caption_prompt("a red apple on a pear", [[(2, 11)], [(17, 21)]])
    expected = written_out(predictor, image, prompt)
    assert len(expected) > 0
    rule = pickle.loads(pickle.dumps(predictor.resize_rule))
    (answered,) = predictor.answer(predictor.prepare([rule(image)], [prompt]))
    for found in (answered, *predictor.ground([image], [prompt]), *predictor.ground([rule(image)], [prompt])):
        same(found, expected, tolerance=0.0)
    (named,) = predictor.detect([rule(image)], NAMES)
    same(named, predictor.detect([image], NAMES)[0], tolerance=0.0)


def test_the_same_words_again_come_from_the_cache_and_change_nothing(predictor: GLIPPredictor) -> None:
    prompt = category_prompt(NAMES[:3])
    first = predictor.ground([picture(64, 64)], [prompt])[0]
    calls: list[int] = []
    predictor.model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    same(predictor.ground([picture(64, 64)], [prompt])[0], first, tolerance=0.0)
    assert calls == []


@pytest.mark.parametrize(("encoding", "limit_total"), [("joint", True), ("segments", True), ("segments", False)])
def test_detecting_is_grounding_chunk_by_chunk(tokenizer: Any, encoding: Any, limit_total: bool) -> None:
    config = replace(TINY, text=replace(TINY.text, encoding=encoding), max_detections=7)
    predictor = GLIPPredictor(make_model(config), tokenizer)
    images = [picture(64, 64), picture(64, 96, seed=1)]
    found = predictor.detect(images, NAMES, max_prompt_categories=2, limit_total=limit_total)
    for i, detections in enumerate(found):
        rows = []
        for start in range(0, len(NAMES), 2):
            part = predictor.ground(images, [category_prompt(NAMES[start : start + 2])] * 2)[i]
            rows += [
                (score, start + phrase, box)
                for score, phrase, box in zip(
                    part.scores.tolist(), part.phrase_index.tolist(), part.boxes_xyxy.tolist(), strict=True
                )
            ]
        expected = sorted(rows, key=lambda row: -row[0])[: 7 if limit_total else None]
        assert len(expected) > 7 or limit_total
        assert detections.scores.tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-5)
        assert detections.phrase_index.tolist() == [phrase for _, phrase, _ in expected]
        assert detections.boxes_xyxy.flatten().tolist() == pytest.approx(
            [x for _, _, box in expected for x in box], abs=1e-2
        )
        assert detections.phrases == tuple(NAMES)
        assert detections.char_spans == ()


def test_pictures_are_looked_at_once_whatever_the_number_of_names(predictor: GLIPPredictor) -> None:
    looks: list[int] = []
    predictor.model.backbone.register_forward_hook(lambda _, given, __: looks.append(len(given[0])))
    predictor.detect([picture(64, 64), picture(64, 96), picture(64, 64)], NAMES, max_prompt_categories=2)
    assert looks == [2, 1]


def test_no_more_prompts_run_together_than_there_are_pictures(predictor: GLIPPredictor) -> None:
    asked: list[int] = []
    predictor.model.head.register_forward_hook(lambda _, given, __: asked.append(len(given[1])))
    predictor.detect([picture(64, 64), picture(64, 96), picture(64, 64)], NAMES, max_prompt_categories=2)
    assert asked == [2, 2, 2, 2, 2, 3, 2]  # five prompts: two pictures at a time, then one picture with three prompts


def test_more_names_than_a_prompt_holds_are_all_asked_for(predictor: GLIPPredictor) -> None:
    names = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in NAMES]
    (found,) = predictor.detect([picture(64, 64)], names, max_detections=10_000)
    assert set(found.phrase_index.tolist()) == set(range(len(names)))


def test_a_phrase_beyond_the_token_limit_is_never_found(predictor: GLIPPredictor) -> None:
    caption = "dog " * 30
    (found,) = predictor.ground([picture(64, 64)], [caption_prompt(caption, [[(0, 3)], [(100, 103)]])])
    assert set(found.phrase_index.tolist()) == {0}


def test_a_prompt_that_asks_for_nothing_finds_nothing(predictor: GLIPPredictor) -> None:
    (found,) = predictor.ground([picture(64, 64)], [caption_prompt("a dog", [])])
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)


def test_no_pictures_give_no_detections(predictor: GLIPPredictor) -> None:
    assert predictor.ground([], []) == []
    assert predictor.detect([], ["dog"]) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one category name"),
        (["dog", " _ "], "is empty"),
        (["dog " * 30], r"30 tokens; a prompt holds 22"),
    ],
)
def test_names_that_cannot_be_asked_for_are_refused(
    predictor: GLIPPredictor, names: Sequence[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.detect([picture(64, 64)], names)


def test_a_prompt_for_every_picture_is_asked_for(predictor: GLIPPredictor) -> None:
    with pytest.raises(ValueError, match="2 pictures need as many prompts, got 1"):
        predictor.ground([picture(64, 64)] * 2, [Prompt(("dog",), ([(0, 3)],))])


def test_a_greyscale_picture_is_refused_with_advice(predictor: GLIPPredictor) -> None:
    with pytest.raises(ValueError, match=r"mode 'L'; convert it"):
        predictor.ground([picture(64, 64).convert("L")], [category_prompt(["dog"])])


def test_a_saved_predictor_finds_the_same(predictor: GLIPPredictor, tmp_path: Path) -> None:
    predictor.model.save_pretrained(tmp_path, predictor.tokenizer)
    loaded = GLIPPredictor.from_pretrained(tmp_path)
    assert not loaded.model.training
    images, prompts = [picture(64, 80)], [category_prompt(NAMES[:4])]
    same(loaded.ground(images, prompts)[0], predictor.ground(images, prompts)[0], tolerance=0.0)


def test_predicting_builds_no_graph(predictor: GLIPPredictor) -> None:
    (found,) = predictor.ground([picture(64, 64)], [category_prompt(["dog"])])
    assert not found.scores.requires_grad
    assert not predictor.model.training


def test_pictures_of_other_sizes_beside_it_change_nothing(predictor: GLIPPredictor) -> None:
    images = [picture(64, 64), picture(64, 96, seed=1), picture(40, 120, seed=2), picture(64, 64, seed=3)]
    prompts = [category_prompt(NAMES[:3])] * 4
    for image, detections in zip(images, predictor.ground(images, prompts), strict=True):
        same(predictor.ground([image], prompts[:1])[0], detections)


def test_predict_takes_names_and_pictures_of_every_kind(predictor: GLIPPredictor, tmp_path: Path) -> None:
    image = picture(64, 80)
    image.save(tmp_path / "a.png")
    pixels = np.array(image)
    kinds = [image, str(tmp_path / "a.png"), tmp_path / "a.png", f"file://{tmp_path}/a.png", pixels]
    kinds += [torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(pixels).permute(2, 0, 1) / 255]
    expected = predictor.detect([image], NAMES)[0]
    for kind in kinds:
        (found,) = predictor.predict(kind, NAMES)
        same(found, expected)
    for several in (kinds, pixels[None].repeat(5, 0)):
        results = predictor.predict(several, NAMES, batch_size=2)
        assert len(results) == len(several)
        for found in results:
            same(found, expected)


def test_a_caption_asks_for_what_stands_between_its_periods(predictor: GLIPPredictor) -> None:
    caption = "a red apple. a pear."
    spans = [[(0, 11)], [(13, 19)]]
    (found,) = predictor.predict(picture(64, 64), caption)
    assert found.phrases == ("a red apple", "a pear")
    same(found, predictor.ground([picture(64, 64)], [caption_prompt(caption, spans)])[0])
    same(predictor.predict(picture(64, 64), caption, spans=spans)[0], found)
    same(predictor.predict(picture(64, 64), caption, parser=lambda text: spans)[0], found)
    assert set(found.spans[0][0]) <= {0, 11, 13, 19}


def test_names_that_come_again_are_asked_for_once(predictor: GLIPPredictor) -> None:
    image = picture(64, 64)
    (expected,) = predictor.predict(image, ["fire truck", "dog"])
    with pytest.warns(UserWarning, match="5 names are 2 different ones; each is asked for once"):
        (found,) = predictor.predict(image, ["fire truck", "dog", "Dog", "fire_truck", " dog "])
    same(found, expected)
    assert found.labels == expected.labels


def test_low_scores_are_left_out_on_request(predictor: GLIPPredictor) -> None:
    (everything,) = predictor.predict(picture(64, 64), NAMES)
    bound = float(everything.scores[5])
    (found,) = predictor.predict(picture(64, 64), NAMES, min_score=bound)
    same(found, everything.above(bound))
    assert 0 < len(found) < len(everything)
    assert float(found.scores.min()) >= bound


@pytest.mark.parametrize("prompt", [NAMES, "a dog. a cat."])
def test_a_limit_of_one_call_is_not_left_in_the_model(predictor: GLIPPredictor, prompt: Any) -> None:
    before = predictor.model.config
    (usual,) = predictor.predict(picture(64, 64), prompt)
    (limited,) = predictor.predict(picture(64, 64), prompt, max_detections=4)
    assert len(limited) == 4 < len(usual)
    same(limited, usual.above(float(usual.scores[3])), tolerance=0.0)
    same(predictor.predict(picture(64, 64), prompt)[0], usual, tolerance=0.0)
    assert predictor.model.config is before


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a dog", {"max_detections": 0}, "max_detections is 0; expected at least 1"),
        ("", {}, "caption is empty"),
        ("...", {}, "no phrases in the caption"),
        ([], {}, "at least one category name"),
        ("a dog", {"parser": lambda text: []}, "no phrases in the caption"),
        ("a dog", {"spans": [[(2, 9)]]}, "not inside the caption"),
        ("dog. " * 30, {}, "beyond the 24 tokens"),
        (["dog"], {"spans": [[(0, 3)]]}, "belong to a caption"),
        ("a dog", {"spans": [[(2, 5)]], "parser": lambda text: []}, "not both"),
    ],
)
def test_prompts_that_cannot_be_asked_for_are_refused(
    predictor: GLIPPredictor, prompt: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.predict(picture(64, 64), prompt, **options)


def test_bfloat16_finds_about_the_same(predictor: GLIPPredictor) -> None:
    half = GLIPPredictor(predictor.model, predictor.tokenizer, "cpu", "bf16")
    (exact,) = predictor.predict(picture(64, 64), NAMES[:2])
    (rounded,) = half.predict(picture(64, 64), NAMES[:2])
    assert rounded.scores.dtype == torch.float32
    torch.testing.assert_close(rounded.scores[:5], exact.scores[:5], rtol=0, atol=0.05)


def test_logits_are_summed_in_single_precision_under_autocast_too() -> None:
    head = make_model().head
    levels, text = [torch.randn(1, TINY.channels, 4, 4) for _ in range(TINY.num_levels)], torch.randn(1, 5, 16)
    with torch.no_grad():
        cells = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            logits, _, _ = head(levels, text)
            unit = torch.nn.functional.normalize(text, dim=-1)
            tokens = head.text_projection(unit / 2) / head.log_scale.exp()  # in bfloat16, as all layers
            bias = unit @ head.bias_lang + head.bias0
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, cells @ tokens.float().mT + bias.float().unsqueeze(1))


@pytest.mark.parametrize("encoding", ["joint", "segments"])
def test_the_whole_model_is_one_graph(encoding: Any) -> None:
    config = replace(TINY, deformable=True, text=replace(TINY.text, encoding=encoding))
    model = make_model(config).eval()
    # Without a code generator behind it: what is looked for are breaks in the graph, which fullgraph refuses.
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    batch = GroundingBatch(
        pixel_values=torch.randn(1, 3, 64, 96),
        image_sizes=((64, 96),),
        input_ids=torch.randint(1000, 2000, (1, 9)),
        attention_mask=torch.arange(9)[None] < 7,
        text_states=torch.randn(1, 9, 16) if encoding == "segments" else None,
    )
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        traced, plain = compiled(batch), model(batch)
    torch.testing.assert_close(traced.token_logits, plain.token_logits)
    torch.testing.assert_close(traced.box_deltas, plain.box_deltas)


def test_compiling_is_asked_for_and_changes_nothing(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_with: dict[str, Any] = {}

    def compile_nothing(model: GLIP, **options: Any) -> GLIP:
        compiled_with.update(options)
        return model

    monkeypatch.setattr(torch, "compile", compile_nothing)
    predictor = GLIPPredictor(make_model(), tokenizer, "cpu", compile_model=True)
    assert compiled_with == {"dynamic": False}
    assert len(predictor.predict(picture(64, 64), NAMES)[0]) > 0


def test_boxes_of_inclusive_corners_are_a_pixel_longer_and_end_inside(tokenizer: Any) -> None:
    images = [picture(64, 96), picture(128, 192, seed=1), picture(32, 48, seed=2)]
    found = {}
    for inclusive in (False, True):
        model = make_model(replace(TINY, inclusive_corners=inclusive, nms_threshold=1.0, max_detections=10_000))
        found[inclusive] = GLIPPredictor(model, tokenizer).detect(images, ["dog"])
    for image, plain, longer in zip(images, found[False], found[True], strict=True):
        assert torch.equal(plain.scores, longer.scores)
        edges = torch.tensor([image.width, image.height] * 2).float()
        # What the two models say is the same; the inclusive one's boxes end a pixel later, unless the picture does.
        inside = (plain.boxes_xyxy[:, 2:] < edges[2:] - max(1.0, image.width / 96)).all(1)
        assert inside.any()
        expected = plain.boxes_xyxy[inside] + torch.tensor([0.0, 0.0, 1.0, 1.0])
        torch.testing.assert_close(longer.boxes_xyxy[inside], expected)
        for boxes in (plain.boxes_xyxy, longer.boxes_xyxy):
            assert (boxes >= 0).all()
            assert (boxes <= edges).all()
