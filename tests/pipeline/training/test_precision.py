"""What bfloat16 costs in AP: of a model that is trained here, and of the run's own where ``make repro`` has made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glip_model.glip import GLIP
from glip_model.precision import Precision
from glip_model.text_encoder import load_tokenizer
from pipeline.evaluation.dev_set import DevSet
from pipeline.settings import load_all
from pipeline.store.records import DetectionRecord
from pipeline.training.loop import Trainer
from pipeline.training.rows import make_sources
from pipeline.training.settings import RunConfig, TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).resolve().parents[3]
ROWS = 600
"""On fewer pictures AP moves by as much for two or three boxes that fall on the other side of an IoU threshold."""
MOST_AP = 0.3


def aps(model: GLIP, tokenizer: Any, records: Path, samples: Path) -> tuple[float, float]:
    """Return AP in float32 and in bf16, on the CPU."""

    def judged(precision: Precision) -> float:
        config = replace(load_all(ROOT / "params.yaml").evaluate, precision=precision)
        scores = DevSet(records, config, ROWS, 0)(model, tokenizer, samples)
        [ap] = [value for name, value in scores.items() if name.endswith("/AP")]
        return ap

    return judged("float32"), judged("bf16")


def test_bf16_changes_the_ap_of_a_model_trained_here_by_little(
    tiny: SimpleNamespace, tokenizer: Any, train_config: TrainConfig, make_model: Callable[..., GLIP], tmp_path: Path
) -> None:
    names = list(tiny.COLOURS)

    def pictures(numbers: range) -> list[DetectionRecord]:
        pairs = ((names[i % 6], names[(i + 1 + i // 6 % 5) % 6]) for i in numbers)
        return [tiny.detection_record(f"d{i}", pair, i) for i, pair in zip(numbers, pairs, strict=True)]

    tiny.write_detection(tmp_path / "human/detection", pictures(range(96)))
    tiny.write_detection(tmp_path / "records/dev/detection", pictures(range(1000, 1000 + ROWS)))
    optim = replace(train_config.optim, batch_size=8, warmup_steps=10, learning_rate=4e-3)
    config = replace(train_config, optim=optim, checkpoint_every=1000)
    run = RunConfig(init="pretrained", steps=200, mixture={"detection": 1.0})
    model = make_model()
    sources = make_sources(tmp_path / "human", None, run.mixture, config.samples, tokenizer)
    Trainer(model, tokenizer, sources, config, run, 0).run()
    exact, rounded = aps(model, tokenizer, tmp_path / "records/dev", tmp_path / "samples")
    assert exact > 10.0  # it has learnt something that could be lost
    assert exact != rounded  # and the setting has an effect
    assert rounded == pytest.approx(exact, abs=MOST_AP)


@pytest.mark.parametrize("name", ["teacher", "round_1"])
def test_bf16_changes_the_ap_of_the_runs_models_by_little(name: str, tmp_path: Path) -> None:
    folder, records = ROOT / "models" / name, ROOT / "data/records/test"
    if not (folder / "model.safetensors").is_file() or not records.is_dir():
        pytest.skip(f"{folder} or {records} is not there: make repro; the test above needs neither")
    model = GLIP.from_pretrained(folder)
    tokenizer = load_tokenizer(folder, model.config.text.vocab_size)
    exact, rounded = aps(model, tokenizer, records, tmp_path)
    assert rounded == pytest.approx(exact, abs=MOST_AP)
