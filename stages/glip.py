"""The ``glip`` command: one word in front of what the project can do outside of a DVC run.

glip predict PICTURE… --text "a cat. a remote control." --model DIR    find things in pictures
glip convert FILE.pth DIR                                             published checkpoint → folder of this project
glip export DIR --onnx FILE                                           model → ONNX
glip finetune --data DIR --from MODEL --out DIR                       tune on your own pictures, judged before and after
glip odinw RUNS                                                       means over ODinW's data sets, of tuned models
glip plan                                                             what labelling will take, before it is paid for
glip inspect DIR                                                      look at Parquet shards of pseudo-labels
glip manifest --shards DIR --out FILE                                 what DVC tracks in place of millions of pictures
glip report                                                           the page of a run: numbers, curves, pictures
glip submit all --folder DIR                                          the run, or a part of it, on a cluster
glip jobs                                                             what was submitted: list, follow, stop
glip score --protocol coco --annotations FILE --predictions FILE      COCO's or LVIS's numbers of a file of detections
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import glip_model
from pipeline.cli import call

COMMANDS = {
    "convert": "stages.convert",
    "export": "stages.export",
    "finetune": "stages.finetune",
    "inspect": "stages.inspect",
    "jobs": "stages.jobs",
    "manifest": "stages.manifest",
    "odinw": "stages.odinw",
    "plan": "stages.plan",
    "predict": "stages.predict",
    "report": "stages.report",
    "score": "stages.score",
    "submit": "stages.submit",
}
"""Subcommand to the module that runs it; imported only when it is asked for, so that ``--help`` stays quick."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the subcommand that the command line names."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="glip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"glip {glip_model.__version__}")
    parser.add_argument("command", choices=sorted(COMMANDS), help="what to do; each has its own --help")
    name = parser.parse_args(arguments[:1]).command
    stage = importlib.import_module(COMMANDS[name])
    command = argparse.ArgumentParser(
        prog=f"glip {name}", description=stage.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stage.add_arguments(command)
    sys.exit(call(stage.run, command.parse_args(arguments[1:])))


if __name__ == "__main__":
    main()
