"""Export a model to ONNX: a detector of fixed names that needs nothing but onnxruntime, or a graph for any prompt.

    glip export models/round_2 --names "frog, fire truck" --onnx student.onnx
    glip export models/round_2 --names names.txt --onnx small.onnx --int8 calibrated --pictures photos/
    glip export models/round_2 --names names.txt --onnx half.onnx --fp16 --judge data/records/test/detection
    glip predict street.jpg --model student.onnx
    glip export models/round_2 --onnx any.onnx --tokens 64

With --names the text is computed once and for all. Input: images (B, H, W, 3) uint8 RGB, of any number and size,
resized as the file's metadata says. Outputs, after NMS, best first: boxes (B, N, 4), corners in pixels of images;
scores (B, N), 0 behind the last box; classes (B, N), places in the list of names, -1 behind the last box. --int8 finds
the scales of activations anew in each call; --int8 calibrated takes them from --pictures, such as the model will see.
What the file finds is then compared with PyTorch: box for box, and with --judge by COCO's AP.

Without --names: inputs pixel_values (1, 3, H, W), normalised as config.json says and padded to multiples of 32;
input_ids and attention_mask (1, T). Models that encode names one by one take text_states (1, T, D) in place of
input_ids. Outputs: token_logits (1, A, T), boxes_xyxy (1, A, 4), centerness (1, A). Needs the extra "export".
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import at_least, progress, run_if_program
from pipeline.errors import ConfigError, MissingInputError

if TYPE_CHECKING:
    from PIL import Image

    from glip_model.onnx_predictor import OnnxPredictor
    from glip_model.predictor import GLIPPredictor
    from glip_model.structures import Detections
    from pipeline.store.records import Category, DetectionRecord

logger = logging.getLogger(__name__)

MEASURES = ("AP", "AP50", "AP75")
COMPARED_FROM = 0.3
"""Score from which on boxes are compared, as glip predict shows them."""
MAX_PIXELS = 100_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--onnx", type=Path, required=True, help="file to write")
    parser.add_argument("--names", help="what to find: names divided by commas, or a file (.txt, .yaml, .json)")
    parser.add_argument(
        "--tokens", type=int, default=64, help="without --names: length of prompts (default: %(default)s)"
    )
    bits = parser.add_mutually_exclusive_group()
    bits.add_argument("--fp16", action="store_true", help="weights and most operators in float16, for GPUs")
    bits.add_argument(
        "--int8", nargs="?", const="dynamic", choices=("dynamic", "calibrated"), help="products in 8 bits, for CPUs"
    )
    parser.add_argument(
        "--pictures", nargs="+", default=[], help="files and folders, to calibrate by and to compare with PyTorch on"
    )
    parser.add_argument("--judge", metavar="SHARDS", help="folder of annotated pictures, detection records, for AP")
    parser.add_argument(
        "--limit",
        type=at_least(1),
        default=500,
        help="pictures that are read of either, at most (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> str:
    """Export."""
    from glip_model.glip import GLIP
    from glip_model.predictor import GLIPPredictor

    if args.names is None:
        from glip_model.export import export_onnx

        if args.fp16 or args.int8 or args.pictures or args.judge:
            raise ConfigError("--fp16, --int8, --pictures and --judge are for detectors of fixed names: give --names")
        try:
            export_onnx(GLIP.from_pretrained(args.model), args.onnx, args.tokens)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return f"export: {args.tokens} tokens → {args.onnx}"
    if args.int8 == "calibrated" and not args.pictures:
        raise ConfigError("--int8 calibrated needs --pictures, some dozens such as the model will see")
    names, pictures = _names(args.names), _pictures(args.pictures, args.limit)
    try:
        predictor = GLIPPredictor.from_pretrained(args.model, "cpu", "float32")
        _write(predictor, names, args, pictures)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _compare(predictor, names, args, pictures)
    size = sum(path.stat().st_size for path in args.onnx.parent.glob(f"{args.onnx.name}*"))
    return f"export: {len(names)} names, {size / 1e6:.1f} MB → {args.onnx}"


def _names(text: str) -> tuple[str, ...]:
    from pipeline.store.vocabulary import read_names

    vocabulary = read_names(text)
    if vocabulary.prompts != vocabulary.classes:
        raise ConfigError(
            f"--names {text}: classes with prompts of other words cannot be exported; list the names alone"
        )
    return vocabulary.classes


def _pictures(sources: Sequence[str], limit: int) -> list[Image.Image]:
    """Open pictures; one that cannot be opened is told and left out."""
    from glip_model.images import ImageError, open_image
    from stages.predict import pictures_in

    named = [picture for source in sources for picture in pictures_in(source)]
    if len(named) > limit:
        logger.info("export: the first %d of %d pictures are read, see --limit", limit, len(named))
    opened = []
    for picture in named[:limit]:
        try:
            opened.append(open_image(picture))
        except ImageError as error:
            logger.warning("export: %s", error)
    if sources and not opened:
        raise MissingInputError("none of --pictures can be opened; they are named above")
    return opened


def _write(
    predictor: GLIPPredictor, names: Sequence[str], args: argparse.Namespace, pictures: Sequence[Image.Image]
) -> None:
    from glip_model.onnx_detector import export_detector
    from glip_model.onnx_precision import to_half, to_int8

    if not (args.fp16 or args.int8):
        export_detector(predictor.model, predictor.tokenizer, names, args.onnx)
        return
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / args.onnx.name
        export_detector(predictor.model, predictor.tokenizer, names, exact)
        if args.fp16:
            to_half(exact, args.onnx)
        else:
            shown = [predictor.resize_rule(each).pixels for each in pictures] if args.int8 == "calibrated" else []
            to_int8(exact, args.onnx, shown)


def _compare(
    predictor: GLIPPredictor, names: Sequence[str], args: argparse.Namespace, pictures: Sequence[Image.Image]
) -> None:
    """Print how the file's boxes differ from PyTorch's, its speed, and AP where there are annotations."""
    from glip_model.onnx_predictor import OnnxPredictor
    from pipeline.evaluation.exported import agreement, average_precision

    exported = OnnxPredictor(args.onnx, "cpu")
    records: list[DetectionRecord] = []
    categories: list[Category] = []
    if args.judge:
        records, categories, pictures = _judged(args.judge, args.limit)
    kind, least = "pictures", COMPARED_FROM
    if not pictures:
        kind, least, pictures = "pictures of noise", 0.0, _noise()
    with progress(2 * len(pictures), "compare", "pictures") as bar:
        mine, my_seconds = _find(predictor, names, pictures, bar.update)
        theirs, their_seconds = _find(exported, names, pictures, bar.update)
    found = agreement(mine, theirs, least)
    print(
        f"{len(pictures)} {kind}: {found.found_again} of {found.boxes} boxes found again; scores differ by at most "
        f"{found.score_difference:.6f}, sides by {found.side_difference:.4f} pixels"
    )
    scores = [average_precision(records, categories, names, each) for each in (mine, theirs)] if records else [{}, {}]
    for name, score, seconds in zip(("PyTorch", "ONNX"), scores, (my_seconds, their_seconds), strict=True):
        shown = [f"{m} {100 * value:5.1f}" for m in MEASURES if (value := score.get(m)) is not None]
        print("  ".join([f"  {name:8}", *shown, f"{len(pictures) / seconds:.2f} images/s"]))


def _find(
    predictor: GLIPPredictor | OnnxPredictor,
    names: Sequence[str],
    pictures: Sequence[Image.Image],
    step: Callable[[], Any],
) -> tuple[list[Detections], float]:
    """Return what is found in pictures, one after the other, and the seconds that it took; the first is done twice."""
    predictor.predict(pictures[0], names)
    start, found = time.perf_counter(), []
    for picture in pictures:
        found += predictor.predict(picture, names)
        step()
    return found, time.perf_counter() - start


def _judged(folder: str, limit: int) -> tuple[list[DetectionRecord], list[Category], list[Image.Image]]:
    """Return annotated pictures that can be opened, as records, their categories, and opened."""
    from glip_model.images import ImageError
    from pipeline.store.images import image_roots, load_image
    from pipeline.store.records import DetectionRecord
    from pipeline.store.shards import list_shards, read_categories, read_shard
    from pipeline.store.storage import to_place

    shards = list_shards(to_place(folder))
    records: list[DetectionRecord] = []
    pictures: list[Image.Image] = []
    rows = 0
    for shard in shards:
        for record in read_shard(shard, DetectionRecord) if len(records) < limit else ():
            if len(records) == limit:
                break
            rows += 1
            try:
                pictures.append(load_image(record.image, MAX_PIXELS, image_roots(shard, ())))
                records.append(record)
            except ImageError as error:
                logger.warning("export: %s: %s", record.key, error)
    if not records:
        raise MissingInputError(f"--judge {folder}: none of its {rows} pictures can be opened")
    return records, [category for shard in shards[:1] for category in read_categories(shard)], pictures


def _noise() -> list[Image.Image]:
    import numpy as np
    from PIL import Image

    shapes = ((480, 640, 3), (640, 480, 3))
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


run_if_program(__name__)
