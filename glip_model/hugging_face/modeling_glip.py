"""GLIP as a model of transformers: the same weights, inputs and outputs named as Grounding DINO's are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from glip_model.anchors import anchor_grid
from glip_model.backbone import Backbone
from glip_model.boxes import decode_boxes, to_exclusive, to_inclusive
from glip_model.glip import GLIP
from glip_model.hugging_face.configuration_glip import GLIPPreTrainedConfig
from glip_model.losses import GroundingCriterion
from glip_model.structures import GLIPOutput, GroundingBatch, GroundingTarget
from glip_model.text_encoder import TextEncoder


@dataclass
class GLIPObjectDetectionOutput(ModelOutput):
    """Outputs for B pictures at A anchors of L levels; the first dimension of every tensor is B."""

    loss: Tensor | None = None
    """Scalar, sum of ``loss_dict``; None without labels."""
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    """(B, A, T) alignment with the tokens, before the sigmoid; meaningless at padding."""
    pred_boxes: Tensor | None = None
    """(B, A, 4) centre x, y, width, height as shares of the picture without padding. Not clipped."""
    centerness: Tensor | None = None
    """(B, A) before the sigmoid; a detection scores the root of it times its phrase's score."""
    box_deltas: Tensor | None = None
    """(B, A, 4) as ``decode_boxes`` reads them."""
    level_sizes: Tensor | None = None
    """(B, L, 2) int64 height and width of each level in cells, the same in every row."""
    image_sizes: Tensor | None = None
    """(B, 2) int64 height and width of each picture as the model saw it, without padding."""
    input_ids: Tensor | None = None
    """(B, T) as they were given, likewise the two below."""
    attention_mask: Tensor | None = None
    positive_map: Tensor | None = None


class GLIPForZeroShotObjectDetection(PreTrainedModel):
    """A ``GLIP`` in transformers' clothes; folders of either are folders of both."""

    config_class = GLIPPreTrainedConfig
    base_model_prefix = "glip"
    main_input_name = "pixel_values"

    def __init__(self, config: GLIPPreTrainedConfig) -> None:
        super().__init__(config)
        self.glip = GLIP(config.glip_config())
        self.criterion = GroundingCriterion(self.glip.config)
        self._computed: dict[str, Tensor] = {}
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Compute anew what no file holds, which transformers leaves blank as it loads; all else is drawn already."""
        owned = module._non_persistent_buffers_set
        place = next((name for name, each in self.glip.backbone.named_modules() if each is module), None)
        if not owned or place is None:
            return
        if not self._computed:
            self._computed = dict(Backbone(self.glip.config.backbone).named_buffers())
        for name in owned:
            module.get_buffer(name).copy_(self._computed[f"{place}.{name}"])

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        positive_map: Tensor | None = None,
        segment_ids: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> GLIPObjectDetectionOutput | tuple[Any, ...]:
        """Look for prompts in pictures; ``GLIPProcessor`` makes all of these.

        Args:
            pixel_values: (B, 3, H, W) float, normalised, padded at the bottom and right to multiples of the divisor.
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 on real tokens; None: all are.
            pixel_mask: (B, H, W), 1 on real pixels; None: all are.
            positive_map: (B, P, T) bool, which tokens each phrase has; labels count them. None: a prompt is one phrase.
            segment_ids: (B, T) int64, to which segment of its prompt each token belongs, for models that encode these
                one by one; None: a prompt is one segment.
            labels: per picture ``class_labels`` (N,) int64, rows of ``positive_map``, and ``boxes`` (N, 4) centre x, y,
                width, height as shares of the picture.
            token_type_ids: what tokenizers of BERT's give besides; not looked at.
            return_dict: False returns a tuple, without what is None.
            kwargs: what trainers pass to every model, not looked at.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        sizes = _sizes(pixel_values, pixel_mask)
        states = None
        if self.glip.config.text.encoding == "segments":
            states = encode_segments(self.glip.text_encoder, input_ids, mask, segment_ids)
            states = states.to(pixel_values.dtype)
        pixels = pixel_values.to(memory_format=torch.channels_last)
        raw = self.glip.ground(self.glip.features(pixels), input_ids, mask, states)
        losses = None
        if labels is not None:
            phrases = whole_prompts(mask) if positive_map is None else positive_map
            targets = tuple(map(self._target, labels, sizes, phrases))
            batch = GroundingBatch(pixel_values, tuple(sizes), input_ids, mask, targets=targets)
            losses = self.criterion(raw, batch)
        size = torch.tensor(sizes, device=pixel_values.device)
        levels = torch.tensor(raw.level_sizes, device=pixel_values.device)
        output = GLIPObjectDetectionOutput(
            loss=None if losses is None else torch.stack(list(losses.values())).sum(),
            loss_dict=losses,
            logits=raw.token_logits,
            pred_boxes=self._shares(raw, size),
            centerness=raw.centerness,
            box_deltas=raw.box_deltas,
            level_sizes=levels.expand(len(sizes), -1, -1),
            image_sizes=size,
            input_ids=input_ids,
            attention_mask=mask,
            positive_map=positive_map,
        )
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    def _shares(self, raw: GLIPOutput, sizes: Tensor) -> Tensor:
        """Return boxes (B, A, 4) as centres and sizes in shares of pictures (B, 2)."""
        config = self.glip.config
        anchors = anchor_grid(raw.level_sizes, config.strides, config.anchor_scale, raw.box_deltas.device)
        boxes = decode_boxes(raw.box_deltas.float(), anchors)
        if config.inclusive_corners:
            boxes = to_exclusive(boxes)
        near, far = boxes[..., :2], boxes[..., 2:]
        return torch.cat([(near + far) / 2, far - near], -1) / sizes.flip(-1).repeat(1, 2)[:, None]

    def _target(self, label: dict[str, Tensor], size: tuple[int, int], phrases: Tensor) -> GroundingTarget:
        """Return what the losses compare with: boxes in pixels as the model has them, and the tokens of their names."""
        centre, half = label["boxes"][:, :2].float(), label["boxes"][:, 2:].float() / 2
        boxes = torch.cat([centre - half, centre + half], -1)
        boxes = boxes * boxes.new_tensor([size[1], size[0]] * 2)
        classes = label["class_labels"].long()
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(phrases):
            raise ValueError(
                f"class_labels count the {len(phrases)} phrases of the prompt from 0, got {classes.tolist()}"
            )
        if self.glip.config.inclusive_corners:
            boxes = to_inclusive(boxes)
        return GroundingTarget(boxes, phrases[classes].bool())


