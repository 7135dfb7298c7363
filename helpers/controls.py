"""The parts that explorers are made of: labelled choices, a grid of cells, prompts, tables.

They are ordinary ipywidgets, using only what ipywidgets 7.7 and 8 share. What they show stands as
a value in `HTML` and `Button` parts, so that it can be read and tested without a browser. Every
control has a visible label, which is also its accessible name; sliders have none in JupyterLab,
so there are no sliders.
"""

import html
from collections.abc import Callable, Hashable, Mapping, Sequence

import ipywidgets as w
import numpy as np
import pandas as pd
import traitlets
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex
from transformers import PreTrainedTokenizerBase

from helpers.plots import DIVERGING, find_limit
from helpers.prompts import PromptPair, check_pair, load_pairs, token_labels

LONGEST_PROMPT = 40
# How much red, green and blue add to relative luminance, and below which luminance white text
# has more contrast than black (WCAG 2.2, definitions of both).
LUMINANCE = (0.2126, 0.7152, 0.0722)
DARK = 0.179
STYLE = """<style>
.patching-cell.jupyter-button {min-width: 0; width: 42px; height: 26px; margin: 0; padding: 0;
  font-size: 11px; line-height: 26px; color: #111; border: 1px solid #bbb}
.patching-cell.patching-dark.jupyter-button {color: #fff}
.patching-chip.jupyter-button {width: auto; margin: 1px; padding: 0 6px}
.patching-chosen.jupyter-button {outline: 3px solid #d81b60; outline-offset: -3px}
.patching-table {border-collapse: collapse; font-size: 12px; line-height: 1.3}
.patching-table th, .patching-table td {padding: 1px 5px; text-align: right; font-weight: normal}
.patching-table th[scope=row] {white-space: nowrap}
.patching-table td.coloured {min-width: 2.2em; border: 1px solid #bbb}
.patching-header {display: grid; gap: 3px; font-size: 11px; line-height: 1.2; align-items: end}
.patching-label {text-align: center; overflow-wrap: anywhere}
.patching-code textarea {font-family: var(--jp-code-font-family, monospace); font-size: 12px;
  white-space: pre}
.patching-chips {margin: 0; padding: 0}
.patching-chips li {display: inline-block; margin: 1px; padding: 0 5px; border: 1px solid #999;
  border-radius: 3px; list-style: none}
.patching-chips li.differs {border: 2px solid #d81b60; font-weight: bold}
</style>"""


class Choice(w.Dropdown):
    """A dropdown with a label, as wide as what is in it."""

    def __init__(self, label: str, options: Sequence | Mapping, value: Hashable = None) -> None:
        wide = {"description_width": "initial"}
        if isinstance(options, Mapping):
            options = [*options.items()]
        super().__init__(description=label, options=options, style=wide, layout=fitting())
        if value is not None:
            self.value = value


class Number(w.BoundedIntText):
    """A whole number from 0 on, with a label; arrow keys change it."""

    def __init__(self, label: str, count: int, value: int = 0) -> None:
        wide = {"description_width": "initial"}
        layout = w.Layout(width="9em")
        super().__init__(
            value=value, min=0, max=count - 1, description=label, style=wide, layout=layout
        )


def fitting() -> w.Layout:
    """Make a part as wide as what is in it."""
    return w.Layout(width="max-content")


def colours_of(values: pd.DataFrame, limit: float) -> list[list[tuple[str, bool]]]:
    """Give each value the colour that `helpers.plots.heatmap` gives it, and whether it is dark."""
    shades = colormaps[DIVERGING](Normalize(-limit, limit)(values.to_numpy()))[..., :3]
    linear = np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    dark = linear @ LUMINANCE < DARK
    return [
        [(to_hex(shade), bool(is_dark)) for shade, is_dark in zip(*line, strict=True)]
        for line in zip(shades, dark, strict=True)
    ]


