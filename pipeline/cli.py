"""What the commands share: arguments, logging, progress bars, JSON results and exit codes.

Commands import what they work with when they run, so that ``--help`` answers at once and with nothing else installed.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, cast

from pipeline.errors import MissingInputError, PipelineError

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

USER_ERROR_STATUS = 2
"""Exit status for a mistake that the message tells how to mend."""
INTERRUPTED_STATUS = 130
"""Exit status after Ctrl-C, as shells expect it."""
TERMINATED_STATUS = 143
"""Exit status after SIGTERM, as shells expect it."""

WAIT_POLICY = "OMP_WAIT_POLICY"
"""Environment variable of OpenMP, which PyTorch computes with: how its threads wait, see ``share_cores``."""

_OF_THE_MACHINE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n 4096)"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.EBUSY), "name a place where you may write"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG), "name another place"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO), "see to the disk"),
}
"""What errors of the operating system ask of a user, wherever they are met."""

EXTRA_OF = {
    "av": "video",
    "fastapi": "serve",
    "onnx": "export",
    "onnxruntime": "export",
    "peft": "tune",
    "py3langid": "curate",
    "timm": "timm",
    "uvicorn": "serve",
} | dict.fromkeys(
    (
        "aiohttp",
        "duckdb",
        "dvc",
        "imagehash",
        "nltk",
        "pathspec",
        "pyarrow",
        "pycocotools",
        "pydantic",
        "ray",
        "s3fs",
        "spacy",
        "upath",
        "yarl",
    ),
    "pipeline",
)
"""Package, by the name it is imported by, to the extra of the installation that brings it."""

CHATTERERS = ("ray", "transformers", "timm", "fsspec", "urllib3", "botocore", "aiobotocore")
"""Libraries whose log lines below errors, and warnings of their own future, are for their developers."""
CHATTER = (("torch", "Grad strides do not match bucket view strides"),)
"""Libraries with the beginnings of warnings that nobody who runs a command can do anything about."""

_CONTROLS = r"\x00-\x1f\x7f-\x9f"
_UNPRINTABLE = re.compile(rf"[{_CONTROLS}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, what turns the direction of writing or breaks lines unseen, and halves of characters."""


def printable(text: str, kept: str = "\n\t") -> str:
    r"""Return text that is safe to print: nothing in it moves the cursor, colours, retitles or reorders what is seen.

    Captions, keys and names of files are untrusted. Escapes are written as JSON, Python and the ``$'…'`` of shells
    write them, ``\u001b``: JSON stays JSON of the same meaning, and what is shown can be typed.

    Args:
        text: anything.
        kept: control characters that come through; none where the text shall stay on its line.
    """
    return _UNPRINTABLE.sub(lambda c: c[0] if c[0] in kept else f"\\u{ord(c[0]):04x}", text)


