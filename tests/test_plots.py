"""Figures show what the tables hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.plots import heatmap, heatmaps, layer_lines, numbers, spread, strongest


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


@pytest.fixture
def grid():
    table = pd.DataFrame([[0.0, 0.5], [-0.2, 1.0], [0.001, -0.001]])
    table.index.name, table.columns = "layer", pd.Index(["0 After", "1 John"], name="position")
    table.attrs["measure"] = "recovered"
    return table


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_heatmap_shows_every_value_under_its_label(grid):
    ax = heatmap(grid)
    mesh = ax.collections[0]
    assert np.allclose(mesh.get_array().reshape(grid.shape), grid.to_numpy())
    assert (labels(ax.xaxis), labels(ax.yaxis)) == (["0 After", "1 John"], ["0", "1", "2"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("position", "layer")
    assert mesh.get_clim() == (-1, 1)
    assert "0 = corrupted" in mesh.colorbar.ax.get_ylabel()


def test_white_is_zero(grid):
    mesh = heatmap(grid).collections[0]
    *colour, _ = mesh.to_rgba(0.0)
    assert min(colour) > 0.95


def test_white_can_be_another_value(grid):
    mesh = heatmap(1 - grid, centre=1).collections[0]
    *colour, _ = mesh.to_rgba(1.0)
    assert min(colour) > 0.95
    assert mesh.get_clim() == (0, 2)


def test_layers_are_drawn_upwards_and_other_rows_downwards(grid):
    bottom, top = heatmap(grid).get_ylim()
    assert bottom < top
    bottom, top = heatmap(grid.rename_axis(index="from")).get_ylim()
    assert bottom > top


def test_heatmap_writes_values_on_request(grid):
    written = [text.get_text() for text in heatmap(grid, annotate=True).texts]
    assert written == ["0.00", "0.50", "-0.20", "1.00", "0.00", "0.00"]


def test_heatmap_of_heads_by_position_joins_their_names(grid):
    grid.index = pd.MultiIndex.from_tuples([(1, 5), (2, 0), (2, 7)], names=["layer", "head"])
    ax = heatmap(grid)
    assert (labels(ax.yaxis), ax.get_ylabel()) == (["1.5", "2.0", "2.7"], "layer.head")


def test_next_to_nothing_is_drawn_as_next_to_nothing(grid):
    assert heatmap(grid * 1e-6).collections[0].get_clim() == (-0.1, 0.1)
    assert heatmap(grid, limit=3).collections[0].get_clim() == (-3, 3)


def test_the_scale_does_not_go_below_zero_where_no_value_does(grid):
    bar = heatmap(grid.abs()).collections[0].colorbar.ax
    assert bar.get_ylim() == (0, 1)


def test_heatmaps_share_one_scale(grid):
    axes = heatmaps({"one": grid, "twice": 2 * grid}, label="units")
    assert [ax.get_title() for ax in axes] == ["one", "twice"]
    assert {ax.collections[0].get_clim() for ax in axes} == {(-2, 2)}
    assert axes[0].figure is axes[1].figure


def test_heatmap_refuses_what_it_cannot_draw(grid, sweep):
    with pytest.raises(ValueError, match=r"rows for each prompt: choose one with table.loc\[0\]"):
        heatmap(sweep)
    with pytest.raises(ValueError, match="empty"):
        heatmap(grid.iloc[:0])
    with pytest.raises(ValueError, match="not finite"):
        heatmap(grid.replace(0.5, np.nan))
    with pytest.raises(ValueError, match="nothing to draw"):
        heatmaps({})


def test_strongest_cells_come_first(grid):
    table = strongest(grid, count=3)
    assert list(table) == ["layer", "position", "value"]
    assert table["value"].tolist() == [1.0, 0.5, -0.2]
    assert table["position"].tolist() == ["1 John", "1 John", "0 After"]
    by_head = pd.DataFrame([[0.1, -0.7]], columns=pd.RangeIndex(2, name="head"))
    assert strongest(by_head.rename_axis("layer"), 1)["head"].tolist() == [1]
