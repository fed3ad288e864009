"""Label pictures with names of your own: from a folder and a list of words to boxes.

    glip label photos/ --names "forklift, pallet, safety vest" --teacher models/glip_t --out labels/
    glip label "shards/{00000..00099}.tar" --names names.yaml --teacher IDEA-Research/grounding-dino-tiny --out labels/
    glip inspect labels/ --html labels.html

Pictures are files, folders, patterns in quotes, tars, Parquet with pictures or URLs inside, lists of URLs, videos (pip
install 'glip-self-training[video]'), or URLs of any of these. --names takes names divided by commas or a file: a name a
line (.txt), a list, a mapping of prompts to classes, or of classes to several prompts (.yaml, .json). --captions asks
instead for the phrases of captions: those in a.txt beside a.jpg, in tars, tables and lists; with --names for those that
mean one of the names. Several teachers (--teacher A --teacher B) are asked as one, and boxes say which of them agree.

--judge takes annotated pictures instead, in any layout that glip finetune reads, and says how good labels are:
precision and recall of every name (of the data set's own, where --names says none), and the threshold that suits it
best. These thresholds go into further calls by --thresholds:

    glip label --judge my_annotated/ --teacher models/glip_t --out judged/
    glip label photos/ --names "cat, dog" --thresholds judged/judged.json --teacher models/glip_t --out labels/

No params file is needed; one that is there decides what is not said here. Labels come as shards of detection records
(of captions, grounding records), which glip inspect, glip finetune --data and training as pseudo-labels read at once.
Interrupted, the same command goes on. The work folder, OUT/_work, may be deleted afterwards.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import add_params, add_teachers, add_tile_and_fps, at_least, progress, run_if_program, score
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.prepare.settings import PrepareConfig, SourceEntry
    from pipeline.pseudo_labels.settings import PseudoLabelConfig
    from pipeline.store.storage import Place
    from pipeline.store.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

RESULT_FILE, WORK = "_label.json", "_work"
"""Beside the shards; Arrow, and with it pandas, takes what begins with ``_`` for no shard."""
JUDGED_FILE, CURVES_FILE = "judged.json", "judged.csv"
"""What --judge writes."""
ON_A_PAGE, MAX_PIXELS = 2000, 1_000_000_000
"""Pictures of the page that --html writes, and pixels of a picture on it, at most."""
_OTHERWISE, _JUDGED_FROM = 0.3, 0.05
"""Least scores where none is said: of labels, and of what is judged at every threshold."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("pictures", nargs="*", help="files, folders, patterns, tars, Parquet, lists of URLs, URLs")
    parser.add_argument("--names", help="what to find: names divided by commas, or a file (.txt, .yaml, .json)")
    parser.add_argument(
        "--captions", action="store_true", help="find the phrases of captions instead, with --names those that mean one"
    )
    add_teachers(parser)
    parser.add_argument(
        "--min-agreement",
        type=score,
        metavar="S",
        help="share of several teachers that must have found a box (default: by the settings, 0)",
    )
    parser.add_argument("--out", required=True, help="folder or URL for the labels")
    parser.add_argument("--min-score", type=score, help="boxes below are left out (default: 0.3)")
    parser.add_argument("--thresholds", type=Path, metavar="FILE", help="JSON of --judge, or of a score by name")
    parser.add_argument("--judge", metavar="FOLDER", help="annotated pictures to judge labels by, in place of pictures")
    parser.add_argument(
        "--precision-of", type=score, metavar="P", help="with --judge: propose the lowest thresholds of this precision"
    )
    parser.add_argument("--batch-size", type=at_least(1), help="pictures at once (default: by the settings)")
    parser.add_argument("--actors", type=at_least(1), help="teachers at most, each on a GPU or some cores")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="boxes of a name in a picture (default: 100)")
    parser.add_argument(
        "--compete",
        type=score,
        default=0.7,
        metavar="IOU",
        help="of boxes of different names that overlap by more, the best stays; 1 keeps all (default: %(default)s)",
    )
    add_tile_and_fps(parser)
    parser.add_argument(
        "--agnostic-nms", action="store_true", help="let names suppress one another as the boxes of a name do"
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="let labels refer to pictures where they are, instead of copying them; readers must allow the place: "
        "image_roots in params.yaml, --image-root of inspect",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of the labels at the end")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Find the pictures, label them, show or judge them."""
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place

    if bool(args.judge) == bool(args.pictures) or (args.judge and args.captions):
        raise ConfigError("name pictures to label, or judge by annotated ones with --judge FOLDER and --names")
    if not (args.names or args.captions or args.judge):
        raise ConfigError('say what to find: --names "forklift, pallet", or --captions for the phrases of captions')
    out = to_place(args.out)
    sources, vocabulary = _sources(args), _vocabulary(args)
    with alone_in(out):
        read, metrics = _label(args, out, sources, vocabulary)
        if args.judge:
            return _judge(args, out)
    if args.html:
        _write_page(args, out)
    refused = sum(read["rejects"].values())
    told = f", {refused} pictures could not be read ({read['rejects']})" if refused else ""
    found = f"{metrics['boxes']} boxes in {metrics['rows_labelled']} of {metrics['rows']} pictures"
    return f"label: {found}, {metrics['images_per_s'] or 'no'} images/s{told} → {args.out}"


def _sources(args: argparse.Namespace) -> tuple[SourceEntry, ...]:
    """Return the pictures as sources of ``prepare``."""
    from pipeline.prepare.layouts import find_layout
    from pipeline.prepare.pictures import picture_sources
    from pipeline.store.storage import to_place

    if not args.judge:
        return picture_sources(args.pictures, args.fps)
    layout = find_layout(to_place(args.judge))
    logger.info("label: %s", layout.description)
    return (*layout.train, *({**entry, "name": f"judged {i}"} for i, entry in enumerate(layout.validation, 1)))


def _vocabulary(args: argparse.Namespace) -> Vocabulary | None:
    """Return what is asked for, with its thresholds; None where that is for captions or the annotations to say."""
    from pipeline.store.vocabulary import read_names, read_thresholds

    vocabulary = read_names(args.names) if args.names and not args.captions else None
    if args.thresholds is None:
        return vocabulary
    if vocabulary is None or args.judge:
        raise ConfigError("--thresholds are those of --names")
    return vocabulary.with_min_scores(read_thresholds(args.thresholds), _min_score(args))


def _label(
    args: argparse.Namespace, out: Place, sources: tuple[SourceEntry, ...], vocabulary: Vocabulary | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the pictures and label them; return what became of their rows, and the metrics of the labels."""
    from pipeline.prepare.job import prepare
    from pipeline.pseudo_labels.job import Inputs, pseudo_label
    from pipeline.pseudo_labels.judging import vocabulary_of
    from pipeline.ray_session import ray_session
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_json
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.shards import list_shards, read_categories

    settings, work = load_all(args.params), out / WORK
    preparing = _preparing(args, settings.prepare, sources)
    roots = (*_places(args), *settings.image_roots)
    folder = "web" if args.captions else "human/detection"
    with ray_session():
        read = prepare(preparing, settings.seed, work, None, roots)[folder]
        records = work / folder
        if args.judge and vocabulary is None:
            vocabulary = vocabulary_of(read_categories(list_shards(records)[0]))
        phrases = _phrases(args, records, work / "phrases") if args.captions else None
        inputs = Inputs(records, phrases, tuple(args.teacher), out, allowed_roots(roots), vocabulary)
        metrics = pseudo_label(inputs, _labelling(args, settings.pseudo_label), preparing.max_image_pixels)
    write_json(out / RESULT_FILE, {"pictures": read, "labels": metrics})
    return read, metrics


def _judge(args: argparse.Namespace, out: Place) -> str:
    """Compare the labels of annotated pictures with the annotations, print the figures and write them."""
    from pipeline.pseudo_labels.judging import format_verdicts, judge_shards, to_metrics, write_verdicts
    from pipeline.store.atomic import write_json

    verdicts = judge_shards(out / WORK / "human/detection", out, args.precision_of)
    write_json(out / JUDGED_FILE, to_metrics(verdicts, _OTHERWISE))
    write_verdicts(verdicts, out / CURVES_FILE)
    print(format_verdicts(verdicts, _OTHERWISE))
    return f"label: thresholds for --thresholds → {out / JUDGED_FILE}"


def _preparing(args: argparse.Namespace, base: PrepareConfig, sources: tuple[SourceEntry, ...]) -> PrepareConfig:
    """Return settings that read the pictures and nothing else."""
    return replace(
        base,
        data_root=".",
        human=() if args.captions else sources,
        web=sources if args.captions else (),
        dev=(),
        test=(),
        held_out=(),
        mixtures={},
        pictures="reference" if args.reference else "embed",
        max_reject_share=1.0,  # what is left out is told
    )


def _min_score(args: argparse.Namespace) -> float:
    """Return the least score of a box that is kept; to judge by, nearly all are."""
    if args.min_score is None:
        return _JUDGED_FROM if args.judge else _OTHERWISE
    return float(args.min_score)


def _labelling(args: argparse.Namespace, base: PseudoLabelConfig) -> PseudoLabelConfig:
    """Return what of the teacher's output is kept."""
    from pipeline.pseudo_labels.settings import with_names

    said: dict[str, Any] = {
        "min_score": _min_score(args),
        "min_score_by_source": {},
        "compete_threshold": base.nms_threshold if args.agnostic_nms else args.compete,
        "batch_size": args.batch_size or base.batch_size,
        "num_actors": args.actors or base.num_actors,
        "max_reject_share": 1.0,
        "tile": args.tile or base.tile,
        "min_agreement": base.min_agreement if args.min_agreement is None else args.min_agreement,
    }
    if not args.captions:
        said |= {"max_boxes_per_phrase": args.limit or 100, "max_area_share": 1.0, "min_box_side": 1.0}
        return replace(base, **said, names={})
    if args.limit:
        said |= {"max_boxes_per_phrase": args.limit}
    if args.names:
        said |= {"other_phrases": "drop"}
    return with_names(replace(base, **said), args.names)


def _places(args: argparse.Namespace) -> list[str]:
    """Return the folders and URLs that the pictures lie below."""
    from pipeline.store.urls import is_url

    places = []
    for text in [args.judge] if args.judge else args.pictures:
        if is_url(text):
            places.append(text.partition("*")[0].rpartition("/")[0] if "*" in text or "{" in text else text)
        else:
            path = Path(text).absolute()
            places.append(str(path if path.is_dir() else path.parent))
    return places


def _phrases(args: argparse.Namespace, records: Place, out: Place) -> Place:
    """Parse the captions."""
    from pipeline.phrases.job import extract_phrases
    from pipeline.phrases.settings import PhrasesConfig
    from pipeline.settings import load

    extract_phrases(load(args.params, PhrasesConfig), records, out)
    return out


def _write_page(args: argparse.Namespace, out: Place) -> None:
    from pipeline.inspection.gallery import Page, write_gallery
    from pipeline.inspection.search import Filter, sample_rows
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.images import image_roots

    found, roots = sample_rows(out, Filter(), ON_A_PAGE), image_roots(out, allowed_roots(_places(args)))
    with progress(len(found), "page", "pictures") as bar:
        count = write_gallery(found, args.html, Page(args.out), MAX_PIXELS, bar.update, roots)
    logger.info("label: %d pictures on a page → %s", count, args.html)


run_if_program(__name__)
