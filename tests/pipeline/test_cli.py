"""Exit codes, messages and JSON results of the commands."""

from __future__ import annotations

import argparse
import logging
import warnings

import pytest

from pipeline.cli import EXTRA_OF, named_extras, progress, quiet_libraries, run_stage
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


def test_a_closing_line_is_logged_with_its_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit):
        run_stage("A stage.", lambda parser: None, lambda args: "toys: 3 rows → out", [])
    assert "toys: 3 rows → out; 0 s" in caplog.messages


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
