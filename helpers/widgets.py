"""Explorers: choose prompts, layers, positions and heads, and see what the model answers.

An explorer is a box that holds its controls and what it shows; `helpers.controls` has the parts.
A change of a control starts the work that it needs. The work is done in steps, and between two
steps the kernel hears what else was changed: then what was begun is dropped, as it is no longer
wanted. Tables are kept, so that going back to a choice is instant.
"""

import asyncio
import html
import io
import re
import time
from collections import OrderedDict
from collections.abc import Generator, Hashable, Mapping, Sequence

import ipywidgets as w
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nnsight import TransformersModel

from helpers.controls import (
    STYLE,
    Choice,
    Grid,
    Number,
    PromptPicker,
    TokenChips,
    coloured_table,
    decimal,
    predictions_table,
    row,
)
from helpers.engine import Part
from helpers.heads import attention_patterns
from helpers.patching import (
    Experiment,
    Plan,
    likeliest_tokens,
    patch_heads,
    plan_heads,
    plan_heads_by_position,
    plan_layers,
    plan_positions,
    predictions,
)
from helpers.plots import find_limit, heatmap, heatmaps, layer_lines
from helpers.prompts import PromptPair, differing_positions, token_labels, tokenize_pairs

# A change that comes within this time of another replaces it, so that no stale work is done.
SECONDS_BEFORE_WORK = 0.03
# How often work says how far it is; screen readers announce it each time.
SECONDS_BETWEEN_REPORTS = 0.5
TABLES_KEPT = 64
DIRECTIONS = {
    "denoise: clean into corrupted": "denoise",
    "noise: corrupted into clean": "noise",
}
SITES = {
    "resid_pre: the stream before the block": "resid_pre",
    "resid_post: the stream after the block": "resid_post",
    "attn_out: what attention adds": "attn_out",
    "mlp_out: what the MLP adds": "mlp_out",
}

# What the run recovers without a patch, which is white in the pictures.
UNPATCHED = {"denoise": 0, "noise": 1}

Steps = Generator[None, None, None]


