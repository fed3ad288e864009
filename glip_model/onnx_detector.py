"""Detectors of fixed names as ONNX graphs: pictures in, boxes, scores and classes after NMS out.

The prompt is computed once, at export: neither tokenizer nor text encoder is needed where the graph runs. Letters: B
pictures, H W pixels, P names of a prompt, T tokens, A anchors, K candidates, N boxes of a picture.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glip_model.alignment import TokenizedPrompt, phrase_scores, tokenize_prompt
from glip_model.anchors import anchor_grid
from glip_model.boxes import clip_boxes, decode_boxes, to_exclusive
from glip_model.export import OPSET
from glip_model.glip import GLIP
from glip_model.preprocess import normalise
from glip_model.prompts import category_prompt, chunk_categories
from glip_model.structures import GLIPOutput
from glip_model.text_encoder import TextStateCache
from glip_model.whole_files import whole_files

INPUT = "images"
OUTPUTS = ("boxes", "scores", "classes")
METADATA_KEY = "glip"
"""Entry of the file's metadata that holds a ``DetectorCard`` as JSON."""
POSTPROCESS = "postprocess"
"""Part of the names of nodes behind the model, which stay in float32 whatever the rest computes in."""
NO_CLASS = -1
"""Class of the padding behind the last box of a picture."""


@dataclass(frozen=True, kw_only=True)
class DetectorCard:
    """What whoever runs a graph needs to know of it."""

    names: tuple[str, ...]
    """Names in the order of the graph's classes."""
    short_side: int
    long_side: int
    """Pictures are resized to these before, as ``ResizeRule`` does."""
    inclusive_corners: bool
    """The model's own far corners are a pixel less than those that the graph gives."""
    nms_threshold: float

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> DetectorCard:
        """Read what ``to_json`` wrote; ValueError where it is anything else."""
        values = json.loads(text)
        kinds = {"short_side": int, "long_side": int, "inclusive_corners": bool, "nms_threshold": float}
        names = values.get("names") if isinstance(values, dict) else None
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) and name for name in names)
            or set(values) != {"names", *kinds}
            or any(type(values[name]) is not kind for name, kind in kinds.items())
            or not all(1 <= values[side] <= 32_768 for side in ("short_side", "long_side"))
        ):
            raise ValueError(f"it says {text!r:.200}; expected what glip export writes")
        return cls(**{**values, "names": tuple(names)})


class _Suppression(torch.autograd.Function):
    """ONNX's NonMaxSuppression: of each picture and class the best boxes that no better one overlaps too much."""

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, most: int, threshold: float) -> Any:
        """Write the node of boxes (B, K, 4) with scores (B, P, K); scores of 0 and below are none."""
        limits = (torch.tensor([most]), torch.tensor([threshold]), torch.tensor([0.0]))
        return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=limit) for limit in limits))

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, most: int, threshold: float) -> Tensor:
        """Return (S, 3) int64 picture, class and candidate of something: while a graph is traced, no more matters."""
        return torch.zeros(1, 3, dtype=torch.int64)