def coloured_table(
    table: pd.DataFrame, limit: float | None = None, centre: float | pd.Series = 0
) -> str:
    """Write a table of numbers as HTML, coloured like a heatmap, layers from the bottom up.

    Limit and centre are those of `helpers.plots.heatmap`; each column may have its own centre.
    """
    values = table.to_numpy()
    distances = table - centre
    colours = colours_of(distances, limit or find_limit(distances))
    head = "".join(f"<th scope='col'>{html.escape(str(label))}</th>" for label in table.columns)
    rows = []
    for label, *line in zip(table.index, values, colours, strict=True):
        name = ".".join(map(str, label)) if isinstance(label, tuple) else str(label)
        cells = "".join(coloured_cell(*cell) for cell in zip(*line, strict=True))
        rows.append(f"<tr><th scope='row'>{html.escape(name)}</th>{cells}</tr>")
    if table.index.name == "layer":
        rows.reverse()
    corner = html.escape(".".join(name or "" for name in table.index.names))
    return f"<table class='patching-table'><tr><th>{corner}</th>{head}</tr>{''.join(rows)}</table>"


def coloured_cell(value: float, colour: tuple[str, bool]) -> str:
    """Write one number as a coloured cell."""
    background, dark = colour
    text = "#fff" if dark else "#111"
    style = f"background:{background};color:{text}"
    return f"<td class='coloured' style='{style}'>{decimal(value)}</td>"