class Explorer(w.VBox):
    """What all explorers share: a pair of prompts, the status line, and work in steps.

    Attributes:
        picker: where the prompts are chosen.
        status: one sentence on what is shown, or what went wrong; screen readers announce it.
        result: the parts that show something; hidden while there is nothing right to show.
        shown: the tables that are shown, under their names.
        centre: what is white in their pictures: what the run recovers without a patch.
    """

    centre: float = 0

    def __init__(self, model: TransformersModel) -> None:
        self._model = model
        self.kept: OrderedDict[Hashable, pd.DataFrame] = OrderedDict()
        self.shown: dict[str, pd.DataFrame] = {}
        self.task: asyncio.Task | None = None
        self.picker = PromptPicker(model.tokenizer)
        self.stop = w.Button(description="Stop", disabled=True, layout=w.Layout(width="5em"))
        self.status = w.HTML()
        self.result = w.VBox(self.make_result())
        self.result.add_class("patching-result")
        super().__init__(
            [
                w.HTML(STYLE),
                self.picker,
                row(*self.make_controls()),
                row(self.stop, self.status, align_items="center"),
                self.result,
            ]
        )
        self.add_class("patching-explorer")
        self.picker.observe(self.changed, "pair")
        self.picker.observe(self.say_reason, "reason")
        self.stop.on_click(self.stop_work)
        self.finish()

    def __repr__(self) -> str:
        """Say what is shown, for readers where widgets do not run."""
        return f"{type(self).__name__}: {self.message()}"

    @property
    def model(self) -> TransformersModel:
        """The model that is explored; it can be replaced by another."""
        return self._model

    @model.setter
    def model(self, model: TransformersModel) -> None:
        self._model = model
        self.kept.clear()
        self.fit_to_model()
        self.picker.tokenizer = model.tokenizer
        self.picker.check()
        self.changed()

    @property
    def pair(self) -> PromptPair:
        """The pair that is explored."""
        return self.picker.pair

    def draw(self) -> list[Axes]:
        """Draw the first table that is shown as a static figure, for a report, say.

        Raises:
            ValueError: there is nothing right to show.
        """
        self.check_shown()
        name, table = next(iter(self.shown.items()))
        ax = heatmap(table, centre=self.centre)
        ax.set_title(name)
        return [ax]

    def check_shown(self) -> None:
        """Raise a `ValueError` while there is nothing right to show."""
        if self.result.layout.display == "none":
            raise ValueError(f"There is nothing to draw: {self.message()}")

    def message(self) -> str:
        """Give the sentence in the status line."""
        return html.unescape(re.sub("<.*?>", "", self.status.value))

    def make_result(self) -> Sequence[w.Widget]:
        """Make the parts that show something."""
        raise NotImplementedError

    def make_controls(self) -> Sequence[w.Widget]:
        """Make the controls beside the prompts, and observe them."""
        raise NotImplementedError

    def fit_to_model(self) -> None:
        """Offer the layers and heads that the model has."""

    def update(self) -> Generator[None, None, str]:
        """Show what was chosen; yields between steps, and returns the status."""
        raise NotImplementedError

    def changed(self, _: object = None) -> None:
        """Start the work for what was chosen, instead of what was begun."""
        self.drop_work()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.finish()
        else:
            self.task = loop.create_task(self.work())

    def drop_work(self) -> None:
        """Drop the work that was begun, if any."""
        if self.task is not None:
            self.task.cancel()

    async def work(self) -> None:
        """Do the work in steps, between which the kernel can do other things."""
        await asyncio.sleep(SECONDS_BEFORE_WORK)
        for _ in self.steps():
            await asyncio.sleep(0)

    def finish(self) -> None:
        """Do the work for what was chosen at once, to its end.

        A cell that has changed a control calls it before it reads what is shown.
        """
        self.drop_work()
        for _ in self.steps():
            pass

    def steps(self) -> Steps:
        """Do the work in steps, and show a message instead of a result if it fails."""
        if self.pair is None:
            self.say_reason()
            return
        self.stop.disabled = False
        self.reported = time.monotonic()
        try:
            self.say((yield from self.update()), shown=True)
        except ValueError as error:
            self.say(str(error), shown=False)
        except Exception as error:
            self.say(f"{type(error).__name__}: {error}", shown=False)
        finally:
            self.stop.disabled = True

    def stop_work(self, _: object = None) -> None:
        """Drop the work that was begun, and say so."""
        if self.task is not None and not self.task.done():
            self.drop_work()
            self.say("Stopped. Change a choice to go on.", shown=False)

    def say_reason(self, _: object = None) -> None:
        """Say why what is written cannot be patched, while that is so."""
        if self.pair is None and self.picker.reason:
            self.say(self.picker.reason, shown=False)

    def say(self, text: str, *, shown: bool) -> None:
        """Put a sentence into the status line, and show the result or hide it."""
        weight = "normal" if shown else "bold"
        style = f"margin:0;line-height:1.4;font-weight:{weight}"
        self.status.value = (
            f"<p role='status' aria-live='polite' style='{style}'>{html.escape(text)}</p>"
        )
        self.result.layout.display = "flex" if shown else "none"

    def report(self, done: int, total: int) -> None:
        """Say how far a sweep is, if that was not said just now."""
        if time.monotonic() - self.reported >= SECONDS_BETWEEN_REPORTS:
            self.reported = time.monotonic()
            self.say(f"Patching: {done} of {total} runs.", shown=True)

    def sweep(
        self, plan: Plan, direction: str = "denoise", **named: Hashable
    ) -> Generator[None, None, pd.DataFrame]:
        """Carry out a plan on the pair, or take its table from those kept under this name."""
        key = self.key(direction, plan.site, *named.items())
        if key not in self.kept:
            experiment = Experiment(self.model, self.pair, plan, direction=direction)
            done = 0
            for count in experiment.run():
                done += count
                yield self.report(done, experiment.total)
            self.keep(key, experiment.table())
        self.kept.move_to_end(key)
        return self.kept[key]

    def predict(self, parts: Sequence[Part], site: str, direction: str = "denoise") -> str:
        """Write what the three runs predict."""
        key = self.key(direction, site, *parts)
        if key not in self.kept:
            table = predictions(self.model, self.pair, parts, site=site, direction=direction)
            self.keep(key, table)
        return predictions_table(self.kept[key])

    def strongest_heads(self, count: int) -> list[tuple[int, int]]:
        """List the heads, as (layer, head), whose clean output recovers most on its own.

        Where that cannot be said, for which `update` gives the reason, the first heads.
        """
        try:
            table = patch_heads(self.model, self.pair)
        except ValueError:
            return [(0, head) for head in range(count)]
        self.keep(self.key("denoise", "z", ("position", None)), table)
        return [(int(layer), int(head)) for layer, head in table.stack().nlargest(count).index]

    def key(self, direction: str, site: str, *details: Hashable) -> Hashable:
        """Name a table of the pair, to find it among those kept."""
        return self.pair, direction, site, *details

    def keep(self, key: Hashable, table: pd.DataFrame) -> None:
        """Keep a table, and of all only the last ones that were used."""
        self.kept[key] = table
        while len(self.kept) > TABLES_KEPT:
            self.kept.popitem(last=False)

    def position_labels(self) -> list[str]:
        """Label the positions of the clean prompt."""
        return token_labels(self.model.tokenizer, self.pair.clean)


