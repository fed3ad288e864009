"""Serve models over HTTP, by Ray Serve: a page to try them on, and POST /predict for programs.

    glip serve models/round_2                                     # then open http://127.0.0.1:8000
    glip serve models/round_2 teacher=models/teacher small=student.onnx --replicas 2
    glip serve models/glip_t --gpus 0.5 --replicas 2 --most-replicas 8 --batch 16
    curl -F image=@street.jpg -F names="a dog, a red frisbee" http://127.0.0.1:8000/predict

Models are folders, hub ids and files of glip export --names; a request calls one by the last part of its name, or by
the name before "=". /docs describes the requests, /metrics is for Prometheus. Requests beyond the limits get 413 (too
many bytes or pixels), 503 (too many wait) or 504 (the time is up); pipeline/serving/README.md lists all.

It listens on this machine alone. With --host 0.0.0.0 it lets everybody in who reaches the machine: put a server with
passwords and encryption before it. With RAY_ADDRESS set the models run on that cluster. Needs the extra "serve".
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING, get_args

from glip_model.precision import Precision
from pipeline.cli import at_least, positive, run_if_program
from pipeline.errors import ConfigError
from pipeline.serving.limits import Limits

if TYPE_CHECKING:
    from pipeline.serving.answering import ModelPlace

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    limits = Limits()
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL", help="folder, hub id or ONNX file")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default: %(default)s)")
    parser.add_argument("--port", type=at_least(1), default=8000, help="(default: %(default)s)")
    parser.add_argument("--replicas", type=at_least(1), default=1, help="copies of each model (default: %(default)s)")
    parser.add_argument("--most-replicas", type=at_least(1), default=0, help="more copies under load, up to so many")
    parser.add_argument("--gpus", type=positive, default=0.0, help="share of a GPU that each copy takes, such as 0.5")
    parser.add_argument(
        "--threads", type=at_least(1), default=1, help="cores of a copy on a CPU (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=at_least(1), default=8, help="requests answered together (default: %(default)s)"
    )
    parser.add_argument("--device", help="of torch, or of onnxruntime (default: a GPU, if any)")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto", help="(default: %(default)s)")
    parser.add_argument("--max-mb", type=positive, default=limits.max_bytes / 1e6, help="of a picture (default: 20)")
    parser.add_argument("--max-megapixels", type=positive, default=limits.max_pixels / 1e6, help="(default: 50)")
    parser.add_argument("--timeout", type=positive, default=limits.timeout_s, help="seconds (default: %(default)s)")
    parser.add_argument(
        "--max-waiting", type=at_least(1), default=limits.max_waiting, help="requests at a time (default: %(default)s)"
    )
    parser.add_argument("--urls", action="store_true", help="fetch pictures by URL, from public hosts")


def run(args: argparse.Namespace) -> str:
    """Serve until stopped."""
    from pipeline.serving.answering import ModelPlace, named

    if args.most_replicas and args.most_replicas < args.replicas:
        raise ConfigError(f"--most-replicas is {args.most_replicas}, below --replicas {args.replicas}")
    device = args.device or ("cuda" if args.gpus else None)
    models = {
        name: ModelPlace(source, device, args.precision, 0 if args.gpus else args.threads)
        for name, source in named(args.models).items()
    }
    return _serve(args, models)


def _serve(args: argparse.Namespace, models: dict[str, ModelPlace]) -> str:
    import fastapi  # noqa: F401  # named before Ray says in many words that it is missing

    from pipeline.serving.app import is_loopback
    from pipeline.serving.job import Scale, serving, wait_until_stopped

    limits = Limits(
        max_bytes=int(args.max_mb * 1e6),
        max_pixels=int(args.max_megapixels * 1e6),
        timeout_s=args.timeout,
        max_waiting=args.max_waiting,
        allows_urls=args.urls,
    )
    scale = Scale(
        replicas=args.replicas,
        most_replicas=args.most_replicas,
        gpus=args.gpus,
        cpus=args.threads if os.environ.get("RAY_ADDRESS") and not args.gpus else 0,  # one machine may be shared
        batch=args.batch,
    )
    if not is_loopback(args.host):
        logger.warning("serve: whoever reaches %s may use these models; there are no passwords", args.host)
    with serving(models, scale, limits, args.host, args.port) as url:
        logger.info("serve: %s → %s (Ctrl-C ends it)", ", ".join(models), url)
        wait_until_stopped()
    return "serve: ended"


run_if_program(__name__)
