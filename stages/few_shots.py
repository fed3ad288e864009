"""How far few pictures go: a model tuned on 1, 3, 5, 10 pictures of every name, and on all, on a domain it never saw.

    glip few_shots --starts teacher=models/teacher student=models/round_2
    glip few_shots --starts teacher=models/teacher --ways full --shots 1 10 --seeds 3

The protocol is that of the paper's figure of data efficiency, and of ODinW: three draws of the pictures (seeds 3, 30,
300), judged while it learns by as few others, then by a test set. The domain is the embedded target: concepts that no
run of the project has, as sketches. Tuned are all weights, the last layers, or the prompt; and for comparison a model
without any grounding data before, from ImageNet's weights (scratch). Settings: pipeline/training/recipes/fewshot.

OUT/few_shots.html has the curves with their 95 % intervals over seeds, OUT/table.md the table alone. Every model has a
folder, OUT/START-WAY/SHOTS/SEED. What is finished stays; run again, the command makes what is missing.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import run_if_program, run_module
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parents[1] / "pipeline/training/recipes/fewshot"
WAYS = ("full", "linear", "prompt")
SCRATCH = "scratch"
"""Recipe of the model that starts from no other."""
SHOTS = (1, 3, 5, 10, 0)
"""Pictures of every name, 0 all of them."""
SEEDS = (3, 30, 300)
ALL_SHOTS = 25
"""Where all pictures stand on the curve, which is not to scale there."""
COLUMNS = ("model", "shots", "AP", "95 % interval", "draws")
TEXTS = 1


@dataclass(frozen=True)
class Cell:
    """One model to tune."""

    start: str
    model: Path | None
    """None where it starts from no other."""
    way: str
    shots: int
    seed: int

    @property
    def name(self) -> str:
        """What its line is called."""
        return self.way if self.model is None else f"{self.start}-{self.way}"

    def folder(self, out: Path) -> Path:
        """Where it is tuned."""
        return out / self.name / (str(self.shots) if self.shots else "all") / str(self.seed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    shown = "(default: %(default)s)"
    starts = ["teacher=models/teacher", "student=models/round_2"]
    parser.add_argument("--starts", nargs="*", default=starts, metavar="NAME=MODEL", help=f"models {shown}")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help=f"of tuning them {shown}")
    parser.add_argument("--scratch", action=argparse.BooleanOptionalAction, default=True, help=f"without any {shown}")
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS), help=f"0 is all pictures {shown}")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help=f"draws of the pictures {shown}")
    parser.add_argument("--out", type=Path, default=Path("few_shots"), help=f"folder {shown}")


def run(args: argparse.Namespace) -> str:
    """Tune what is missing, then write page and table."""
    cells = _cells(args)
    found: dict[Cell, float] = {}
    for number, cell in enumerate(cells, 1):
        logger.info("few_shots %d of %d: %s, %d shots, seed %d", number, len(cells), cell.name, cell.shots, cell.seed)
        found[cell] = _measured(cell, args.out)
        write_page(found, args.out)  # what is there can be looked at while the rest is made
    return f"few_shots: {len(found)} models → {args.out / 'few_shots.html'}"


def _cells(args: argparse.Namespace) -> list[Cell]:
    if any(shots < 0 for shots in args.shots):
        raise ConfigError(f"--shots {min(args.shots)}: expected how many pictures of every name, or 0 for all")
    starts: dict[str, Path] = {}
    for text in args.starts:
        name, sign, model = text.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"--starts {text}: expected NAME=MODEL, with a name of letters for its folder")
        starts[name] = Path(model)
    models: list[tuple[str, Path | None, str]] = [
        (name, model, way) for name, model in starts.items() for way in args.ways
    ]
    models += [("", None, SCRATCH)] if args.scratch else []
    # All pictures are the same whatever the seed.
    return [
        Cell(*model, shots, seed)
        for model in models
        for shots in args.shots
        for seed in (args.seeds if shots else args.seeds[:1])
    ]


def _measured(cell: Cell, out: Path) -> float:
    """Tune and judge a model, or read what was found before; return AP on the test set."""
    from pipeline.store.provenance import describe_model, fingerprint
    from pipeline.store.resume import begin_work

    folder = cell.folder(out)
    settings = _settings(cell)
    start = None if cell.model is None else describe_model(cell.model)
    identity = fingerprint({"settings": settings, "recipe": _recipe(cell.way), "start": start})
    begin_work(folder / "asked.json", identity)
    metrics = folder / "metrics.json"
    if not metrics.is_file():
        (folder / "params.yaml").write_text(settings, encoding="utf-8")
        for words in _stages(cell, folder):
            run_module([*words, "--params", folder / "params.yaml"], folder)
    found = json.loads(metrics.read_text(encoding="utf-8"))
    return float(found["test"]["detection"]["embedded_target"]["all"]["AP"])


def _recipe(way: str) -> str:
    """Return all settings of a recipe: what is made with others is made anew."""
    from pipeline.settings import load_all, to_yaml

    return to_yaml(load_all(RECIPES / f"{way}.yaml"))


def _settings(cell: Cell) -> str:
    """Return the params file of a model: its recipe, with the draw of the pictures."""
    import yaml

    base = yaml.safe_load((RECIPES / "full.yaml").read_text(encoding="utf-8"))["prepare"]
    draw = {"shots": cell.shots, "shot_seed": cell.seed} if cell.shots else {}
    prepare = {role: [{**source, **draw} for source in base[role]] for role in ("human", "dev")}
    values = {"extends": str(RECIPES / f"{cell.way}.yaml"), "prepare": prepare}
    return yaml.safe_dump(values, sort_keys=False)


def _stages(cell: Cell, folder: Path) -> Iterator[Sequence[object]]:
    """Yield the commands that make the records, tune the model, and judge the best one on the way."""
    records, model = folder / "records", folder / "model"
    start = [] if cell.model is None else ["--teacher", cell.model]
    yield ["stages.prepare", "--out", records, "--metrics", folder / "prepare.json"]
    yield ["stages.train", "tune", "--human", records / "human", "--dev", records / "dev", *start, "--out", model]
    judged = ["--out", folder / "predictions", "--metrics", folder / "metrics.json"]
    yield ["stages.evaluate", "--model", model / "best", "--records", records, *judged]


def write_page(found: Mapping[Cell, float], out: Path) -> None:
    """Write what came of the models: a page, and a table for other pages."""
    from pipeline.report.tuning_page import Page, markdown, over_seeds, render, shots_plot
    from pipeline.store.atomic import replacing

    values: dict[tuple[str, int], list[float]] = {}
    for cell, ap in found.items():
        values.setdefault((cell.name, cell.shots), []).append(ap)
    cells = {key: over_seeds(each) for key, each in values.items()}
    rows = [
        [name, str(shots) if shots else "all", f"{each.value:.1f}", _range(each.low, each.high), str(len(values[key]))]
        for key, each in cells.items()
        for name, shots in [key]
    ]
    notes = (
        "AP in percent on the test pictures of the embedded target domain: other concepts, as sketches. Intervals are "
        "of 95 % over the draws of the pictures, by Student's t.",
        f"All pictures stand at {ALL_SHOTS} shots, which is not to scale.",
    )
    placed = {(name, shots or ALL_SHOTS): each for (name, shots), each in cells.items()}
    plots = [shots_plot(placed, "By the number of pictures")]
    page = Page("How far few pictures go", notes, plots, COLUMNS, rows, TEXTS)
    for name, text in (("few_shots.html", render(page)), ("table.md", markdown(COLUMNS, rows, TEXTS))):
        with replacing(out / name) as path:
            path.write_text(text, encoding="utf-8")


def _range(low: float, high: float) -> str:
    return "–" if low == high else f"{low:.1f} to {high:.1f}"


run_if_program(__name__)
