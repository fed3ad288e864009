"""Write the report: a page, a picture, and a summary of teacher, student and control with confidence intervals.

Run: python -m stages.report --records data/records --out reports --summary metrics/summary.json
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import platform
import subprocess
from pathlib import Path
from typing import Any

from pipeline.cli import run_stage, write_json
from pipeline.config import load_config
from pipeline.errors import MissingInputError
from pipeline.evaluation.report import (
    MODELS,
    Comparison,
    category_gains,
    choose_gallery,
    load_comparison,
    render_page,
    side_by_side,
    summarise,
)

logger = logging.getLogger(__name__)

SPLIT = "test"
README_ROWS = 3
"""Pictures in the side-by-side picture."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", type=Path, required=True, help="folder with test/")
    parser.add_argument("--predictions", type=Path, default=Path("data/predictions"), help="folder of MODEL/test/")
    parser.add_argument("--metrics", type=Path, default=Path("metrics"), help="folder of MODEL.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the page and the picture")
    parser.add_argument("--summary", type=Path, required=True, help="JSON file for the summary")


def run(args: argparse.Namespace) -> None:
    """Compare the three models on the test split."""
    config = load_config(args.params)
    comparison = load_comparison(args.records / SPLIT, args.predictions)
    metrics = {model: _read_metrics(args.metrics / f"{model}.json") for model in MODELS}
    summary = summarise(comparison, metrics, config.report, config.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    page = render_page(comparison, summary, _provenance(args.params), config.report)
    (args.out / "report.html").write_text(page, encoding="utf-8")
    side_by_side(comparison, choose_gallery(comparison, README_ROWS + 1)[:README_ROWS]).save(
        args.out / "teacher_vs_student.png", optimize=True
    )
    _write_gains(args.out / "category_ap.csv", comparison)
    write_json(args.summary, summary)
    gains = summary["gains"]
    logger.info(
        "report: student over teacher %+.1f AP on novel concepts, %+.1f on base → %s",
        gains["novel"]["student_over_teacher"]["value"],
        gains["base"]["student_over_teacher"]["value"],
        args.out / "report.html",
    )


def _read_metrics(path: Path) -> Any:
    if not path.is_file():
        raise MissingInputError(f"{path}: no such metrics; run: dvc repro evaluate")
    return json.loads(path.read_text(encoding="utf-8"))[SPLIT]


def _provenance(params: Path) -> dict[str, str]:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "code": commit.stdout.strip() or "not a git checkout",
        "settings": str(params),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _write_gains(path: Path, comparison: Comparison) -> None:
    rows = category_gains(comparison)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["category", "split", *MODELS, "gain"])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
