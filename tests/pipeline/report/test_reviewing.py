"""Plots of what reviewing was worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import BenchmarkError
from pipeline.report.reviewing import FILE, read_review_gain

TABLE = """order,reviewed,precision_novel,novel_ap
none,0,60,30
uncertain,100,70,33
random,100,65,31
uncertain,300,80,35
"""


def test_lines_of_all_orders_begin_without_reviews(tmp_path: Path) -> None:
    assert read_review_gain(tmp_path) == []
    (tmp_path / FILE).write_text(TABLE)
    gain, precision = read_review_gain(tmp_path)
    assert {line.name: line.points for line in gain.lines} == {
        "uncertain": ((0, 30), (100, 33), (300, 35)),
        "random": ((0, 30), (100, 31)),
    }
    assert precision.lines[1].points == ((0, 60), (100, 65))


def test_labels_alone_have_one_plot(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("\n".join(line.rpartition(",")[0] for line in TABLE.splitlines()))
    assert len(read_review_gain(tmp_path)) == 1


@pytest.mark.parametrize("text", ["reviewed,novel_ap\n1,2\n", "order,reviewed,novel_ap\nrandom,x,3\n"])
def test_another_table_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(BenchmarkError, match="not as glip review_gain writes it"):
        read_review_gain(tmp_path)