class PromptExplorer(Explorer):
    """See the tokens of a pair of prompts, and what the model answers to each."""

    def make_controls(self) -> Sequence[w.Widget]:
        """Choose nothing beside the prompts."""
        return ()

    def make_result(self) -> Sequence[w.Widget]:
        """Show predictions and logits."""
        self.answers, self.logits = w.HTML(), w.HTML()
        return self.answers, self.logits

    def update(self) -> Generator[None, None, str]:
        """Show what both prompts lead to."""
        tokens = tokenize_pairs(self.model.tokenizer, self.pair)
        with torch.no_grad(), self.model.trace(torch.cat([tokens.clean, tokens.corrupted])):
            logits = self.model.output.logits[:, -1].save()
        yield
        shares = likeliest_tokens(self.model.tokenizer, logits, ["clean", "corrupted"])
        words = [self.pair.answer, self.pair.foil]
        table = pd.DataFrame(
            logits[:, [tokens.answers.item(), tokens.foils.item()]].cpu().numpy(),
            shares.columns,
            [
                f"{name}, {word.strip()}"
                for name, word in zip(("answer", "foil"), words, strict=True)
            ],
        )
        table["logit difference"] = table.iloc[:, 0] - table.iloc[:, 1]
        self.shown = {"probability of the next token": shares, "logits": table}
        self.answers.value = predictions_table(shares)
        self.logits.value = titled("logits", coloured_table(table.rename_axis("prompt")))
        clean, corrupted = (decimal(value, 1) for value in table["logit difference"])
        return f"Logit difference: {clean} clean, {corrupted} corrupted."


