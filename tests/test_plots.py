"""Figures show what the tables hold."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers.plots import layer_lines, numbers, spread


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def sweep():
    index = pd.MultiIndex.from_product([range(2), range(3)], names=["prompt", "layer"])
    return pd.DataFrame({"recovered": [0.0, 0.2, 0.8, 0.0, 0.4, 1.0]}, index=index)


def test_lines_are_means_over_prompts(sweep):
    ax = layer_lines({"one": sweep, "half of it": sweep / 2})
    drawn = [line.get_ydata().tolist() for line in ax.lines if len(line.get_xdata()) == 3]
    assert pytest.approx([0.0, 0.3, 0.9]) in drawn
    assert pytest.approx([0.0, 0.15, 0.45]) in drawn
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "half of it"]
    assert ax.get_xticks().tolist() == [0, 1, 2]
    assert "0 = corrupted, 1 = clean" in ax.get_ylabel()


def test_bars_are_one_standard_deviation(sweep):
    ax = layer_lines({"one": sweep})
    [bars] = [c for c in ax.collections if len(c.get_segments()) == 3]
    lengths = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    std = sweep["recovered"].groupby("layer").std()
    assert lengths == pytest.approx((2 * std).tolist())


def test_lines_of_a_sweep_without_prompts(sweep):
    ax = layer_lines({"mean": sweep.groupby("layer").mean()})
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([0.0, 0.3, 0.9])


def test_sweeps_with_and_without_prompts_stand_together(sweep):
    ax = layer_lines({"each": sweep, "mean": sweep.groupby("layer").mean()})
    drawn = [line.get_ydata().tolist() for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(drawn) >= 2
    assert all(values == pytest.approx([0.0, 0.3, 0.9]) for values in drawn)


def test_lines_draw_where_they_are_told(sweep):
    ax = plt.subplots()[1]
    assert layer_lines({"one": sweep}, ax=ax) is ax


@pytest.mark.parametrize("other", [None, "logit_diff"])
def test_lines_refuse_what_cannot_stand_in_one_figure(sweep, other):
    sweeps = {"a": sweep, "b": sweep.rename(columns={"recovered": other})} if other else {}
    with pytest.raises(ValueError, match="one or more sweeps of one metric"):
        layer_lines(sweeps)


def test_spread_draws_every_value():
    values = pd.DataFrame({"clean": [1.0, 2.0, 3.0], "order": ["ABBA", "BABA", "ABBA"]})
    ax = spread(values, x="clean", by="order", label="logits")
    assert ax.get_xlabel() == "logits"
    drawn = sorted(x for points in ax.collections for x, _ in points.get_offsets())
    assert drawn == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="no column 'dirty'; there are clean, order"):
        spread(values, x="dirty", by="order")


def test_numbers_have_no_negative_zero():
    assert numbers(pd.DataFrame({"x": [-0.001, 0.456]})).to_string().split()[1:] == [
        "0", "0.00", "1", "0.46",
    ]  # fmt: skip
