"""The ``glip`` command: one word in front of everything that the project can do."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

import glip_model
from pipeline.cli import escaped_output, run_stage

GROUPS = {
    "reproduce": {
        "repro": "the whole graph with other settings, in a folder of its own",
        "prepare": "raw data sets into records",
        "seeds": "the whole reproduction over several seeds, and how far the results spread",
        "report": "the page of a run: numbers, curves, pictures",
        "review_gain": "what reviewing labels is worth, with a simulated reviewer",
        "ablations": "a round of self-training again and again, each time with one thing changed",
    },
    "collect": {
        "download": "lists of URLs into tar shards of pictures",
        "curate": "web pairs without what is not worth a teacher's time",
    },
    "label": {
        "label": "pictures with names of your own, by a teacher",
        "recaption": "captions of web pairs by a model",
        "phrases": "noun phrases of web captions",
        "plan": "what labelling will take, before it is paid for",
        "pseudo_label": "the teacher grounds the phrases of web captions",
        "calibrate": "pseudo-labels against human boxes, threshold by threshold",
        "manifest": "what DVC tracks in place of millions of pictures",
    },
    "train": {
        "train": "one of the models that params.yaml describes",
        "finetune": "tune on your own pictures, judged before and after",
        "trade": "what ways of tuning gain on new names and lose on others",
        "convert": "published checkpoint into a folder of this project",
        "export": "model into ONNX",
        "push": "model or labels to the Hugging Face hub, with a card",
    },
    "evaluate": {
        "evaluate": "a model on every benchmark that there are records of",
        "score": "COCO's or LVIS's numbers of a file of detections",
        "few_shots": "how far few pictures go, by ways of tuning and what is started from",
        "odinw": "means over ODinW's data sets, of tuned models",
    },
    "look": {
        "settings": "what a params file comes to, or may say",
        "predict": "find things in pictures",
        "serve": "models over HTTP, with a page to try them on",
        "inspect": "look at Parquet shards of pseudo-labels",
        "review": "judge and correct labels in a browser",
        "merge": "what people decided into shards to train on",
    },
    "cluster": {
        "submit": "the run, or a part of it, on a cluster",
        "jobs": "what was submitted: list, follow, stop",
    },
}
"""Heading to the commands below it, with what they do; each is the module of ``stages`` of its name."""
COMMANDS = {name: f"stages.{name}" for group in GROUPS.values() for name in group}
"""Command to the module that runs it; imported only when it is asked for, so that ``--help`` stays quick."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the command line names."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="glip",
        usage="glip COMMAND …",
        description=_overview(),
        epilog="glip COMMAND --help says how to use one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"glip {glip_model.__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the above")
    with escaped_output():
        asked = parser.parse_args(arguments[:1]).command
        name = asked.replace("-", "_")
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            parser.error(f"{asked} is no command; " + (f"did you mean {close[0]}?" if close else "see glip --help"))
    stage = importlib.import_module(COMMANDS[name])
    run_stage(stage.__doc__, stage.add_arguments, stage.run, arguments[1:], f"glip {asked}")


def _overview() -> str:
    lines = ["Everything that the project can do."]
    for heading, commands in GROUPS.items():
        lines += ["", f"{heading}:", *(f"  {name:13} {what}" for name, what in commands.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
