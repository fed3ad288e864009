"""Exit codes, messages and JSON results of the commands."""

from __future__ import annotations

import argparse

import pytest

from pipeline.cli import progress, run_stage
from pipeline.errors import MissingInputError


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
