"""Figures that read their labels from the tables they draw."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

CORRUPTED_AND_CLEAN = (0, 1)


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
    ax.set_ylabel("recovered (0 = corrupted, 1 = clean)")


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


def numbers(frame: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """Round a table for reading beside its figure, with -0.00 written as 0.00."""
    return frame.round(digits) + 0.0
