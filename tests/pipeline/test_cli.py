"""Exit codes, messages and JSON results of the commands."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli import (
    EXTRA_OF,
    call,
    escaped_output,
    named_extras,
    printable,
    progress,
    quiet_libraries,
    run_stage,
)
from pipeline.errors import MissingInputError
from pipeline.plain_json import to_json


def run(action: object, argv: list[str]) -> int:
    def body(args: argparse.Namespace) -> None:
        if isinstance(action, BaseException):
            raise action

    with pytest.raises(SystemExit) as ended:
        run_stage("A stage.", lambda parser: None, body, argv)
    return int(ended.value.code or 0)


def test_success_exits_0() -> None:
    assert run(None, []) == 0


def test_user_errors_exit_2_with_their_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(MissingInputError("data/records: no shards; run: dvc repro prepare"), []) == 2
    err = capsys.readouterr().err
    assert "error: data/records: no shards; run: dvc repro prepare" in err
    assert "Traceback" not in err


def test_interrupt_exits_130_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(KeyboardInterrupt(), []) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_sigterm_ends_what_is_begun_and_exits_143(capsys: pytest.CaptureFixture[str]) -> None:
    ended = []

    def work(_: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal must end the work")
        finally:
            ended.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert call(work, argparse.Namespace()) == 143
    assert ended == [True]
    assert "run the same command again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_exits_143_also_where_compiled_code_has_wrapped_it(capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise SystemError("returned a result with an exception set") from error

    assert call(work, argparse.Namespace()) == 143
    assert "run the same command again" in capsys.readouterr().err
    with pytest.raises(SystemError, match="of another kind"):
        run(SystemError("of another kind"), [])


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "may write"), (errno.EMFILE, "ulimit -n"), (errno.EIO, "the disk")],
)
def test_errors_of_the_machine_are_told_wherever_they_are_met(
    number: int, advice: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(OSError(number, os.strerror(number), "out/a.json"), []) == 2
    err = capfd.readouterr().err
    assert f"error: [Errno {number}] {os.strerror(number)}: 'out/a.json'; " in err
    assert advice in err


def test_an_output_that_is_full_is_told() -> None:
    code = "from pipeline.cli import run_stage\nrun_stage('', lambda p: None, lambda a: print('x' * 9))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: [Errno 28] No space left on device; make room")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from pipeline.cli import run_stage\nrun_stage('', lambda p: None, lambda a: print('x\\n' * 999999))"
    command = f'"{sys.executable}" -c "$CODE" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "CODE": code}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "x\n", "")


HOSTILE = "\x1b]0;pwned\x07\x1b[2J\x9b31m\x7f\r\b\u202edog\u2066\udcff"
SHOWN = r"\u001b]0;pwned\u0007\u001b[2J\u009b31m\u007f\u000d\u0008\u202edog\u2066\udcff"


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_what_is_printable_moves_and_reorders_nothing_and_loses_nothing(text: str) -> None:
    shown = printable(text, kept="")
    shown.encode()  # no halves of characters
    for each in shown:
        assert unicodedata.category(each) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(each) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    assert printable(shown) == shown
    assert json.loads(printable(json.dumps([text], ensure_ascii=False))) == [text]


def test_lines_and_columns_come_through_where_they_may() -> None:
    assert printable("key\tcaption\nこんにちは 😀 é") == "key\tcaption\nこんにちは 😀 é"
    assert printable("key\tcaption\n", kept="") == r"key\u0009caption\u000a"


def test_whatever_a_command_writes_is_printable() -> None:
    code = f"""
import json, logging, sys, warnings
from pipeline.cli import progress, run_stage
from pipeline.errors import MissingInputError
text = {HOSTILE!r}
def run(args):
    print(text)
    print(json.dumps(text, ensure_ascii=False), flush=True)
    sys.stdout.writelines([text, "\\n"])
    logging.getLogger("ours").info("logged %s", text)
    warnings.warn("warned " + text)
    with progress(3, text, "rows") as bar:
        bar.update(3)
        bar.set_postfix_str(text)
    print("printed " + text, file=sys.stderr)
    raise {{error}}