class LayerExplorer(Explorer):
    """Patch one layer after another, at one position or all, and see each run's answer."""

    def make_controls(self) -> Sequence[w.Widget]:
        """Choose a site, a direction, a position, and the layer whose run is shown."""
        self.site = Choice("site", SITES, "resid_post")
        self.direction = Choice("direction", DIRECTIONS)
        self.layer = Number("layer", len(self.model.blocks), len(self.model.blocks) // 3)
        self.position = TokenChips(len(self.position_labels()) - 1)
        for control in (self.site, self.direction, self.layer, self.position):
            control.observe(self.changed, "value")
        return self.site, self.direction, self.layer, self.position

    def make_result(self) -> Sequence[w.Widget]:
        """Show a line over the layers, its numbers, and predictions."""
        self.figure, self.numbers = w.Image(format="png"), w.HTML()
        self.answers = w.HTML()
        return row(self.figure, self.answers), self.numbers

    def fit_to_model(self) -> None:
        """Offer the layers that the model has."""
        self.layer.max = len(self.model.blocks) - 1

    def draw(self) -> list[Axes]:
        """Draw the line as a static figure."""
        self.check_shown()
        return [layer_lines(self.shown)]

    def update(self) -> Generator[None, None, str]:
        """Draw the sweep over layers, and the predictions of the run with the chosen one."""
        labels = self.position_labels()
        self.position.show(labels)
        site, direction, position = self.site.value, self.direction.value, self.position.value
        table = yield from self.sweep(
            plan_layers(self.model, site, position), direction, position=position
        )
        self.centre = UNPATCHED[direction]
        where = "all positions" if position is None else f"“{labels[position]}”"
        layer = self.layer.value
        self.shown = {f"{site} at {where}": table}
        self.figure.value = draw_layers(self.shown, layer)
        self.numbers.value = coloured_table(table.T.rename_axis("layer"), centre=self.centre)
        self.answers.value = self.predict([Part(layer, position=position)], site, direction)
        value = table["recovered"][layer]
        return f"{site} of layer {layer} at {where}, {direction}: {decimal(value)} recovered."


class PositionExplorer(Explorer):
    """Patch each layer at each position, and see the answer of the run of any cell."""

    def make_controls(self) -> Sequence[w.Widget]:
        """Choose a site, a direction, and a cell; the cell also by clicking on it."""
        self.site = Choice("site", SITES, "resid_post")
        self.direction = Choice("direction", DIRECTIONS)
        layer, position = self.grid.value
        self.layer = Number("layer", len(self.model.blocks), layer)
        self.position = Number("position", len(self.position_labels()), position)
        self.values = w.Checkbox(description="show numbers", indent=False)
        for control in (self.site, self.direction):
            control.observe(self.changed, "value")
        link_cell(self.grid, self.layer, self.position, self.values)
        self.grid.observe(self.changed, "value")
        return self.site, self.direction, self.layer, self.position, self.values

    def make_result(self) -> Sequence[w.Widget]:
        """Show the grid and the predictions of the chosen cell's run."""
        differing = differing_positions(self.model.tokenizer, self.pair)
        self.grid = Grid((len(self.model.blocks) // 3, differing[0]))
        self.answers = w.HTML()
        return self.grid, self.answers

    def fit_to_model(self) -> None:
        """Offer the layers that the model has."""
        self.layer.max = len(self.model.blocks) - 1

    def update(self) -> Generator[None, None, str]:
        """Show the sweep, and the predictions of the run with the chosen cell."""
        site, direction = self.site.value, self.direction.value
        table = yield from self.sweep(plan_positions(self.model, self.pair, site), direction)
        self.position.max = table.shape[1] - 1
        self.shown = {f"{site}, {direction}": table}
        self.centre = UNPATCHED[direction]
        self.grid.show(table, self.centre)
        layer, position = self.grid.value
        self.answers.value = self.predict([Part(layer, position=position)], site, direction)
        return (
            f"{site} of layer {layer} at “{table.columns[position]}”, {direction}: "
            f"{decimal(table.iat[layer, position])} recovered."
        )


class HeadExplorer(Explorer):
    """Patch each head; see where the chosen one looks, where it acts, and its run's answer."""

    def make_controls(self) -> Sequence[w.Widget]:
        """Choose a direction and a head; the head also by clicking on its cell."""
        self.direction = Choice("direction", DIRECTIONS)
        layer, head = self.grid.value
        self.layer = Number("layer", len(self.model.blocks), layer)
        self.head = Number("head", self.model.config.num_attention_heads, head)
        self.values = w.Checkbox(description="show numbers", indent=False)
        self.direction.observe(self.changed, "value")
        link_cell(self.grid, self.layer, self.head, self.values)
        self.grid.observe(self.changed, "value")
        return self.direction, self.layer, self.head, self.values

    def make_result(self) -> Sequence[w.Widget]:
        """Show the grid, predictions, the effect by position, and the attention pattern."""
        self.grid = Grid(self.strongest_heads(1)[0])
        self.answers = w.HTML()
        self.by_position, self.attention = w.HTML(), w.HTML()
        return row(self.grid, self.answers), self.by_position, self.attention

    def fit_to_model(self) -> None:
        """Offer the layers and heads that the model has."""
        self.layer.max = len(self.model.blocks) - 1
        self.head.max = self.model.config.num_attention_heads - 1

    def update(self) -> Generator[None, None, str]:
        """Show the sweep, and what is known of the chosen head."""
        direction = self.direction.value
        table = yield from self.sweep(plan_heads(self.model), direction, position=None)
        self.shown = {f"heads, {direction}": table}
        self.centre = UNPATCHED[direction]
        self.grid.show(table, self.centre)
        layer, head = chosen = self.grid.value
        self.answers.value = self.predict([Part(layer, head)], "z", direction)
        plan = plan_heads_by_position(self.model, self.pair, [chosen])
        effects = yield from self.sweep(plan, direction, head=chosen)
        self.by_position.value = titled(
            f"Head {layer}.{head}, patched at one position at a time",
            coloured_table(effects, find_limit(table, self.centre), self.centre),
        )
        self.attention.value = titled(
            f"Where head {layer}.{head} looks in the clean prompt, from each row to each column",
            coloured_table(self.patterns().loc[chosen], 1.0),
        )
        return f"Head {layer}.{head}, {direction}: {decimal(table.iat[chosen])} recovered."

    def patterns(self) -> pd.DataFrame:
        """Give the attention patterns of all heads."""
        key = (self.pair.clean, "attention")
        if key not in self.kept:
            self.keep(key, attention_patterns(self.model, self.pair.clean))
        return self.kept[key]


class DirectionExplorer(Explorer):
    """Compare both directions: what is enough, what is needed, and the difference."""

    def make_controls(self) -> Sequence[w.Widget]:
        """Choose what is patched."""
        self.site = Choice("site", {**SITES, "z: heads, at all positions": "z"}, "resid_post")
        self.site.observe(self.changed, "value")
        return (self.site,)

    def make_result(self) -> Sequence[w.Widget]:
        """Show three grids."""
        self.tables = w.HTML()
        return (self.tables,)

    def draw(self) -> list[Axes]:
        """Draw all three grids as a static figure."""
        self.check_shown()
        return heatmaps(self.shown, label="share of the answer")

    def update(self) -> Generator[None, None, str]:
        """Show what the clean activation brings back, what the corrupted one costs, and both."""
        site = self.site.value
        heads = site == "z"
        plan = plan_heads(self.model) if heads else plan_positions(self.model, self.pair, site)
        enough = yield from self.sweep(plan)
        needed = 1 - (yield from self.sweep(plan, "noise"))
        difference = enough - needed
        self.shown = {
            "enough (denoise)": enough,
            "needed (1 − noise)": needed,
            "difference": difference,
        }
        limit = max(map(find_limit, self.shown.values()))
        self.tables.value = "".join(
            titled(name, coloured_table(table, limit)) for name, table in self.shown.items()
        )
        layer, column = difference.abs().stack().idxmax()
        return (
            f"{site}: enough and needed differ most in layer {layer}, "
            f"{difference.columns.name} {column}, by {decimal(difference.at[layer, column])}."
        )


def link_cell(grid: Grid, layer: Number, column: Number, values: w.Checkbox) -> None:
    """Let numbers and clicks choose the same cell of a grid."""
    for place, control in enumerate((layer, column)):
        control.observe(lambda change, place=place: move(grid, place, change["new"]), "value")

    def take_over(_: object) -> None:
        layer.value, column.value = grid.value

    grid.observe(take_over, "value")
    values.observe(lambda change: grid.set_trait("numbers", change["new"]), "value")


def move(grid: Grid, place: int, index: int) -> None:
    """Choose the cell in another row (place 0) or column (place 1)."""
    cell = list(grid.value)
    cell[place] = index
    grid.value = tuple(cell)


def titled(title: str, table: str) -> str:
    """Write a title above a table."""
    return f"<p style='margin:8px 0 2px'><b>{html.escape(title)}</b></p>{table}"


def draw_layers(sweeps: Mapping[str, pd.DataFrame], layer: int) -> bytes:
    """Draw sweeps over layers with the chosen layer marked; returns a PNG file."""
    figure = Figure(figsize=(6, 3.4))
    # A layout that matplotlib works out by itself takes as long as the drawing.
    figure.subplots_adjust(left=0.14, right=0.98, bottom=0.14, top=0.97)
    ax = layer_lines(sweeps, figure.subplots())
    ax.axvline(layer, color="gray", linestyle=":", zorder=0)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()
