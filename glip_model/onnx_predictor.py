"""OnnxPredictor: what ``GLIPPredictor`` does for names, with a file of ``export_detector`` and onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glip_model.boxes import clip_boxes, to_exclusive, to_inclusive
from glip_model.images import ImageLike, open_image
from glip_model.onnx_detector import INPUT, METADATA_KEY, OUTPUTS, DetectorCard
from glip_model.prompts import clean_name
from glip_model.resizing import ResizeRule
from glip_model.structures import Detections
from glip_model.tiling import find_in_tiles

SUFFIX = ".onnx"
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "openvino": ("OpenVINOExecutionProvider",),
}
"""Device to onnxruntime's providers, the first that knows an operator runs it; the processor runs what none knows."""


class OnnxPredictor:
    """A detector of fixed names.

    Args:
        path: file of ``export_detector``.
        device: one of ``PROVIDERS``; None takes a GPU where onnxruntime has one, or the CPU.
        threads: of onnxruntime on the CPU; 0 leaves it to onnxruntime.

    Raises:
        ValueError: it is no such file, or this onnxruntime has nothing for the device.
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, device: str | None = None, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # what it could not fold or fuse is for its developers
        providers = _providers(device, onnxruntime.get_available_providers())
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's have no other base
            raise ValueError(f"{path}: onnxruntime cannot load it: {error}") from error
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ValueError(
                f'{path}: names no classes; expected a file of: glip export MODEL --onnx FILE --names "cat, dog"'
            )
        try:
            self.card = DetectorCard.from_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: its metadata cannot be read: {error}") from error
        self.resize_rule = ResizeRule(self.card.short_side, self.card.long_side, 1)

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        names: Sequence[str] | None = None,
        *,
        min_score: float = 0.0,
        compete_threshold: float = 1.0,
        tile: int = 0,
        batch_size: int = 8,
    ) -> list[Detections]:
        """Find names in pictures; arguments and results as of ``GLIPPredictor.predict``.

        Args:
            images: one picture or any number of them.
            names: some of those that the file finds; None takes all.
            min_score: boxes below are left out, 0 to 1.
            compete_threshold: of boxes of different names that overlap by more, the best stays; 1 keeps all.
            tile: side in pixels of overlapping pieces that larger pictures are looked at in, besides whole; 0: none.
            batch_size: pictures that are open at a time.

        Raises:
            ValueError: the file does not find a name, or a picture cannot be opened (``ImageError``).
        """
        is_single = isinstance(images, Image.Image | str | Path) or (
            isinstance(images, np.ndarray | Tensor) and images.ndim < 4
        )
        sources = cast(Sequence[ImageLike], [images] if is_single else images)
        asked = self._places(names)
        results: list[Detections] = []
        for start in range(0, len(sources), batch_size):
            given = sources[start : start + batch_size]
            opened = [open_image(source) for source in given]
            if tile:
                nms = self.card.nms_threshold
                batch = [find_in_tiles(self._find, image, tile, batch_size, nms) for image in opened]
            else:
                batch = self._find(opened)
            chosen = [_of_names(each, asked).above(min_score) for each in batch]
            kept = [replace(each, source=source) for each, source in zip(chosen, given, strict=True)]
            results += [each if compete_threshold >= 1 else each.without_rivals(compete_threshold) for each in kept]
        return results

    def run(self, pictures: NDArray[np.uint8]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return per picture boxes, scores and classes as the graph returns them, of pictures (B, H, W, 3)."""
        answers = self._session.run(list(OUTPUTS), {INPUT: pictures})
        boxes, scores, classes = (torch.from_numpy(np.asarray(each)) for each in answers)
        counts = (scores > 0).sum(1).tolist()
        return [(boxes[i, :n], scores[i, :n], classes[i, :n]) for i, n in enumerate(counts)]

    def _find(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Return what is found in RGB pictures; those of one size when resized run together."""
        resized = [self.resize_rule(image) for image in images]
        groups: dict[tuple[int, int], list[int]] = {}
        for i, each in enumerate(resized):
            groups.setdefault(each.size, []).append(i)
        found = [Detections.none()] * len(images)
        for size, rows in groups.items():
            answers = self.run(np.stack([resized[i].pixels for i in rows]))
            for i, (boxes, scores, classes) in zip(rows, answers, strict=True):
                original = resized[i].original_size
                found[i] = Detections(self._in_original(boxes, size, original), scores, classes, self.card.names)
        return found

    def _in_original(self, boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
        """Return boxes in pixels of the original picture, as the predictor scales them."""
        scale = boxes.new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
        if not self.card.inclusive_corners:
            return boxes * scale
        return clip_boxes(to_exclusive(to_inclusive(boxes) * scale), original)

    def _places(self, names: Sequence[str] | None) -> list[int] | None:
        """Return the classes of names, as the model reads them."""
        if names is None:
            return None
        known = {clean_name(name).lower(): i for i, name in enumerate(self.card.names)}
        missing = [name for name in names if clean_name(name).lower() not in known]
        if missing:
            raise ValueError(f"{missing[0]!r} is not among the names of the file: {', '.join(self.card.names)}")
        return [known[clean_name(name).lower()] for name in names]


def _of_names(found: Detections, asked: list[int] | None) -> Detections:
    """Return the boxes of the classes that are asked for, which count from 0 in this order."""
    if asked is None:
        return found
    place = torch.full((len(found.phrases),), -1)
    place[asked] = torch.arange(len(asked))
    index = place[found.phrase_index]
    kept = index >= 0
    return replace(
        found,
        boxes_xyxy=found.boxes_xyxy[kept],
        scores=found.scores[kept],
        phrase_index=index[kept],
        phrases=tuple(found.phrases[i] for i in asked),
    )


def _providers(device: str | None, available: Sequence[str]) -> list[str]:
    """Return the providers of a device, the processor's last."""
    if device is None:
        device = "cuda" if PROVIDERS["cuda"][0] in available else "cpu"
    if device not in PROVIDERS:
        raise ValueError(f"device {device!r} is none of onnxruntime's here; expected one of {', '.join(PROVIDERS)}")
    wanted = [name for name in PROVIDERS[device] if name in available]
    if PROVIDERS[device][0] not in wanted:
        raise ValueError(
            f"this onnxruntime has no {PROVIDERS[device][0]} for device {device!r}; it has {', '.join(available)}. "
            "Install the package that has it in place of onnxruntime: onnxruntime-gpu (cuda, tensorrt) or "
            "onnxruntime-openvino"
        )
    return list(dict.fromkeys([*wanted, *PROVIDERS["cpu"]]))


def onnx_file(name: str) -> Path | None:
    """Return the path of a model that is an ONNX file by its name, None of others."""
    return Path(name) if name.lower().endswith(SUFFIX) else None
