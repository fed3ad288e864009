"""Run the whole graph with other settings, in a folder of its own: other data, other models, the same questions.

glip repro --params pipeline/training/recipes/worlds/other_style.yaml --folder worlds/other_style
glip repro --params mine.yaml --folder mine evaluate@round_1    up to one stage
glip repro --params mine.yaml --folder mine --curate            with web pairs curated before they are labelled
glip repro --params mine.yaml --folder mine --reviews reviews/  with what people said of labels merged into them

The folder gets a copy of the code, of dvc.yaml and of the settings as one params.yaml; data, models, metrics and
reports are made there. Run again, it goes on from what is finished, with the code and settings of now: first without
--reviews, then, when labels are reviewed (glip review mine/data/pseudo_labels/round_1 --store reviews/), with them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pipeline.cli import add_params, run_if_program
from pipeline.errors import ConfigError, MissingInputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("target", nargs="?", help="a stage of dvc.yaml (default: all)")
    parser.add_argument("--folder", required=True, type=Path, help="where to work")
    parser.add_argument("--curate", action="store_true", help="with glip curate between prepare and phrases")
    parser.add_argument(
        "--reviews", metavar="PLACE", help="with glip merge between labels and training: a store of decisions"
    )
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Bring code and settings into the folder, then run DVC there."""
    from pipeline.ray_session import CODE_ROOT
    from pipeline.settings import load_all, to_yaml
    from pipeline.submission.optional_stages import CURATE, MERGE
    from pipeline.submission.package import check_stage, pack, unpack
    from stages.submitted import make_repository, reproduce

    folder = args.folder.resolve()
    if folder == CODE_ROOT or folder in CODE_ROOT.parents:
        raise ConfigError(f"--folder {args.folder}: holds the project itself; name a folder of its own")
    reviews = _reviews(args.reviews, folder) if args.reviews else None
    added = [name for name, is_asked in (("curate", args.curate), ("merge", reviews)) if is_asked]
    if args.target and args.target.partition("@")[0] not in added:
        check_stage(CODE_ROOT, CODE_ROOT, args.target)
    settings = to_yaml(load_all(args.params))
    with tempfile.TemporaryDirectory(prefix="glip-repro-") as package:
        pack(CODE_ROOT, CODE_ROOT, True, Path(package))
        (Path(package) / "params.yaml").write_text(settings, encoding="utf-8")
        graph = Path(package) / "dvc.yaml"
        if args.curate:
            CURATE.add(graph)
        if reviews:
            MERGE.add(graph, reviews=reviews)
        unpack(Path(package), folder, with_lock=False)
    make_repository(folder)
    reproduce(args.target, folder)
    return f"repro: {args.target or 'all'} is up to date in {args.folder}"


def _reviews(given: str, folder: Path) -> str:
    """Return the place of decisions as the graph in the folder names it.

    Raises:
        MissingInputError: it is not there.
    """
    from pipeline.store.storage import exists, is_folder, to_place
    from pipeline.store.urls import is_url

    place = to_place(given)
    if not (is_folder(place) or exists(place)):
        raise MissingInputError(f"--reviews {given}: no such store of decisions; glip review LABELS --store makes it")
    if is_url(given):
        return given
    path = Path(given).resolve()
    return str(path.relative_to(folder) if folder in path.parents else path)


run_if_program(__name__)