run_stage("A stage.", lambda parser: None, run, [])
"""
    for error, status in (("MissingInputError(text)", 2), ("RuntimeError(text)", 1)):
        done = subprocess.run([sys.executable, "-c", code.format(error=error)], capture_output=True, check=False)
        assert done.returncode == status
        out, err = done.stdout.decode(), done.stderr.decode()
        assert out.splitlines()[::2] == [SHOWN] * 2
        assert json.loads(out.splitlines()[1]) == HOSTILE
        for wanted in (f"logged {SHOWN}", f"warned {SHOWN}", f"printed {SHOWN}", f"{SHOWN}: 100%", f"rror: {SHOWN}"):
            assert wanted in err
        assert not set(out + err) & set(HOSTILE.replace("\r", "")) - set(printable(HOSTILE))


def test_arguments_that_are_wrong_are_printable_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(None, ["--" + HOSTILE[:-1]]) == 2
    assert SHOWN[:-6] in capsys.readouterr().err


def test_streams_are_as_before_when_a_command_has_ended() -> None:
    before = sys.stdout, sys.stderr
    with escaped_output():
        assert sys.stdout is not before[0]
        assert sys.stdout.encoding == before[0].encoding  # all else is the stream's own
    assert (sys.stdout, sys.stderr) == before


def test_json_to_print_has_no_numbers_that_are_none() -> None:
    value = {"score": math.nan, "box": (1.5, math.inf, -math.inf), "deep": [{"x": math.nan}], "path": Path("a"), "n": 1}
    expected = {"score": None, "box": [1.5, None, None], "deep": [{"x": None}], "path": "a", "n": 1}
    assert json.loads(to_json(value), parse_constant=pytest.fail) == expected


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_stage("A stage.", lambda parser: None, lambda args: (1 // 0, None)[1], [])


def test_unknown_argument_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(None, ["--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


def test_progress_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "labelling", "rows") as bar:
        bar.update(3)
        assert bar.n == 3
    assert "labelling" in capsys.readouterr().err


def test_a_closing_line_is_logged_with_its_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit):
        run_stage("A stage.", lambda parser: None, lambda args: "toys: 3 rows → out", [])
    assert "toys: 3 rows → out; 0 s" in caplog.messages


@pytest.mark.parametrize(("said", "found"), [(None, "passive"), ("active", "active")])
def test_threads_of_a_command_wait_asleep_unless_the_environment_says_otherwise(
    said: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if said:
        monkeypatch.setenv("OMP_WAIT_POLICY", said)
    seen = []
    call(lambda _: seen.append(os.environ["OMP_WAIT_POLICY"]), argparse.Namespace())
    assert seen == [found]


def test_known_chatter_is_silent_and_all_else_comes_through() -> None:
    given = [
        ("torch.autograd.graph", UserWarning, "Grad strides do not match bucket view strides. This may …"),
        ("torch.functional", FutureWarning, "this will change"),
        ("transformers.models.bert", FutureWarning, "this will change"),
        ("torch.optim.lr_scheduler", UserWarning, "the order of calls is wrong"),
        ("torchling", FutureWarning, "not of torch"),
        ("pipeline.training.loop", FutureWarning, "ours"),
        ("stages.train", UserWarning, "ours"),
        ("glip_model.glip", UserWarning, "Grad strides do not match bucket view strides, we say"),
    ]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_libraries()
        for module, category, text in given:
            warnings.warn_explicit(text, category, f"{module}.py", 1, module)
    assert [str(each.message) for each in seen] == [text for _, _, text in given[3:]]
    assert not logging.getLogger("transformers.modeling").isEnabledFor(logging.WARNING)
    assert logging.getLogger("pipeline.training.job").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(("name", "extra"), [("ray.data", "pipeline"), ("onnx", "export")])
def test_a_missing_package_is_named_with_its_extra(name: str, extra: str) -> None:
    missing = ModuleNotFoundError(f"No module named {name!r}", name=name)
    wrapping = RuntimeError("the exporter says so")
    wrapping.__cause__ = missing
    for error in (missing, wrapping):
        with pytest.raises(MissingInputError, match=rf"install 'glip-self-training\[{extra}\]'"), named_extras():
            raise error


def test_packages_that_no_extra_brings_keep_their_traceback() -> None:
    with pytest.raises(ModuleNotFoundError), named_extras():
        raise ModuleNotFoundError("No module named 'my_teacher'", name="my_teacher")
    assert "my_teacher" not in EXTRA_OF
