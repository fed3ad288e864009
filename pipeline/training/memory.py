"""Whether a step's activations fit into a worker's memory."""

from __future__ import annotations

import logging
import os

import torch

from glip_model.activations import activation_bytes
from glip_model.glip import GLIP
from glip_model.resizing import padded_size
from pipeline.training.settings import TrainConfig

logger = logging.getLogger(__name__)

USED_SHARE = 0.9
"""Share of the free memory that activations may take; the rest is for temporary tensors of layers and losses."""
STATES = 3
"""Tensors beside each trained parameter: its gradient and AdamW's two means."""


def recompute_where_needed(model: GLIP, config: TrainConfig, workers: int, free_bytes: int) -> None:
    """Let the model recompute activations where ``train.recompute_activations`` asks for that and memory needs it.

    Args:
        model: on its device, frozen as it will be trained.
        config: batch, sizes and precision.
        workers: of the training.
        free_bytes: of the worker's device.
    """
    if config.recompute_activations == "model" or model.config.activation_checkpointing:
        return
    needed = step_bytes(model, config, workers)
    states = STATES * sum(each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)
    room = USED_SHARE * (free_bytes - states)
    if needed > room:
        model.recompute_activations()
    logger.info(
        "activations of a step take %.1f GB, and %.1f GB are free for them: they are %s",
        needed / 1e9,
        max(room, 0) / 1e9,
        "recomputed" if model.config.activation_checkpointing else "kept",
    )


def step_bytes(model: GLIP, config: TrainConfig, workers: int) -> int:
    """Return what one worker keeps between forward and backward pass, in bytes, for pictures of the largest size."""
    pictures = config.optim.batch_size // (workers * config.optim.accumulate)
    short_sides, long_side = config.samples.sizes(model.config)
    height, width = padded_size((max(short_sides), max(long_side, *short_sides)), model.config.size_divisor)
    tokens = min(config.samples.max_prompt_tokens, model.config.text.max_tokens)
    return activation_bytes(model, pictures, (height, width), tokens, config.optim.bf16 or config.optim.fp16)


def free_memory(workers_here: int) -> int:
    """Return the free bytes of this worker's GPU, or its share of the machine's where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // workers_here