class _Escaping:
    """A stream to which only printable text comes through, whoever writes: prints, log lines, warnings, progress bars.

    A carriage return that begins what is written is the one of a progress bar, which writes over itself.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all else."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, escaped."""
        bar = text[: text.startswith("\r")]
        self._stream.write(bar + printable(text[len(bar) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts, escaped."""
        for line in lines:
            self.write(line)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Let nothing but printable text reach standard output and errors from a block, nor from a traceback that ends it.

    Commands run inside of it, so that none needs to think of it.
    """
    out, err = (cast(TextIO, _Escaping(stream)) for stream in (sys.stdout, sys.stderr))
    sys.excepthook = _print_traceback
    with redirect_stdout(out), redirect_stderr(err):
        yield


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def run_stage(
    doc: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], str | None],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Parse the command line, run a command, and end the process with the right status.

    Args:
        doc: module docstring of the command, shown by ``--help``.
        add_arguments: adds the command's arguments.
        run: the command, which returns a line that says what came of it, or None; its PipelineErrors become a message
            and status 2, bugs keep their traceback.
        argv: arguments without the program's name; None takes the process's own.
        prog: what ``--help`` calls the program.
    """
    parser = argparse.ArgumentParser(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    with escaped_output():
        sys.exit(call(run, parser.parse_args(argv)))


def run_if_program(name: str) -> None:
    """Run the calling module of ``stages``, by its ``__name__``, if it is the program (``python -m stages.NAME``)."""
    if name == "__main__":
        module: Any = sys.modules[name]
        run_stage(module.__doc__, module.add_arguments, module.run, prog=f"python -m {module.__spec__.name}")


def at_least(least: int) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers from ``least`` on."""

    def parse(text: str) -> int:
        with suppress(ValueError):
            if (value := int(text)) >= least:
                return value
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")

    return parse


def positive(text: str) -> float:
    """Return a number above 0; a type of arguments."""
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")


def score(text: str) -> float:
    """Return a score, from 0 to 1; a type of arguments."""
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1")


def add_tile_and_fps(parser: argparse.ArgumentParser) -> None:
    """Declare ``--tile`` and ``--fps`` of commands that look at pictures and videos of any size."""
    parser.add_argument(
        "--tile",
        type=at_least(32),
        metavar="PIXELS",
        help="look at larger pictures in overlapping pieces of this side as well, for small things",
    )
    parser.add_argument("--fps", type=positive, default=1.0, help="frames of a second of video (default: %(default)s)")


def add_teachers(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Declare ``--teacher`` of commands that label; it may be repeated. With a default it may be left out, as None."""
    parser.add_argument(
        "--teacher",
        required=default is None,
        action="append",
        metavar="MODEL",
        help="folder, URL, hub id, endpoint.yaml or module:function; of several (--teacher A --teacher B) boxes are "
        "merged, and say who found them" + (f" (default: {default})" if default else ""),
    )


def run_module(words: Sequence[object], what: object) -> None:
    """Run ``python -m`` with these words, as commands do that drive others; its output is theirs.

    Args:
        words: module and arguments.
        what: names the work in the message.

    Raises:
        PipelineError: it ended with another status than 0.
    """
    status = subprocess.run([sys.executable, "-m", *map(str, words)], check=False).returncode
    if status:
        name = " ".join(("glip", str(words[1]))) if words[0] == "stages.glip" else words[0]
        raise PipelineError(f"{what}: {name} ended with status {status}; its output is above")


def add_params(parser: argparse.ArgumentParser) -> None:
    """Declare ``--params`` of a command that has settings."""
    shown = "settings (default: params.yaml, or else those of the project)"
    parser.add_argument("--params", type=Path, default=default_params(), metavar="FILE", help=shown)


def default_params() -> Path:
    """Return the settings of the folder that the command is called in, or else those that the project comes with."""
    here = Path("params.yaml")
    return here if here.is_file() else Path(__file__).with_name(here.name)


def call(run: Callable[[argparse.Namespace], str | None], args: argparse.Namespace) -> int:
    """Run a command with logging set up, log its closing line and how long it took, and return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    quiet_libraries()
    share_cores()
    start = time.monotonic()
    try:
        with _ended_by_sigterm(), named_extras():
            line = run(args)
            sys.stdout.flush()
        if line:
            logger.info("%s; %.0f s", line, time.monotonic() - start)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED_STATUS
    except (_Terminated, SystemError) as error:
        # Where Ray waits, what the handler of a signal raises becomes a SystemError of its compiled code.
        if not isinstance(error, _Terminated) and not isinstance(error.__cause__, _Terminated):
            raise
        print("terminated; run the same command again to go on", file=sys.stderr)
        return TERMINATED_STATUS
    except BrokenPipeError:
        # The reader went away (`glip inspect … | head`): nothing to report, and nowhere to report it.
        _discard_stdout()
        return 0
    except OSError as error:
        cause = getattr(error, "cause", error)  # Ray wraps those of its workers
        if cause.errno not in _OF_THE_MACHINE:
            raise
        print(f"error: {cause}; {_OF_THE_MACHINE[cause.errno]}, then run the same command again", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # it is what cannot be written
            _discard_stdout()
        return USER_ERROR_STATUS
    return 0


def share_cores() -> None:
    """Let the threads of a computation sleep while they wait for one another, unless the environment says otherwise.

    OpenMP's default is to wait awake. Where Ray, decoders or other commands want the same cores, that keeps the very
    threads from running that are waited for: beside one busy process small training steps took 25 times as long. On a
    machine that is idle otherwise both take the same time. It is read when PyTorch is loaded, so that comes afterwards;
    processes that are started inherit it.
    """
    os.environ.setdefault(WAIT_POLICY, "passive")


class _Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that nothing unfinished is left beside files, and Ray ends."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one would end the clearing up
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _discard_stdout() -> None:
    """Keep what is left in the buffer from being written, and from failing, when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def named_extras() -> Iterator[None]:
    """Turn an import that fails for want of an extra of the installation into a MissingInputError that names it."""
    try:
        yield
    except Exception as error:
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__  # torch's exporter wraps it
        package = (missing.name or "").partition(".")[0] if isinstance(missing, ModuleNotFoundError) else ""
        if package not in EXTRA_OF:
            raise
        install = f"pip install 'glip-self-training[{EXTRA_OF[package]}]'"
        raise MissingInputError(f"{package} is not installed; this needs the extra: {install}") from error


def progress(total: int | None, description: str, unit: str) -> tqdm[Any]:
    """Return a progress bar over ``total`` units, None where nobody knows how many; a context manager with ``update``.

    Off a terminal it prints a line now and then instead of redrawing, so that logs stay readable.
    """
    from tqdm import tqdm

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
    """Keep the known chatter of libraries off the terminal; warnings of ours and unknown ones come through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings(
            "ignore", category=category, module=rf"({'|'.join([*CHATTERERS, 'torch', 'torchvision'])})\b"
        )
    for module, message in CHATTER:
        warnings.filterwarnings("ignore", message, module=rf"{module}\b")
    for name in CHATTERERS:
        logging.getLogger(name).setLevel(logging.ERROR)