def _sizes(pixel_values: Tensor, mask: Tensor | None) -> list[tuple[int, int]]:
    """Return (height, width) of each picture without padding."""
    if mask is None:
        return [(pixel_values.shape[2], pixel_values.shape[3])] * len(pixel_values)
    return [(int(each[:, 0].sum()), int(each[0].sum())) for each in mask]


def whole_prompts(mask: Tensor) -> Tensor:
    """Return (B, 1, T) bool: all real tokens (B, T) without [CLS] and [SEP], the first and the last."""
    inner = mask.bool().clone()
    inner[:, :-1] &= mask[:, 1:].bool()
    inner[:, -1] = False
    inner[:, 0] = False
    return inner[:, None]


@torch.no_grad()
def encode_segments(encoder: TextEncoder, input_ids: Tensor, mask: Tensor, segment_ids: Tensor | None) -> Tensor:
    """Encode each segment of prompts alone, between [CLS] and [SEP], as ``TextStateCache`` does with their texts.

    Args:
        encoder: frozen.
        input_ids: (B, T) int64.
        mask: (B, T) bool.
        segment_ids: (B, T) int64; None: each prompt is one segment.

    Returns:
        (B, T, D) states: [CLS] as of the first segment, [SEP] as of the last.
    """
    rows: list[Tensor] = []
    places: list[tuple[int, Tensor, slice]] = []
    for i, (ids, length) in enumerate(zip(input_ids, mask.sum(1).tolist(), strict=True)):
        inner = torch.zeros(length, dtype=torch.long) if segment_ids is None else segment_ids[i, :length].cpu()
        numbers = list(dict.fromkeys(inner[1:-1].tolist())) or [0]
        for number in numbers:
            chosen = (inner[1:-1] == number).nonzero()[:, 0] + 1
            first, last = number == numbers[0], number == numbers[-1]
            edges = torch.tensor([0]), torch.tensor([length - 1])
            index = torch.cat([edges[0], chosen, edges[1]])
            rows.append(ids[index.to(ids.device)])
            kept = slice(0 if first else 1, len(index) if last else len(index) - 1)
            places.append((i, index[kept], kept))
    padded = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    states = encoder(padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None])
    joined: Tensor = states.new_zeros(*input_ids.shape, states.shape[-1])
    for state, (i, index, kept) in zip(states, places, strict=True):
        joined[i, index.to(joined.device)] = state[kept]
    return joined
