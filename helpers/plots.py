"""Figures that read their labels from the tables they draw."""

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

CORRUPTED_AND_CLEAN = (0, 1)
SCALE = "recovered\n(0 = corrupted, 1 = clean)"
# Orange to purple, which colour-blind readers can tell apart; white is 0.
DIVERGING = "PuOr_r"
SMALLEST_LIMIT = 0.1
WIDEST = 15.5


def layer_lines(sweeps: Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Draw layer sweeps as lines over the layers, one line for each entry of `sweeps`.

    Args:
        sweeps: tables from `patch_layers`, each under the name it has in the legend. Where a
            table has a row level `prompt`, the line is the mean over prompts and the bars are
            one standard deviation to each side.
        ax: where to draw; without it, a new figure.

    Raises:
        ValueError: there is nothing to draw, or the tables measure different things.
    """
    columns = sorted({column for sweep in sweeps.values() for column in sweep.columns})
    if len(columns) != 1:
        raise ValueError(
            f"Lines need one or more sweeps of one metric, but the columns are {columns}."
        )
    ax = ax or plt.subplots(figsize=(7, 4))[1]
    long = pd.concat([sweep.reset_index().assign(sweep=name) for name, sweep in sweeps.items()])
    sns.lineplot(
        long,
        x="layer",
        y=columns[0],
        hue="sweep",
        style="sweep",
        markers=True,
        dashes=False,
        errorbar="sd",
        err_style="bars",
        palette="colorblind",
        ax=ax,
    )
    ax.set_xticks(sorted(long["layer"].unique()))
    if columns == ["recovered"]:
        mark_scale(ax)
    ax.legend(title=None)
    return ax


def mark_scale(ax: Axes) -> None:
    """Draw the two ends of the scale, 0 = corrupted run and 1 = clean run, as thin lines."""
    for value in CORRUPTED_AND_CLEAN:
        ax.axhline(value, color="gray", linewidth=0.8, zorder=0)
    ax.set_ylabel(SCALE)


def spread(
    values: pd.DataFrame, x: str, by: str, label: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw every single value as a point, one row of points for each group.

    Args:
        values: one row per prompt.
        x: the column that is drawn along the axis.
        by: the column that tells the groups apart.
        label: what the axis says; without it, the name of the column.
        ax: where to draw; without it, a new figure.

    Raises:
        ValueError: there is no such column.
    """
    for column in (x, by):
        if column not in values:
            raise ValueError(f"There is no column {column!r}; there are {', '.join(values)}.")
    ax = ax or plt.subplots(figsize=(7, 1 + 0.8 * values[by].nunique()))[1]
    sns.swarmplot(values, x=x, y=by, hue=by, palette="colorblind", size=4, legend=False, ax=ax)
    ax.axvline(0, color="gray", linewidth=0.8, zorder=0)
    ax.set_xlabel(label or x)
    return ax


def heatmap(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    label: str | None = None,
    centre: float = 0,
    limit: float | None = None,
    annotate: bool = False,
) -> Axes:
    """Draw a table as coloured cells, white where it is 0, with its own labels on the axes.

    Layers are drawn from the bottom up, as the model computes them.

    Args:
        table: of numbers, without a row level `prompt`: choose a prompt or take a mean first.
        ax: where to draw; without it, a new figure.
        label: what the colours mean; without it, what the table says itself.
        centre: the value that is white, if not 0: for a noised table 1, what the run recovers
            without a patch.
        limit: how far from white the strongest colour is, to compare figures; without it, as
            far as any value in the table, and at least `SMALLEST_LIMIT`, so that nothing looks
            like something because all is small.
        annotate: write each value into its cell.

    Raises:
        ValueError: the table is empty, has values that are not finite, or rows for each prompt.
    """
    check_grid(table)
    table = join_levels(table)
    ax = ax or plt.subplots(figsize=size_for(table))[1]
    limit = limit or find_limit(table, centre)
    sns.heatmap(
        table,
        ax=ax,
        cmap=DIVERGING,
        vmin=centre - limit,
        vmax=centre + limit,
        annot=numbers(table) if annotate else None,
        fmt=".2f",
        linewidths=0.3,
        linecolor="lightgray",
        cbar_kws={"label": describe_measure(table) if label is None else label},
    )
    if (table >= centre).all(axis=None):
        ax.collections[0].colorbar.ax.set_ylim(centre, centre + limit)
    if str(table.index.name).startswith("layer"):
        ax.invert_yaxis()
    ax.tick_params(axis="y", rotation=0)
    return ax


def heatmaps(
    tables: Mapping[str, pd.DataFrame], *, label: str | None = None, annotate: bool = False
) -> list[Axes]:
    """Draw tables with one scale of colours, each under its name, side by side if they fit.

    Takes and raises the same as `heatmap`.
    """
    if not tables:
        raise ValueError("There is nothing to draw: give at least one table.")
    for table in tables.values():
        check_grid(table)
    limit = max(map(find_limit, tables.values()))
    width, height = size_for(join_levels(next(iter(tables.values()))))
    columns = min(len(tables), max(1, int(WIDEST // width)))
    rows = math.ceil(len(tables) / columns)
    figure = plt.figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(len(tables))]
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        heatmap(table, ax, label=label, limit=limit, annotate=annotate).set_title(name)
    return axes


def check_grid(table: pd.DataFrame) -> None:
    """Raise a `ValueError` unless a table can be drawn as it is."""
    if "prompt" in table.index.names:
        raise ValueError(
            "The table has rows for each prompt: choose one with table.loc[0], or take the mean "
            'over prompts with table.groupby("layer").mean().'
        )
    if table.empty:
        raise ValueError("The table is empty: there is nothing to draw.")
    if not np.isfinite(table.to_numpy(dtype=float)).all():
        raise ValueError("The table has values that are not finite numbers.")


def join_levels(table: pd.DataFrame) -> pd.DataFrame:
    """Write rows of several levels as one, as in `2.0` for layer 2, head 0."""
    if table.index.nlevels == 1:
        return table
    joined = [".".join(map(str, row)) for row in table.index]
    return table.set_axis(pd.Index(joined, name=".".join(table.index.names)))


def find_limit(table: pd.DataFrame, centre: float = 0) -> float:
    """Find how far from white, which stands for `centre`, the strongest colour is."""
    return max(float((table - centre).abs().max(axis=None)), SMALLEST_LIMIT)


def size_for(table: pd.DataFrame) -> tuple[float, float]:
    """Choose a figure's width and height in inches for so many cells."""
    rows, columns = table.shape
    column_width = 0.42 if columns <= 12 else 0.3
    return max(4.0, 1.7 + column_width * columns), max(2.2, 1.1 + 0.3 * rows)


def describe_measure(table: pd.DataFrame) -> str:
    """Say what a table's numbers are, if it says so itself."""
    measure = table.attrs.get("measure", "")
    return SCALE if measure == "recovered" else measure


def numbers(frame: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """Round a table for reading beside its figure, with -0.00 written as 0.00."""
    return frame.round(digits) + 0.0


def strongest(table: pd.DataFrame, count: int = 8, digits: int = 2) -> pd.DataFrame:
    """List the cells of a table that are farthest from 0, strongest first, rounded.

    Returns:
        One row per cell, with the names of its row and column, and its `value`.
    """
    cells = table.stack(list(range(table.columns.nlevels))).rename("value")
    order = cells.abs().sort_values(ascending=False, kind="stable").index[:count]
    return numbers(cells.loc[order].to_frame(), digits).reset_index()
