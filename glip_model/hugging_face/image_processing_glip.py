"""Pre- and postprocessing for transformers' GLIP, with the project's own steps and so its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from glip_model.boxes import clip_boxes, to_exclusive
from glip_model.config import GLIPConfig
from glip_model.hugging_face.files import IMAGE_SETTINGS, image_settings, reading_config
from glip_model.hugging_face.modeling_glip import whole_prompts
from glip_model.images import ImageLike, open_image
from glip_model.postprocess import postprocess
from glip_model.preprocess import PictureBatch
from glip_model.resizing import ResizeRule
from glip_model.structures import GLIPOutput


class GLIPImageProcessor(BaseImageProcessor):
    """Resizes, normalises and pads pictures as a model's config says, and turns its outputs into boxes.

    Args:
        settings: ``IMAGE_SETTINGS``; those that are left out are as published.
    """

    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012  # as transformers declares it

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        known = {name: value for name, value in settings.items() if name in IMAGE_SETTINGS}
        for name, value in image_settings(reading_config(known)).items():
            setattr(self, name, value)

    @property
    def config(self) -> GLIPConfig:
        """The settings as the model's parts read them."""
        return reading_config({name: getattr(self, name) for name in IMAGE_SETTINGS})

    def preprocess(
        self,
        images: ImageLike | Sequence[ImageLike],
        annotations: Any = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a batch of pictures.

        Args:
            images: one or several; ``images.open_image`` says what a picture may be.
            annotations: as COCO has them: per picture a dict whose ``annotations`` have ``bbox`` (x, y, width, height
                in pixels) and ``category_id``, which here counts the names that are asked for, from 0.
            return_tensors: "pt", the only kind.
            kwargs: what else transformers passes along, not looked at.

        Returns:
            ``pixel_values`` (B, 3, H, W) float32, ``pixel_mask`` (B, H, W) int64, and with annotations ``labels`` as
            the model takes them.

        Raises:
            ValueError: a picture cannot be opened, annotations are none of as many pictures, or other tensors are
                asked for.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors is {return_tensors!r}; the processor makes PyTorch's tensors alone: 'pt'")
        config = self.config
        rule = ResizeRule(config.test_short_side, config.test_long_side, config.size_divisor)
        opened = [open_image(image) for image in as_list(images)]
        pictures = PictureBatch.of([rule(image) for image in opened], config.size_divisor)
        pixel_values = pictures.to_device(torch.device("cpu"), config.backbone)
        mask = torch.zeros(len(opened), *pixel_values.shape[-2:], dtype=torch.int64)
        for each, (height, width) in zip(mask, pictures.sizes, strict=True):
            each[:height, :width] = 1
        made: dict[str, Any] = {"pixel_values": pixel_values, "pixel_mask": mask}
        if annotations is not None:
            each_of = [annotations] if isinstance(annotations, dict) else list(annotations)
            if len(each_of) != len(opened):
                raise ValueError(f"{len(opened)} pictures need annotations each, got {len(each_of)}")
            sizes = [(image.width, image.height) for image in opened]
            made["labels"] = [_label(each, *size) for each, size in zip(each_of, sizes, strict=True)]
        return BatchFeature(made)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.1,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        text_threshold: float | None = None,
    ) -> list[dict[str, Tensor]]:
        """Turn outputs into boxes as ``GLIPPredictor`` does: threshold, centerness, best, NMS.

        Args:
            outputs: a ``GLIPObjectDetectionOutput``.
            threshold: boxes that score no more are left out, 0 to 1.
            target_sizes: (height, width) of the original pictures; None gives boxes as shares of them.
            text_threshold: phrase score that candidates must pass before centerness counts; None is the model's own.

        Returns:
            Per picture ``scores`` (N,), best first, ``labels`` (N,) int64, which phrase of ``positive_map`` each is,
            and ``boxes`` (N, 4) corners x1, y1, x2, y2.

        Raises:
            ValueError: there are not as many sizes as pictures.
        """
        seen = [(int(height), int(width)) for height, width in outputs.image_sizes.tolist()]
        if target_sizes is not None and len(target_sizes) != len(seen):
            raise ValueError(f"{len(seen)} pictures need as many target_sizes, got {len(target_sizes)}")
        given = target_sizes.tolist() if isinstance(target_sizes, Tensor) else target_sizes
        originals = seen if given is None else [(int(height), int(width)) for height, width in given]
        settings = {name: getattr(self, name) for name in IMAGE_SETTINGS}
        if text_threshold is not None:
            settings["score_threshold"] = float(text_threshold)
        config = reading_config(settings)
        levels = tuple((int(height), int(width)) for height, width in outputs.level_sizes[0].tolist())
        raw = GLIPOutput(outputs.logits, outputs.box_deltas, outputs.centerness, levels)
        maps = getattr(outputs, "positive_map", None)
        maps = whole_prompts(outputs.attention_mask) if maps is None else maps
        found = []
        per_image = postprocess(raw, seen, list(maps.cpu()), originals, config)
        for detections, size in zip(per_image, originals, strict=True):
            boxes, kept = detections.boxes_xyxy, detections.scores > threshold
            if config.inclusive_corners:
                boxes = clip_boxes(to_exclusive(boxes), size)
            if given is None:
                boxes = boxes / boxes.new_tensor([size[1], size[0]] * 2)
            found.append(
                {"scores": detections.scores[kept], "labels": detections.phrase_index[kept], "boxes": boxes[kept]}
            )
        return found


def as_list(images: Any) -> list[Any]:
    """Return pictures as a list, of one picture or of several."""
    if isinstance(images, list | tuple):
        return list(images)
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]


def _label(entry: dict[str, Any], width: int, height: int) -> dict[str, Tensor]:
    """Return the annotations of a picture as the model's labels."""
    rows = entry["annotations"]
    boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
    centred = torch.cat([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], 1)
    classes = torch.tensor([row["category_id"] for row in rows], dtype=torch.int64)
    return {"class_labels": classes, "boxes": centred / torch.tensor([width, height] * 2)}