def decimal(value: float, digits: int = 2) -> str:
    """Write a number rounded, without a minus sign before zeros."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def predictions_table(table: pd.DataFrame) -> str:
    """Write the likeliest next tokens of the three runs as HTML."""
    head = "".join(f"<th scope='col'>{name}</th>" for name in table.columns)
    rows = "".join(
        f"<tr><th scope='row'><code>{html.escape(token)}</code></th>"
        + "".join(f"<td>{share_bar(share)}</td>" for share in shares)
        + "</tr>"
        for token, shares in zip(table.index, table.to_numpy(), strict=True)
    )
    return f"<table class='patching-table'><tr><th>next token</th>{head}</tr>{rows}</table>"


def share_bar(share: float) -> str:
    """Write a probability as a percentage on a bar."""
    bar = f"linear-gradient(to right, #5e3c9966 {share:.0%}, transparent {share:.0%})"
    return f"<div style='min-width:6em;background:{bar}'>{share:.1%}</div>"


class Grid(w.VBox):
    """A heatmap whose cells are buttons.

    Attributes:
        value: the chosen cell, (row, column), counted from 0.
        numbers: whether cells show their values; they are in the tooltips at any rate.
    """

    value = traitlets.Tuple((0, 0))
    numbers = traitlets.Bool(False)

    def __init__(self, value: tuple[int, int] = (0, 0)) -> None:
        self.table, self.centre = pd.DataFrame(), 0.0
        self.header, self.box = w.HTML(), w.GridBox()
        self.layout_of_cells = w.Layout(width="auto")
        self.cells: dict[tuple[int, int], w.Button] = {}
        self.labels: dict[int, w.HTML] = {}
        super().__init__([self.header, self.box])
        self.value = value
        self.observe(self.mark, "value")
        self.observe(lambda _: self.paint(), "numbers")

    def show(self, table: pd.DataFrame, centre: float = 0) -> None:
        """Show a table, on the cells that are there and more where they are needed.

        Args:
            table: of numbers.
            centre: the value that is white.
        """
        resized = table.shape != self.table.shape
        self.table, self.centre = table, centre
        self.header.value = self.write_header()
        if resized:
            self.arrange()
        self.paint()

    def template(self) -> str:
        """Give the widths of the columns, in the language of CSS; no word of a label is broken."""
        longest = [max(map(len, str(label).split())) for label in self.table.columns]
        return " ".join(["60px", *(f"{max(42, 8 + 7 * length)}px" for length in longest)])

    def write_header(self) -> str:
        """Write the labels of the columns as HTML."""
        labels = "".join(
            f"<span class='patching-label'>{html.escape(str(label))}</span>"
            for label in self.table.columns
        )
        names = html.escape(f"{self.table.index.name} \\ {self.table.columns.name}")
        style = f"grid-template-columns:{self.template()}"
        return f"<div class='patching-header' style='{style}'><span>{names}</span>{labels}</div>"

    def arrange(self) -> None:
        """Put as many cells as the table has into rows, layers from the bottom up."""
        rows, columns = self.table.shape
        parts = []
        for row in reversed(range(rows)):
            parts += [self.label(row), *(self.cell(row, column) for column in range(columns))]
        self.box.children = parts
        layout = self.box.layout
        layout.grid_template_columns, layout.grid_gap = self.template(), "3px"
        layout.grid_auto_rows = "26px"
        row, column = self.value
        self.value = (min(row, rows - 1), min(column, columns - 1))
        self.mark()

    def label(self, row: int) -> w.HTML:
        """Give the label of a row, made when it is first needed."""
        if row not in self.labels:
            self.labels[row] = w.HTML(layout=w.Layout(margin="0"))
        self.labels[row].value = f"<span style='font-size:11px'>{self.table.index[row]}</span>"
        return self.labels[row]

    def cell(self, row: int, column: int) -> w.Button:
        """Give the button of a cell, made when it is first needed."""
        if (row, column) not in self.cells:
            cell = w.Button(layout=self.layout_of_cells)
            cell.add_class("patching-cell")
            cell.on_click(lambda _: self.choose((row, column)))
            self.cells[row, column] = cell
        return self.cells[row, column]

    def choose(self, cell: tuple[int, int]) -> None:
        """Choose a cell, as a click does."""
        self.value = cell

    def paint(self) -> None:
        """Colour the cells by their values and describe them."""
        distances = self.table - self.centre
        colours = colours_of(distances, find_limit(distances))
        rows, columns = self.table.index, self.table.columns
        for (row, column), value in np.ndenumerate(self.table.to_numpy()):
            cell = self.cells[row, column]
            colour, dark = colours[row][column]
            cell.style.button_color = colour
            # One message to the browser instead of three: there may be hundreds of cells.
            with cell.hold_sync():
                (cell.add_class if dark else cell.remove_class)("patching-dark")
                cell.description = decimal(value) if self.numbers else ""
                cell.tooltip = (
                    f"{rows.name} {rows[row]}, {columns.name} {columns[column]}: {decimal(value)}"
                )

    def mark(self, _: object = None) -> None:
        """Outline the chosen cell."""
        for place, cell in self.cells.items():
            (cell.add_class if self.is_chosen(place) else cell.remove_class)("patching-chosen")

    def is_chosen(self, cell: tuple[int, int]) -> bool:
        """Tell whether a cell is outlined."""
        return cell == self.value


class CellSet(Grid):
    """A heatmap of which any number of cells are chosen.

    Attributes:
        chosen: the cells that are outlined, each (row, column).
    """

    chosen = traitlets.Set()

    def __init__(self, toggle: Callable[[tuple[int, int]], None]) -> None:
        super().__init__()
        self.toggle = toggle
        self.observe(self.mark, "chosen")

    def choose(self, cell: tuple[int, int]) -> None:
        """Pass on that a cell was clicked."""
        self.toggle(cell)

    def is_chosen(self, cell: tuple[int, int]) -> bool:
        """Tell whether a cell is outlined."""
        return cell in self.chosen


class TokenChips(w.HBox):
    """The tokens of a prompt as buttons, one of which is chosen, after `all positions`.

    Attributes:
        value: the chosen position, or None for all.
    """

    value = traitlets.Int(None, allow_none=True)

    def __init__(self, value: int | None = None) -> None:
        super().__init__(layout=w.Layout(flex_flow="row wrap"))
        everywhere = w.Button(description="all positions", layout=fitting())
        everywhere.add_class("patching-chip")
        everywhere.on_click(lambda _: self.set_trait("value", None))
        self.made = [everywhere]
        self.value = value
        self.observe(self.mark, "value")

    def show(self, labels: Sequence[str]) -> None:
        """Show these tokens."""
        if self.value is not None and self.value >= len(labels):
            self.value = None
        self.made += [self.make_chip(place) for place in range(len(self.made) - 1, len(labels))]
        for chip, label in zip(self.made[1:], labels, strict=False):
            chip.description = label
        self.children = self.made[: len(labels) + 1]
        self.mark()

    def make_chip(self, place: int) -> w.Button:
        """Make the button of a position."""
        chip = w.Button(layout=fitting())
        chip.add_class("patching-chip")
        chip.on_click(lambda _: self.set_trait("value", place))
        return chip

    def mark(self, _: object = None) -> None:
        """Outline the chosen chip."""
        chosen = 0 if self.value is None else self.value + 1
        for number, chip in enumerate(self.children):
            (chip.add_class if number == chosen else chip.remove_class)("patching-chosen")


class PromptPicker(w.VBox):
    """Choose a pair of the prompt file, or write one.

    Attributes:
        pair: the pair, or None while what is written cannot be patched.
        reason: why it cannot; empty if it can.
    """

    pair = traitlets.Instance(PromptPair, allow_none=True)
    reason = traitlets.Unicode("")

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.kind = Choice("corruption", ["swap", "abc"])
        self.order = Choice("order", ["ABBA", "BABA"])
        self.template = Choice("template", sorted({pair.template for pair in load_pairs()}))
        first = load_pairs()[0]
        self.template.value = first.template
        self.number = Choice("prompt", range(len(self.pairs_of_file())))
        wide = w.Layout(width="44em", max_width="98%")
        label = {"description_width": "7em"}
        self.clean, self.corrupted = (
            w.Text(description=name, layout=wide, style=label) for name in ("clean", "corrupted")
        )
        self.answer, self.foil = (
            w.Text(description=name, layout=w.Layout(width="15em"), style=label)
            for name in ("answer", "foil")
        )
        self.tokens = w.HTML()
        self.texts = (self.clean, self.corrupted, self.answer, self.foil)
        super().__init__(
            [
                row(self.kind, self.order, self.template, self.number),
                self.clean,
                self.corrupted,
                row(self.answer, self.foil),
                self.tokens,
            ]
        )
        self.writing = False
        for choice in (self.kind, self.order, self.template, self.number):
            choice.observe(self.take_from_file, "value")
        for text in self.texts:
            text.observe(self.check, "value")
        self.take_from_file()

    def pairs_of_file(self) -> list[PromptPair]:
        """List the pairs that fit the choices."""
        return load_pairs(self.kind.value, self.order.value, self.template.value)

    def take_from_file(self, _: object = None) -> None:
        """Write the chosen pair of the file into the fields."""
        self.write(self.pairs_of_file()[self.number.value])

    def write(self, pair: PromptPair) -> None:
        """Write a pair into the fields."""
        self.writing = True
        self.clean.value, self.corrupted.value = pair.clean, pair.corrupted
        self.answer.value, self.foil.value = pair.answer.strip(), pair.foil.strip()
        self.writing = False
        self.check()

    def check(self, _: object = None) -> None:
        """Take over what is written if it can be patched, and say what is wrong if not."""
        if self.writing:
            return
        pair = PromptPair(
            self.clean.value.strip(),
            self.corrupted.value.strip(),
            " " + self.answer.value.strip(),
            " " + self.foil.value.strip(),
        )
        self.tokens.value = self.chips(pair)
        self.reason = self.reason_against(pair)
        self.pair = None if self.reason else pair

    def reason_against(self, pair: PromptPair) -> str:
        """Say why a pair cannot be patched, and nothing if it can."""
        try:
            self.check_pair(pair)
        except ValueError as error:
            return str(error)
        return ""

    def check_pair(self, pair: PromptPair) -> None:
        """Raise a `ValueError` unless the pair can be patched, and shown."""
        for word in (pair.answer, pair.foil):
            if not word.strip():
                raise ValueError("Answer and foil are needed: write one word into each.")
        check_pair(self.tokenizer, pair)
        length = len(self.tokenizer.encode(pair.clean))
        if length > LONGEST_PROMPT:
            raise ValueError(
                f"The prompts have {length} tokens; explorers show up to {LONGEST_PROMPT}. "
                "Shorten them, or call the sweeps yourself."
            )

    def chips(self, pair: PromptPair) -> str:
        """Write the tokens of both prompts, with those marked that differ."""
        clean, corrupted = (
            token_labels(self.tokenizer, text) if text else []
            for text in (pair.clean, pair.corrupted)
        )
        return chip_list("clean", clean, corrupted) + chip_list("corrupted", corrupted, clean)


def chip_list(name: str, labels: Sequence[str], others: Sequence[str]) -> str:
    """Write tokens as a list in HTML, with those marked that differ from the others."""
    items = "".join(
        f"<li{'' if [label] == others[n : n + 1] else ' class=differs'}>{html.escape(label)}</li>"
        for n, label in enumerate(labels)
    )
    return f"<ul class='patching-chips' aria-label='{name} tokens'>{items}</ul>"


def row(*parts: w.Widget, **layout: str) -> w.HBox:
    """Put parts side by side, on more lines where there is no room."""
    return w.HBox(parts, layout=w.Layout(flex_flow="row wrap", **layout))
