"""What the commands share: arguments, logging, progress bars, JSON results and exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import PipelineError

USER_ERROR_STATUS = 2
"""Exit status for a mistake that the message tells how to mend."""
INTERRUPTED_STATUS = 130
"""Exit status after Ctrl-C, as shells expect it."""


def run_stage(
    doc: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line, run a stage, and end the process with the right status.

    Args:
        doc: module docstring of the stage, shown by ``--help``.
        add_arguments: adds the stage's own arguments; ``--params`` is added here.
        run: the stage; its PipelineErrors become a message and status 2, bugs keep their traceback.
        argv: arguments without the program's name; None takes the process's own.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    sys.exit(call(run, parser.parse_args(argv)))


def call(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a command with logging set up and return its exit status."""
    _set_up_logging()
    try:
        run(args)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # The reader went away (`glip inspect … | head`): nothing to report, and nowhere to report it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def progress(total: int | None, description: str, unit: str) -> tqdm[Any]:
    """Return a progress bar over ``total`` units, None where nobody knows how many; a context manager with ``update``.

    Off a terminal it prints a line now and then instead of redrawing, so that logs stay readable.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        file=sys.stderr,
        dynamic_ncols=interactive,
        mininterval=0.2 if interactive else 15.0,
        maxinterval=10.0 if interactive else 60.0,
        leave=interactive,
    )


def quiet_libraries() -> None:
    """Keep the chatter of libraries off the terminal; errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("ray", "transformers", "timm", "fsspec", "urllib3", "botocore", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _set_up_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    quiet_libraries()
