"""Write the report of a run: one page of all that is known of it, a picture, and the numbers with intervals.

glip report                                     the run in this folder, round by round → reports/
glip report --models teacher --out /tmp/page    one model alone; names are folders of --predictions
glip report --models a b                        two: the last is compared with the others, a student with all

The page needs no network. It tells what there is to tell: a part whose inputs are missing says so in a line.
"""

from __future__ import annotations

import argparse

from pipeline.cli import add_params, run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    shown = "(default: %(default)s)"
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="default: those that are there of teacher, control, one_round and the rounds",
    )
    parser.add_argument("--records", default="data/records", help=f"folder or URL of SPLIT/TASK {shown}")
    parser.add_argument("--predictions", default="data/predictions", help=f"folder or URL of NAME/SPLIT/TASK {shown}")
    parser.add_argument(
        "--metrics", default="metrics", help=f"folder or URL of models/NAME.json and the stages' {shown}"
    )
    parser.add_argument("--plots", default="plots", help=f"folder or URL of calibration/ROUND.csv {shown}")
    parser.add_argument("--labels", default="data/pseudo_labels", help=f"folder or URL of ROUND/ shards {shown}")
    parser.add_argument("--lock", default="dvc.lock", help=f"hashes of data and models {shown}")
    parser.add_argument("--split", default="test", help=f"that the models are judged by {shown}")
    parser.add_argument("--out", default="reports", help=f"folder or URL for page, picture and table {shown}")
    parser.add_argument("--summary", help="JSON file for the numbers (default: OUT/summary.json)")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Compare the models and write what was found."""
    from pipeline.report.ablations import read_ablations
    from pipeline.report.compose import category_table, examine_all, find_benchmarks, find_models, read_models
    from pipeline.report.labels import read_labels
    from pipeline.report.page import Report, render_page
    from pipeline.report.provenance import collect
    from pipeline.report.rounds import notes_on_rounds, read_rounds
    from pipeline.report.standings import headline, summarise
    from pipeline.settings import load_all
    from pipeline.store.atomic import replacing, write_csv, write_json
    from pipeline.store.folders import sent_folder
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.storage import to_place

    predictions, metrics_folder, plots, lock, out = map(
        to_place, (args.predictions, args.metrics, args.plots, args.lock, args.out)
    )
    settings = load_all(args.params)
    teachers = {name: each.teacher for name, each in settings.rounds.items()}
    models = find_models(args.models, list(teachers), metrics_folder / "models", predictions, args.split)
    metrics, absent = read_models(metrics_folder / "models", models)
    rounds = read_rounds(teachers, metrics_folder, to_place(args.labels))
    run = [each.name for each in rounds if each.skipped is None]
    benchmarks, unknown = find_benchmarks(to_place(args.records), args.split, allowed_roots(settings.image_roots))
    with sent_folder(out, "report.html") as folder:
        findings, gallery, left_out = examine_all(
            benchmarks, predictions, models, run, settings.report, settings.seed, folder
        )
        report = Report(
            models=models,
            split=args.split,
            findings=findings,
            metrics=metrics,
            gallery=gallery,
            rounds=rounds,
            ablations=read_ablations(metrics_folder / "ablations.csv"),
            labels=read_labels(metrics_folder, plots, run[-1] if run else None),
            provenance=collect(args.params, lock, metrics_folder),
            notes=[*notes_on_rounds(rounds), *absent, *unknown, *left_out],
        )
        with replacing(folder / "report.html") as aside:
            aside.write_text(render_page(report), encoding="utf-8")
        write_csv(folder / "category_ap.csv", category_table(report))
    standings = [each for found in report.findings for each in found.standings]
    write_json(to_place(args.summary) if args.summary else out / "summary.json", summarise(standings))
    return f"report: {' '.join(headline(standings)) or 'no predictions'} → {out / 'report.html'}"


run_if_program(__name__)
