"""Figures from rows against slow references; comparisons and a page's table on made rows."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from uid.bench.cli import main
from uid.bench.rows import LatencyRow, read_rows, write_csv, write_rows
from uid.bench.speed import summary
from uid.bench.speed.summary import (
    CONFIDENCE,
    fewest_repeats,
    fit_line,
    interquartile_range,
    rank,
    summarise,
    ways_to_lose,
)
from uid.bench.speed.tables import BEGIN, END
from uid.errors import InputError

ROW = LatencyRow(
    runner="onnxruntime",
    height=64,
    width=96,
    steps=4,
    repeat=0,
    seconds=2.0,
    prepare=0.3,
    step=1.6,
    finish=0.1,
    load_seconds=0.5,
    peak_bytes=200_000_000,
    flops=3_000_000_000,
    flop_ceiling=6e9,
    copy_ceiling=1e10,
    psnr=80.0,
    max_difference=0.001,
    against="pytorch, fp32",
    threads=2,
    bundle="tiny",
    trained=False,
    precision="fp32",
    guidance=7.5,
    seed=0,
    device="a machine",
    versions={"uid": "0.1.0"},
)


def repeats(*seconds: float, **changes: object) -> list[LatencyRow]:
    return [replace(ROW, repeat=i, seconds=value, **changes) for i, value in enumerate(seconds)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("count_a", "count_b"), [(1, 1), (1, 4), (3, 3), (4, 2), (5, 4), (4, 4), (6, 5)])
def test_the_interval_has_the_rank_that_all_orders_give(count_a: int, count_b: int) -> None:
    ranks = range(count_a + count_b)
    lost = [0] * (count_a * count_b + 1)
    for a in itertools.combinations(ranks, count_a):
        lost[sum(y < x for x in a for y in set(ranks) - set(a))] += 1
    assert ways_to_lose(count_a, count_b) == lost
    sure = [k for k in range(1, len(lost) // 2 + 1) if 2 * sum(lost[:k]) <= (1.0 - CONFIDENCE) * sum(lost)]
    assert rank(count_a, count_b) == max(sure, default=0)


def test_ratio_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        a, b = rng.lognormal(0.0, 0.5, 7), 1.5 * rng.lognormal(0.0, 0.5, 7)
        found = summary.ratio(("", 0, 0, 0), a.tolist(), b.tolist())
        assert found.low is not None
        assert found.high is not None
        assert found.ratio == pytest.approx(np.median(b) / np.median(a))
        assert found.low <= found.ratio <= found.high
        held += found.low <= 1.5 <= found.high
    assert 945 <= held <= 980  # 96.2 % for seven and seven


def test_spread_and_line_against_numpy() -> None:
    rng = np.random.default_rng(1)
    values = rng.random(11)
    assert interquartile_range(values.tolist()) == pytest.approx(np.subtract(*np.percentile(values, [75, 25])))
    assert interquartile_range([3.0]) == 0.0
    x, y = rng.random(9), rng.random(9)
    line = fit_line(list(zip(x.tolist(), y.tolist(), strict=True)))
    assert line is not None
    slope, start = np.polyfit(x, y, 1)
    assert (line.slope, line.start) == (pytest.approx(slope), pytest.approx(start))
    assert line.miss == pytest.approx(np.abs(y - start - slope * x).max() / np.ptp(y))


def test_a_parabola_is_no_line_and_two_points_are_nothing() -> None:
    straight, curved = (fit_line([(float(x), f) for x, f in enumerate(ys)]) for ys in ([5, 7, 9, 11], [0, 1, 4, 9]))
    assert straight is not None
    assert curved is not None
    assert (straight.start, straight.slope, straight.straight) == (pytest.approx(5.0), pytest.approx(2.0), True)
    assert not curved.straight
    assert fit_line([(1.0, 1.0), (2.0, 2.0), (2.0, 3.0)]) is None


def test_summary_of_repeats() -> None:
    rows = repeats(2.0, 1.0, 4.0) + repeats(1.0, steps=8) + [replace(ROW, repeat=3, seconds=3.0, psnr=39.0)]
    first, other = summarise(rows)
    assert (first.repeats, first.seconds, first.spread) == (4, 2.5, pytest.approx(1.5))
    assert (first.flop_rate, first.of_peak) == (pytest.approx(1.2e9), pytest.approx(0.2))
    assert first.seconds_per_step == pytest.approx(0.4)
    assert (first.psnr, first.sound) == (39.0, False)
    assert (other.steps, other.sound) == (8, True)


# -- commands on made rows --------------------------------------------------------------------------------------------


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    rows = repeats(1.0, 2.0)
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    write_csv(tmp_path / "rows.csv", rows)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[1].startswith("onnxruntime,64,96,4,0,1.0,")
    (tmp_path / "rows.jsonl").write_text('{"psnr": 1}\n')
    with pytest.raises(InputError, match="line 1: expected a row as `uid-bench latency -o` writes them"):
        read_rows(tmp_path / "rows.jsonl")


def test_compare_says_what_can_be_said(tmp_path: Path) -> None:
    steady = [1.0 + 0.01 * i for i in range(7)]
    a = repeats(*steady) + repeats(*steady, steps=8) + repeats(*steady, runner="openvino") + repeats(1.0, steps=9)
    b = repeats(*(0.5 * s for s in steady)) + repeats(*(1.01 * s for s in steady), steps=8)
    b += repeats(*(2.0 * s for s in steady), runner="openvino", psnr=20.0)
    write_rows(tmp_path / "a.jsonl", a)
    write_rows(tmp_path / "b.jsonl", [replace(row, device="another") for row in b])
    result = CliRunner().invoke(main, ["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    pairs = sorted(0.5 * y / x for x in steady for y in steady)
    interval = f"{pairs[8]:.3f} to {pairs[-9]:.3f}"  # the ninth of 49: tables of U for seven and seven say 8
    assert lines[2] == f"| onnxruntime | 64x96 | 4 | 0.500 | {interval} | B is faster |"
    assert "| 8 | 1.010 |" in lines[3]
    assert lines[3].endswith("no difference shown: the interval contains 1 |")
    assert lines[4].endswith("B is slower |")
    assert "openvino, 64x96, 4 steps: 20.0 dB is another image" in result.output
    assert f"only in {tmp_path / 'a.jsonl'}: onnxruntime, 64x96, 9 steps" in result.output
    assert "device differs: a machine in" in result.output


def test_few_repeats_are_no_comparison() -> None:
    few = fewest_repeats()
    assert few == 4
    (found,) = summary.compare(repeats(*[1.0] * (few - 1)), repeats(*[9.0] * (few - 1)))
    assert (found.ratio, found.low) == (9.0, None)
    assert found.verdict == "too few repeats to tell: 4 are needed"


def test_report_writes_the_table_and_holds_the_page_to_it(tmp_path: Path) -> None:
    page, rows = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_rows(rows, repeats(2.0, 1.0, 4.0) + repeats(0.001, runner="fast", psnr=12.0))
    words = ["report", str(page), str(rows)]
    assert CliRunner().invoke(main, [*words, "--check"]).exit_code == 1
    assert "old" in page.read_text()
    assert CliRunner().invoke(main, words).exit_code == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\nBundle `tiny` (fp32, random weights) on a machine, 2 threads; uid 0.1.0.")
    assert text.endswith(f"\n{END}\nafter\n")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[2] == "| onnxruntime | 64x96 | 4 | 2 (1.5) | 400 | 0.3, 0.1 | 1.5, 25% | 200 | 0.5 | 80.0 |"
    assert table[3].endswith("12.0 WRONG |")
    assert "| 25 |" in table[4]
    assert len({line.count("|") for line in table}) == 1
    assert CliRunner().invoke(main, [*words, "--check"]).exit_code == 0
    page.write_text(text.replace("| 400 |", "| 300 |"))
    assert CliRunner().invoke(main, [*words, "--check"]).exit_code == 1
    page.write_text("no markers")
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert BEGIN in result.output
