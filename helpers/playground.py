"""The playground: several parts patched at once, the result as a table and as code."""

import re
from collections.abc import Generator, Sequence

import ipywidgets as w
import pandas as pd

from helpers.controls import CellSet, Choice, TokenChips, coloured_table, decimal, row
from helpers.engine import Part
from helpers.patching import Plan, plan_heads, plan_positions, plan_together
from helpers.plots import numbers
from helpers.widgets import DIRECTIONS, SITES, UNPATCHED, Explorer, Steps, titled
from helpers.written_out import write_code

HEADS = {"z: heads": "z"}
TOGETHER = "together"


class Playground(Explorer):
    """Patch any set of heads, or of layers and positions, in one run.

    The set is a line of text that can be written, and clicks on cells of the grid add to it and
    take away. Names are those of `name_part`.

    Attributes:
        shown: the grid of single parts, and what the chosen parts do, alone and together, in
            both directions; there is no second table while none are chosen.
        code: the experiment as plain nnsight, from `write_code`.
    """

    def make_controls(self) -> Sequence[w.Widget]:
        """Choose a site, a direction, the position of heads, and the set of parts."""
        self.site = Choice("site", HEADS | SITES)
        self.direction = Choice("direction", DIRECTIONS)
        self.position = TokenChips()
        parts = [Part(*head) for head in sorted(self.strongest_heads(2))]
        self.parts = w.Text(
            value=name_parts(parts),
            description="patched together",
            continuous_update=False,
            style={"description_width": "initial"},
            layout=w.Layout(width="30em", max_width="98%"),
        )
        self.clear = w.Button(description="Clear the set")
        self.values = w.Checkbox(description="show numbers", indent=False)
        self.site.observe(self.clear_parts, "value")
        self.clear.on_click(self.clear_parts)
        for control in (self.site, self.direction, self.position, self.parts):
            control.observe(self.changed, "value")
        self.values.observe(lambda change: self.grid.set_trait("numbers", change["new"]), "value")
        return self.site, self.direction, self.values, self.position, row(self.parts, self.clear)

    def make_result(self) -> Sequence[w.Widget]:
        """Show the grid, predictions, effects, and texts to copy."""
        self.grid = CellSet(self.toggle)
        self.answers, self.effects = w.HTML(), w.HTML()
        self.table, self.code = text_to_copy("table", 8), text_to_copy("code", 34)
        return row(self.grid, w.VBox([self.answers, self.effects])), self.table, self.code

    def fit_to_model(self) -> None:
        """Forget parts that the model may not have."""
        self.position.value = None
        self.clear_parts()

    def clear_parts(self, _: object = None) -> None:
        """Take all parts out of the set."""
        self.parts.value = ""

    def part_of(self, cell: tuple[int, int]) -> Part:
        """Say what a cell of the grid patches."""
        layer, column = cell
        if self.site.value == "z":
            return Part(layer, column, self.position.value)
        return Part(layer, position=column)

    def toggle(self, cell: tuple[int, int]) -> None:
        """Put a cell's part into the set, or take it out."""
        part, parts = self.part_of(cell), self.chosen_parts()
        others = [other for other in parts if other != part]
        self.parts.value = name_parts(others if part in parts else [*parts, part])

    def chosen_parts(self) -> list[Part]:
        """List the parts of the set, each once."""
        names = re.split(r"[\s,]+", self.parts.value.strip())
        heads = self.site.value == "z"
        return [*dict.fromkeys(read_part(name, heads=heads) for name in names if name)]

    def plan_grid(self) -> Plan:
        """Plan the sweep over single parts."""
        if self.site.value == "z":
            return plan_heads(self.model, self.position.value)
        return plan_positions(self.model, self.pair, self.site.value)

    def update(self) -> Generator[None, None, str]:
        """Show the grid of single parts, and what those of the set do together."""
        site, direction, parts = self.site.value, self.direction.value, self.chosen_parts()
        self.position.show(self.position_labels())
        self.position.layout.display = "flex" if site == "z" else "none"
        singles = yield from self.sweep(self.plan_grid(), direction, position=self.position.value)
        self.shown = {f"{site}, {direction}": singles}
        self.centre = UNPATCHED[direction]
        self.grid.show(singles, self.centre)
        self.grid.chosen = {cell for cell in self.grid.cells if self.part_of(cell) in parts}
        if parts:
            yield from self.show_set(parts, site, direction)
        for shown in (self.answers, self.effects, self.code):
            shown.layout.display = "flex" if parts else "none"
        self.table.value = "\n".join(map(as_text, self.shown.items()))
        if not parts:
            return "Nothing is patched together: click cells, or write their names."
        value = decimal(self.shown[TOGETHER].iloc[-1][direction])
        return f"{name_parts(parts)}, patched at once, {direction}: {value} recovered."

    def show_set(self, parts: Sequence[Part], site: str, direction: str) -> Steps:
        """Show predictions, effects and code of the set."""
        names = {name_part(part): [part] for part in parts}
        plan = plan_together(names | {TOGETHER: parts}, site)
        effects = pd.DataFrame()
        for one in DIRECTIONS.values():
            table = yield from self.sweep(plan, one, set=tuple(parts))
            effects[one] = table["recovered"]
        self.shown[TOGETHER] = effects
        written = coloured_table(effects, centre=pd.Series(UNPATCHED))
        self.effects.value = titled("recovered, alone and together", written)
        self.answers.value = self.predict(parts, site, direction)
        self.code.value = write_code(self.model, self.pair, parts, site=site, direction=direction)


def name_part(part: Part) -> str:
    """Name a part: `2.0` is head 0 of layer 2, `2` all of layer 2, `@9` adds the position."""
    name = str(part.layer) if part.head is None else f"{part.layer}.{part.head}"
    return name if part.position is None else f"{name}@{part.position}"


def name_parts(parts: Sequence[Part]) -> str:
    """Name parts, with spaces between."""
    return " ".join(map(name_part, parts))


def read_part(name: str, *, heads: bool) -> Part:
    """Turn a name of `name_part` back into the part.

    Raises:
        ValueError: the name is not one of a head, if heads are wanted, or of a layer, if not.
    """
    found = re.fullmatch(r"(\d+)(?:\.(\d+))?(?:@(\d+))?", name)
    layer, head, position = (
        number and int(number) for number in (found.groups() if found else (None,) * 3)
    )
    if layer is None or (head is not None) != heads:
        what, example = ("a head", "2.0") if heads else ("a layer", "2")
        raise ValueError(
            f"{name!r} does not name {what}: write {example}, for example, or {example}@9 to "
            "patch position 9 alone."
        )
    return Part(layer, head, position)


def as_text(named: tuple[str, pd.DataFrame]) -> str:
    """Write a table with its name above and tabs between, as spreadsheets take it."""
    name, table = named
    return f"{name}\n{numbers(table, 3).to_csv(sep=chr(9))}"


def text_to_copy(label: str, rows: int) -> w.Textarea:
    """Make a field for text that is to be copied."""
    field = w.Textarea(
        description=label,
        rows=rows,
        style={"description_width": "initial"},
        layout=w.Layout(width="98%"),
    )
    field.add_class("patching-code")
    return field
