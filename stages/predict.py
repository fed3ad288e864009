"""Find things in pictures, by name or by caption.

    glip predict street.jpg --text "a cat. a remote control." --model models/glip_t --save out/
    glip predict *.jpg --caption "two dogs chase a red frisbee" --model models/round_2
    glip predict *.jpg --model student.onnx --device tensorrt

--text names what to find, divided by periods; more names than one prompt holds are divided over several. --caption
takes a sentence and finds its noun phrases by spaCy. Pictures are paths, folders or URLs; of videos, frames are taken
(pip install 'glip-self-training[video]'), called by their second: clip.mp4#t=12.000. Without --save detections are
printed as one line of JSON per picture; with it every picture is written with its boxes, beside detections.jsonl.

A file of glip export --names runs by onnxruntime, on --device cpu, cuda, tensorrt or openvino. It finds the names that
it was made for, or those of them that --text names.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args

from glip_model.precision import Precision
from pipeline.cli import add_params, add_tile_and_fps, printable, progress, run_if_program, score
from pipeline.errors import ConfigError, MissingInputError, PipelineError
from pipeline.plain_json import to_json

if TYPE_CHECKING:
    from PIL import Image

    from glip_model.images import ImageError
    from glip_model.onnx_predictor import OnnxPredictor
    from glip_model.predictor import GLIPPredictor
    from glip_model.structures import Detections

logger = logging.getLogger(__name__)

DETECTIONS_FILE = "detections.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("pictures", nargs="+", help="paths or URLs; of a folder all pictures in it, but not below")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--text", help='what to find, divided by periods: "a cat. a remote control."')
    asked.add_argument("--caption", help="a sentence whose noun phrases are found")
    parser.add_argument("--model", required=True, help="folder, hub id or ONNX file, such as models/round_2")
    parser.add_argument("--min-score", type=score, default=0.3, help="boxes below are left out (default: %(default)s)")
    add_tile_and_fps(parser)
    rivals = parser.add_mutually_exclusive_group()
    rivals.add_argument(
        "--compete",
        type=score,
        default=1.0,
        metavar="IOU",
        help="of boxes of different names that overlap by more, the best stays (default: 1, all stay)",
    )
    rivals.add_argument("--agnostic-nms", action="store_true", help="let names suppress one another as a name itself")
    parser.add_argument("--save", type=Path, help="folder for pictures and JSON")
    parser.add_argument("--device", help="of torch, or of onnxruntime (default: a GPU, if any)")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="auto",
        help="bf16 is faster, its scores differ a little; auto: on a GPU that computes in it (default: %(default)s)",
    )
    add_params(parser)


def run(args: argparse.Namespace) -> str | None:
    """Predict picture by picture; one that cannot be read is reported and the others go on."""
    from glip_model.images import ImageError, open_image
    from glip_model.precision import allow_tf32
    from glip_model.video import is_video
    from glip_model.whole_files import save_picture, whole_file

    allow_tf32()
    try:
        predictor, prompt, options = _asked(args)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    options["tile"] = args.tile or 0
    pictures = [picture for source in args.pictures for picture in pictures_in(source)]
    broken = count = 0
    told = False
    with ExitStack() as stack:
        lines: TextIO = sys.stdout
        if args.save:
            try:
                args.save.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--save {args.save}: no folder can be made there ({error}); name another") from error
            path = stack.enter_context(whole_file(args.save / DETECTIONS_FILE))
            lines = stack.enter_context(path.open("w", encoding="utf-8"))
        has_videos = any(map(is_video, pictures))
        with progress(None if has_videos else len(pictures), "predict", "pictures") as bar:
            for number, (source, opened) in enumerate(_opened(pictures, args.fps)):
                count = number + 1
                try:
                    if isinstance(opened, ImageError):
                        raise opened
                    image = open_image(opened)
                    (found,) = predictor.predict(image, prompt, min_score=args.min_score, **options)
                except ImageError as error:
                    logger.warning("predict: %s", error)
                    broken += 1
                except ValueError as error:
                    raise ConfigError(str(error)) from error
                else:
                    told = told or _remark(predictor, image)
                    _write(lines, source, image, found)
                    if args.save:
                        drawn = found.draw(image, args.text or args.caption or "")
                        save_picture(drawn, args.save / _file_name(number, source))
                bar.update()
    if broken:
        raise PipelineError(f"{broken} of {count} pictures could not be read; they are named above")
    return f"predict: {count} pictures → {args.save}" if args.save else None


def _asked(args: argparse.Namespace) -> tuple[GLIPPredictor | OnnxPredictor, Any, dict[str, Any]]:
    """Return what finds things, the prompt for its ``predict``, and options of that."""
    from glip_model.onnx_predictor import OnnxPredictor, onnx_file
    from glip_model.predictor import GLIPPredictor

    file = onnx_file(args.model)
    if file is None:
        if args.text is None and args.caption is None:
            raise ConfigError('say what to find: --text "a cat. a remote control.", or --caption')
        model = GLIPPredictor.from_pretrained(args.model, args.device, args.precision)
        prompt, options = _prompt(args)
        nms = model.model.config.nms_threshold
        return model, prompt, options | {"compete_threshold": nms if args.agnostic_nms else args.compete}
    if args.caption is not None or args.precision != "auto":
        raise ConfigError(
            "an ONNX file finds the names it was exported for, in its own precision: no --caption, no --precision"
        )
    detector = OnnxPredictor(file, args.device)
    names = None if args.text is None else _prompt(args)[0]
    nms = detector.card.nms_threshold
    return detector, names, {"compete_threshold": nms if args.agnostic_nms else args.compete}


def _remark(predictor: GLIPPredictor | OnnxPredictor, image: Image.Image) -> bool:
    """Say it where a picture is far from what the model was trained on; return whether anything was said."""
    from glip_model.predictor import GLIPPredictor

    known = predictor.model.trained_on if isinstance(predictor, GLIPPredictor) else None
    far = "" if known is None else known.far_from(image.width, image.height)
    if far:
        logger.warning("predict: %s; expect little of it", far)
    return bool(far)


def _opened(pictures: Sequence[str], fps: float) -> Iterator[tuple[str, str | Image.Image | ImageError]]:
    """Yield pictures by name, those of videos as their frames; what is wrong with a video stands for its rest."""
    from glip_model.images import ImageError
    from glip_model.video import frame_name, is_video, read_frames

    for source in pictures:
        if not is_video(source):
            yield source, source
            continue
        try:
            for seconds, frame in read_frames(source, fps):
                yield frame_name(source, seconds), frame
        except ImageError as error:
            yield source, error


def _prompt(args: argparse.Namespace) -> tuple[list[str] | str, dict[str, Any]]:
    """Return the prompt for ``predict`` and its options."""
    if args.text is not None:
        from glip_model.prompts import phrases_between_periods

        names = [args.text[start:end] for ((start, end),) in phrases_between_periods(args.text)]
        if not names:
            raise ConfigError(
                '--text names nothing; write what to find, divided by periods: "a cat. a remote control."'
            )
        return _told(names), {}
    from pipeline.phrases.parsers import make_parser
    from pipeline.phrases.settings import PhrasesConfig
    from pipeline.settings import load

    return args.caption, {"parser": make_parser(load(args.params, PhrasesConfig)).char_spans}


def _told(names: Sequence[str]) -> list[str]:
    """Return names without repeats, and say how the text was understood."""
    from glip_model.prompts import distinct_names

    once = distinct_names(names)
    logger.info("predict: looks for %s", ", ".join(repr(name) for name in once))
    if len(once) < len(names):
        logger.warning("predict: names that come again in --text are asked for once")
    joined = [name for name in once if any(mark in name for mark in ",;|.")]
    if joined:
        logger.warning("predict: %r is one name; names are divided by periods: 'a dog. a cat.'", joined[0])
    return once


def pictures_in(source: str) -> list[str]:
    """Return the pictures of a folder, in order of their names; anything else is a picture itself."""
    from PIL import Image

    from glip_model.video import SUFFIXES

    folder = Path(source)
    if not folder.is_dir():
        return [source]
    suffixes = {*Image.registered_extensions(), *SUFFIXES}
    files = sorted(path for path in folder.iterdir() if not path.is_dir())  # what is none is told as it is opened
    found = [str(path) for path in files if path.suffix.lower() in suffixes]
    below = [path for path in folder.glob("*/**/*") if path.suffix.lower() in suffixes and path.is_file()]
    if not found:
        further = f"; there are {len(below)} in folders below, such as {below[0].parent}" if below else ""
        raise MissingInputError(
            f"{folder}: no pictures among its {len(files)} files; name pictures, or their folder{further}"
        )
    if below:
        logger.warning(
            "predict: %d pictures in folders below %s are left out; name them or their folders", len(below), folder
        )
    if len(found) < len(files):
        logger.warning("predict: %d files of %s are no pictures by their names", len(files) - len(found), folder)
    return found


def _write(lines: TextIO, source: str, image: Image.Image, found: Detections) -> None:
    entry = {
        "picture": source,
        "height": image.height,
        "width": image.width,
        "boxes_xyxy": [[round(side, 2) for side in box] for box in found.boxes_xyxy.tolist()],
        "scores": [round(score, 4) for score in found.scores.tolist()],
        "labels": list(found.labels),
    }
    print(printable(to_json(entry)), file=lines, flush=True)


def _file_name(number: int, source: str) -> str:
    """Return a name that neither repeats nor leaves the folder, whatever the source is called."""
    name, mark, time = source.rpartition("#t=")
    stem = f"{Path(name).stem}_{time}" if mark else Path(source).stem
    stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)[-60:]
    return f"{number:04d}_{stem}.jpg"


run_if_program(__name__)
