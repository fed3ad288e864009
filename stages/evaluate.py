"""Evaluate a model on every benchmark that there are records of, each by its own protocol.

Detection is judged as on COCO, or as on LVIS where the vocabulary says how rare its categories are; captions as on
Flickr30k Entities; expressions as on RefCOCO; ODinW's sources get their mean. Predictions that are finished are kept.

Run: glip evaluate --model models/round_1 --records data/records --out data/predictions/round_1 \
    --metrics metrics/models/round_1.json --curves plots/precision_recall/round_1.csv
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline.cli import add_params, run_if_program

if TYPE_CHECKING:
    from pipeline.evaluation.settings import EvaluateConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--model", required=True, help="folder or URL of the model, one of the project's own")
    parser.add_argument("--records", required=True, help="folder or URL with dev/ and test/")
    parser.add_argument("--out", required=True, help="folder or URL for predictions")
    parser.add_argument("--metrics", required=True, help="JSON file for the metrics")
    parser.add_argument("--table", help="CSV file for all measures beside the published ones")
    parser.add_argument(
        "--over", metavar="NAME", help="model whose predictions lie beside OUT: its gain on dev is added"
    )
    parser.add_argument("--curves", help="CSV file for precision over recall at IoU 0.5 on the last split")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Predict, then score."""
    from pipeline.evaluation.gain import GAIN, measure_gain
    from pipeline.evaluation.job import predict_benchmarks
    from pipeline.evaluation.results import collect, curve_table, figures, measure_table, score_predictions
    from pipeline.ray_session import ray_session
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_csv, write_json
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place

    settings = load_all(args.params)
    config: EvaluateConfig = settings.evaluate
    model, out = to_place(args.model), to_place(args.out)
    with alone_in(out), ray_session():
        found = predict_benchmarks(config, model, to_place(args.records), out, allowed_roots(settings.image_roots))
    scores = [(benchmark, score_predictions(benchmark, out)) for benchmark in found]
    metrics = collect(scores)
    if args.over and (gain := measure_gain(found, out.parent, (out.name, args.over))):
        metrics[GAIN] = gain.to_dict()
    write_json(to_place(args.metrics), metrics)
    if args.table:
        write_csv(to_place(args.table), measure_table(collect(scores)))
    last = [(benchmark, each) for benchmark, each in scores if benchmark.split == config.splits[-1]]
    if args.curves:
        write_csv(to_place(args.curves), curve_table(last))
    return f"evaluate {model.name}: {figures(last)}"


run_if_program(__name__)
