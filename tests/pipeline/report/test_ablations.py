"""The table of ablations in the report, and novel AP over web pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ShardError
from pipeline.report.ablations import curve_over_pairs, read_ablations

HEAD = "name,what,round,web pairs,novel AP\n"


def table(folder: Path, *rows: str) -> Path:
    path = folder / "ablations.csv"
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_novel_ap_is_drawn_over_the_number_of_web_pairs_alone(tmp_path: Path) -> None:
    found = read_ablations(
        table(
            tmp_path,
            "base,As it is,round_1,6000,30.5",
            "slow,Half the rate,round_1,6000,12",
            "web_24000,More,round_1,24000,40",
            "round_2,As it is,round_2,6000,50",
            "web_1500,Fewer,round_1,1500,11.5",
        )
    )
    assert [row["name"] for row in found.rows] == ["base", "slow", "web_24000", "round_2", "web_1500"]
    plot = curve_over_pairs(found)
    assert plot is not None
    assert plot.lines[0].points == ((1500, 11.5), (6000, 30.5), (24000, 40))
    first, second, third = (plot.across(x) for x, _ in plot.lines[0].points)
    assert second - first == pytest.approx(third - second)  # four times as many take the same room everywhere


def test_two_numbers_make_no_curve_and_no_table_is_no_mistake(tmp_path: Path) -> None:
    path = table(
        tmp_path, "base,As it is,round_1,6000,30.5", "web_1500,Fewer,round_1,1500,11.5", "web_3000,x,round_1,,"
    )
    assert curve_over_pairs(read_ablations(path)) is None
    nothing = read_ablations(tmp_path / "absent.csv")
    assert not nothing
    assert curve_over_pairs(nothing) is None


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ablations.csv"
    path.write_text("step,loss\n1,2\n", encoding="utf-8")
    with pytest.raises(ShardError, match="no column name, what, round, novel AP, web pairs; glip ablations writes it"):
        read_ablations(path)
