"""Print the settings that a params file comes to, with all that it extends, as a params file of its own.

glip settings                                                 of params.yaml
glip settings --params pipeline/training/recipes/glip_t.yaml
glip settings --schema                                        what a params file may say: a JSON schema for editors

The schema is kept in pipeline/params.schema.json. Mistakes in the file end with a message and status 2.
"""

from __future__ import annotations

import argparse

from pipeline.cli import add_params, run_if_program
from pipeline.plain_json import to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    add_params(parser)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of params files instead")


def run(args: argparse.Namespace) -> None:
    """Print the settings."""
    from pipeline.settings import json_schema, load_all, to_yaml

    if args.schema:
        print(to_json(json_schema(), indent=2))
    else:
        print(to_yaml(load_all(args.params)), end="")


run_if_program(__name__)