class PostprocessGraph(nn.Module):
    """``postprocess.postprocess`` as a graph: a fixed number of candidates and boxes, padding among them marked."""

    def __init__(self, model: GLIP) -> None:
        super().__init__()
        self.config = model.config

    def forward(
        self, output: GLIPOutput, positive_map: Tensor, first_class: int, height: Any, width: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a prompt finds.

        Args:
            output: of B pictures.
            positive_map: (P, T) bool.
            first_class: class of the prompt's first name.
            height: of the pictures without padding.
            width: the same.

        Returns:
            Boxes (B, N, 4), scores (B, N), best first, and classes (B, N) int64.
        """
        config, count = self.config, len(positive_map)
        score, index = self._candidates(output, positive_map)
        anchor, name = torch.div(index, count, rounding_mode="floor"), index % count
        anchors = anchor_grid(output.level_sizes, config.strides, config.anchor_scale, score.device)
        deltas = output.box_deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = clip_boxes(decode_boxes(deltas, anchors[anchor]), (height, width), config.inclusive_corners)
        exact = to_exclusive(boxes) if config.inclusive_corners else boxes
        by_class = torch.where(name[:, None] == torch.arange(count)[:, None], score[:, None], 0.0)  # (B, P, K)
        most = min(config.max_detections, score.shape[1])
        selected = cast(Tensor, _Suppression.apply(exact, by_class, most, config.nms_threshold))
        is_kept = torch.zeros_like(score).index_put((selected[:, 0], selected[:, 2]), torch.ones(()))
        best = torch.where(is_kept > 0, score, -1.0).topk(most)
        found = best.indices
        classes = torch.where(best.values > 0, name.gather(1, found) + first_class, NO_CLASS)
        shown = torch.where(best.values[..., None] > 0, exact.gather(1, found[..., None].expand(-1, -1, 4)), 0.0)
        return shown, best.values.clamp(min=0).sqrt(), classes

    def _candidates(self, output: GLIPOutput, positive_map: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared scores (B, K) and places (B, K) in the pairs of anchors and names, -1 behind the last."""
        config = self.config
        maps = positive_map[None].expand(output.token_logits.shape[0], -1, -1)
        scores = phrase_scores(output.token_logits, maps)
        ranked = torch.where(scores > config.score_threshold, scores * output.centerness.sigmoid()[..., None], -1.0)
        values, indices, start = [], [], 0
        for level in torch.split(ranked, [height * width for height, width in output.level_sizes], 1):
            pairs = level.flatten(1)
            # A graph's number of candidates is fixed; levels may have fewer.
            best = F.pad(pairs, (0, config.pre_nms_topk), value=-1.0).topk(config.pre_nms_topk, 1)
            values.append(best.values)
            indices.append(torch.where(best.values >= 0, best.indices + start, 0))
            start = start + pairs.shape[1]
        return torch.cat(values, 1), torch.cat(indices, 1)


class DetectorGraph(nn.Module):
    """What the graph computes.

    Args:
        model: in eval mode, on the CPU.
        tokenizer: of the model.
        names: what is found; as few prompts as hold them.

    Raises:
        ValueError: a name is empty or too long, or there are none.
    """

    def __init__(self, model: GLIP, tokenizer: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        limit = model.config.text.max_tokens
        chunks = chunk_categories(names, tokenizer, limit)
        asked = [tokenize_prompt(tokenizer, category_prompt([names[i] for i in chunk]), limit) for chunk in chunks]
        if not asked:
            raise ValueError("a detector needs at least one name, got none")
        states = TextStateCache(model.text_encoder, tokenizer)([each.prompt.segments for each in asked])
        self.prompts: list[tuple[TokenizedPrompt, Tensor]] = list(zip(asked, states, strict=True))
        self.postprocess = PostprocessGraph(model)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the names in pictures.

        Args:
            images: (B, H, W, 3) uint8 RGB, resized.

        Returns:
            Boxes (B, N, 4) float32, corners in pixels of ``images``; scores (B, N), best first; classes (B, N) int64.
            Behind the last box scores are 0 and classes ``NO_CLASS``.
        """
        config = self.model.config
        height, width = images.shape[1], images.shape[2]
        pixels = normalise(images, config.backbone)
        pixels = F.pad(pixels, (0, -width % config.size_divisor, 0, -height % config.size_divisor))
        features = self.model.features(pixels)
        parts, first = [], 0
        for prompt, states in self.prompts:
            # One row of text for all pictures: what it is before it has met one becomes a constant of the graph.
            ids = prompt.input_ids[None]
            output = self.model.ground(features, ids, torch.ones_like(ids, dtype=torch.bool), states[None])
            parts.append(self.postprocess(output, prompt.positive_map, first, height, width))
            first += len(prompt.positive_map)
        if len(parts) == 1:
            found: tuple[Tensor, Tensor, Tensor] = parts[0]
            return found
        boxes, scores, classes = (torch.cat(each, 1) for each in zip(*parts, strict=True))
        best = scores.topk(config.max_detections, 1)
        places = best.indices
        return boxes.gather(1, places[..., None].expand(-1, -1, 4)), best.values, classes.gather(1, places)


def export_detector(model: GLIP, tokenizer: Any, names: Sequence[str], path: str | Path) -> DetectorCard:
    """Write a detector of fixed names as ONNX.

    Args:
        model: in eval mode, on the CPU.
        tokenizer: of the model.
        names: what is found.
        path: file to write.

    Returns:
        What was written into the file's metadata.

    Raises:
        ValueError: as of ``DetectorGraph``.
        ImportError: onnx is not installed.
        OSError: the file cannot be written.
    """
    import onnx

    config, path = model.config, Path(path)
    graph = DetectorGraph(model, tokenizer, names).eval()
    card = DetectorCard(
        names=tuple(names),
        short_side=config.test_short_side,
        long_side=config.test_long_side,
        inclusive_corners=config.inclusive_corners,
        nms_threshold=config.nms_threshold,
    )
    example = torch.randint(0, 256, (2, 224, 288, 3), dtype=torch.uint8)  # what is found there matters nothing
    axes = {INPUT: {0: "batch", 1: "height", 2: "width"}, **{name: {0: "batch", 1: "boxes"} for name in OUTPUTS}}
    with warnings.catch_warnings(), whole_files(path.parent, path.name) as folder, torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            graph,
            (example,),
            str(folder / path.name),
            dynamo=False,  # see export_onnx
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
        )
        written = onnx.load(folder / path.name, load_external_data=False)
        onnx.helper.set_model_props(written, {METADATA_KEY: card.to_json()})
        onnx.save(written, folder / path.name)
    return card
