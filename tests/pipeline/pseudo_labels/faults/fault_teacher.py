"""A teacher for the fault tests: finds a box for every phrase, tells where it runs, and does harm when it is told to.

What it does stands in ``$FAULTS/orders.json``; what it did goes to ``$FAULTS/log``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from glip_model.prompts import Prompt
from glip_model.structures import Detections

FAULTS = Path(os.environ.get("FAULTS", "."))


def read_orders() -> dict[str, Any]:
    orders: dict[str, Any] = json.loads((FAULTS / "orders.json").read_text())
    return orders


class FaultTeacher:
    """Deterministic: the box of a phrase depends on its text alone."""

    def __init__(self) -> None:
        self._hoard: list[bytearray] = []

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Log, obey, answer."""
        with (FAULTS / "log").open("a") as log:
            log.write(f"{os.getpid()}\n")
        text = " ".join(prompt.text for prompt in prompts)
        orders = read_orders()
        while any(words in text for words in orders.get("hold", [])):
            time.sleep(0.05)
            orders = read_orders()
        if "die" in orders and orders["die"] in text:
            os._exit(1)
        if "fail" in orders and orders["fail"] in text:
            raise RuntimeError("the harm that was ordered")
        if "hoard_mb" in orders and not (FAULTS / "hoarded").exists():
            (FAULTS / "hoarded").touch()
            for _ in range(orders["hoard_mb"] // 100):
                self._hoard.append(bytearray(os.urandom(1 << 20)) * 100)
                time.sleep(0.05)
            time.sleep(30)
            (FAULTS / "hoarded").write_text("to the end")
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> Detections:
        boxes = [[len(phrase) % 7, 2.0, 20.0 + len(phrase) % 5, 20.0] for phrase in prompt.phrases]
        count = len(boxes)
        return Detections(
            torch.tensor(boxes).reshape(-1, 4), torch.full((count,), 0.75), torch.arange(count), prompt.phrases
        )


def make(device: str) -> FaultTeacher:
    """Return it."""
    return FaultTeacher()
