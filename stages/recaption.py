"""Write captions for web pairs by a model, before their phrases are looked for: alt texts name little of what is there.

Every pair gets a caption, its own stays as source_caption; --how append puts the model's behind it instead. The model
is one of transformers that captions pictures (BLIP, GIT), or the YAML file of an endpoint of OpenAI's style for larger
ones (recaption.question is what it is asked). Shards, rows and their order stay; interrupted, the same command goes on.

Run: glip recaption --records data/records/web --model Salesforce/blip-image-captioning-base --out data/recaptioned
     glip phrases --records data/recaptioned --out data/phrases
     glip pseudo_label --records data/recaptioned --phrases data/phrases --teacher models/glip_t --out data/labels
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from pipeline.cli import add_params, run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", required=True, help="shards of web pairs: a folder or a URL such as s3://…")
    parser.add_argument("--model", required=True, help="folder, hub id or endpoint.yaml")
    parser.add_argument("--out", required=True, help="place for shards of pairs with new captions")
    parser.add_argument("--how", choices=("replace", "append"), help="(default: by the settings)")
    parser.add_argument("--metrics", help="JSON file for counts")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Caption every picture."""
    from pipeline.ray_session import ray_session
    from pipeline.recaption.job import Inputs, recaption
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_json
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place

    settings = load_all(args.params)
    config = replace(settings.recaption, how=args.how) if args.how else settings.recaption
    out = to_place(args.out)
    inputs = Inputs(to_place(args.records), args.model, out, allowed_roots(settings.image_roots))
    with alone_in(out), ray_session():
        metrics = recaption(inputs, config, settings.prepare.max_image_pixels)
    if args.metrics:
        write_json(to_place(args.metrics), metrics)
    refused = sum(metrics["rejects"].values())
    told = f", {refused} kept their own ({metrics['rejects']})" if refused else ""
    captioned = f"{metrics['rows'] - refused} of {metrics['rows']} pairs in {metrics['shards']} shards"
    return f"recaption: {captioned}{told} → {args.out}"


run_if_program(__name__)
