"""The explorers, operated in process: what they show is what the sweeps give."""

import asyncio
import gc
import io
import random
import re
import runpy

import ipywidgets as w
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from reference import last_logits

from helpers import metrics, widgets
from helpers.controls import PromptPicker, coloured_table, decimal
from helpers.engine import Part
from helpers.patching import (
    patch_heads,
    patch_heads_by_position,
    patch_layers,
    patch_positions,
    patch_together,
    predictions,
)
from helpers.playground import Playground, name_part, read_part
from helpers.plots import heatmap
from helpers.prompts import PromptPair, differing_positions, load_pairs
from helpers.widgets import (
    UNPATCHED,
    DirectionExplorer,
    HeadExplorer,
    LayerExplorer,
    PositionExplorer,
    PromptExplorer,
)

EXPLORERS = [
    PromptExplorer,
    LayerExplorer,
    PositionExplorer,
    HeadExplorer,
    DirectionExplorer,
    Playground,
]


@pytest.fixture(params=EXPLORERS, ids=lambda made: made.__name__)
def explorer(request, model):
    return request.param(model)


def controls(widget):
    """List every control that a user can operate."""
    kinds = (w.Dropdown, w.BoundedIntText, w.Checkbox, w.Text, w.Textarea, w.Button)
    found = [widget] if isinstance(widget, kinds) else []
    return found + [part for child in getattr(widget, "children", ()) for part in controls(child)]


def numbers_in(text):
    return [float(n) for n in re.findall(r"<td class='coloured'[^>]*>(-?[\d.]+)</td>", text)]


def rounded(table):
    """Give the numbers in the order in which an explorer writes them: layers bottom up."""
    table = table[::-1] if table.index.name == "layer" else table
    return [float(decimal(value)) for value in table.to_numpy().flatten()]


# What is shown is what the sweeps give


def test_prompts(model, pair):
    explorer = PromptExplorer(model)
    shares, logits = explorer.shown.values()
    for name in ("clean", "corrupted"):
        ids = model.tokenizer.encode(getattr(pair, name))
        run = last_logits(model._module, ids)
        answer, foil = (model.tokenizer.encode(word)[0] for word in (pair.answer, pair.foil))
        expected = [run[answer], run[foil], run[answer] - run[foil]]
        assert np.allclose(logits.loc[name], expected, atol=1e-4)
        assert shares[name].max() == pytest.approx(run.softmax(-1).max().item(), abs=1e-5)
        assert f"{decimal(run[answer].item() - run[foil].item(), 1)} {name}" in explorer.message()
    assert numbers_in(explorer.logits.value) == rounded(logits)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_layers(model, pair, site, direction):
    explorer = LayerExplorer(model)
    explorer.site.value, explorer.direction.value = site, direction
    explorer.position.children[10].click()
    table = patch_layers(model, pair, site=site, direction=direction, position=9)
    assert explorer.position.value == 9
    assert numbers_in(explorer.numbers.value) == rounded(table.T)
    assert bytes(explorer.figure.value).startswith(b"\x89PNG")


def test_another_layer_is_another_picture(model):
    explorer = LayerExplorer(model)
    before = explorer.figure.value, explorer.status.value
    explorer.layer.value = 4
    assert explorer.figure.value != before[0]
    assert "layer 4" in explorer.status.value


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_positions(model, pair, site, direction):
    explorer = PositionExplorer(model)
    explorer.site.value, explorer.direction.value = site, direction
    table = patch_positions(model, pair, site=site, direction=direction)
    pd.testing.assert_frame_equal(explorer.grid.table, table, atol=1e-4)
    explorer.grid.cells[1, 9].click()
    assert (explorer.layer.value, explorer.position.value) == (1, 9)
    assert f"{decimal(table.iat[1, 9])} recovered" in explorer.status.value
    part = Part(1, position=9)
    shares = predictions(model, pair, [part], site=site, direction=direction)
    assert [f"{share:.1%}" in explorer.answers.value for share in shares["patched"]] == [
        True
    ] * len(shares)


def test_numbers_and_clicks_choose_the_same_cell(model):
    explorer = PositionExplorer(model)
    explorer.layer.value, explorer.position.value = 3, 15
    assert explorer.grid.value == (3, 15)
    chosen = [
        place
        for place, cell in explorer.grid.cells.items()
        if "patching-chosen" in cell._dom_classes
    ]
    assert chosen == [(3, 15)]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_heads(model, pair, direction):
    explorer = HeadExplorer(model)
    explorer.direction.value = direction
    explorer.grid.cells[5, 3].click()
    table = patch_heads(model, pair, direction=direction)
    pd.testing.assert_frame_equal(explorer.grid.table, table, atol=1e-4)
    by_position = patch_heads_by_position(model, pair, [(5, 3)], direction=direction)
    assert numbers_in(explorer.by_position.value) == rounded(by_position)
    rows = re.findall(r"<tr><th scope='row'>.*?</tr>", explorer.attention.value)
    assert all(abs(sum(numbers_in(line)) - 1) < 0.1 for line in rows)
    assert len(rows) == by_position.shape[1]


@pytest.mark.parametrize("any_model", ["ioi-mini", "gpt2", "llama"], indirect=True)
def test_the_first_head_shown_recovers_most(any_model, pair):
    table = patch_heads(any_model, pair)
    layer, head = HeadExplorer(any_model).grid.value
    assert table.iat[layer, head] == table.max(axis=None)


@pytest.mark.parametrize("site", ["resid_post", "z"])
def test_directions(model, pair, site):
    explorer = DirectionExplorer(model)
    explorer.site.value = site
    sweep = patch_heads if site == "z" else patch_positions
    enough, needed = sweep(model, pair), 1 - sweep(model, pair, direction="noise")
    for shown, expected in zip(
        explorer.shown.values(), (enough, needed, enough - needed), strict=True
    ):
        assert np.allclose(shown, expected, atol=1e-4)
    written = [number for table in explorer.shown.values() for number in rounded(table)]
    assert numbers_in(explorer.tables.value) == written


PARTS = {
    "z": "2.0 2.2 5.3@15",
    "resid_pre": "2@9 4@15",
    "resid_post": "2@9 4@15",
    "attn_out": "1 2@15",
    "mlp_out": "0@9 3@15",
}


@pytest.mark.parametrize("site", PARTS)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_several_parts_at_once(model, pair, site, direction):
    playground = Playground(model)
    playground.site.value, playground.direction.value = site, direction
    playground.parts.value = PARTS[site]
    parts = [read_part(name, heads=site == "z") for name in PARTS[site].split()]
    sets = {name_part(part): [part] for part in parts} | {"together": parts}
    grid, effects = playground.shown.values()
    for shown in ("denoise", "noise"):
        table = patch_together(model, pair, sets, site=site, direction=shown)["recovered"]
        pd.testing.assert_series_equal(effects[shown], table, check_names=False, atol=1e-4)
    options = {"direction": direction} | ({} if site == "z" else {"site": site})
    table = (patch_heads if site == "z" else patch_positions)(model, pair, **options)
    pd.testing.assert_frame_equal(grid, table, atol=1e-4)
    together = decimal(effects.loc["together", direction])
    assert f"{PARTS[site]}, patched at once, {direction}: {together}" in playground.message()
    shares = predictions(model, pair, parts, site=site, direction=direction)["patched"]
    assert all(f"{share:.1%}" in playground.answers.value for share in shares)


def test_the_code_of_the_playground_gives_its_result(model, tmp_path):
    playground = Playground(model)
    playground.picker.number.value = 4
    (tmp_path / "pasted.py").write_text(playground.code.value)
    recovered = runpy.run_path(str(tmp_path / "pasted.py"), {"model": model})["recovered"]
    together = playground.shown["together"].loc["together", "denoise"]
    assert recovered == pytest.approx(together, abs=1e-4)


def test_the_table_of_the_playground_can_be_read_back(model):
    playground = Playground(model)
    for text, table in zip(
        playground.table.value.split("\n\n"), playground.shown.values(), strict=True
    ):
        read = pd.read_csv(io.StringIO(text.split("\n", 1)[1]), sep="\t", index_col=0)
        assert np.allclose(read, table.round(3), rtol=0, atol=1e-6)


def test_clicks_put_parts_into_the_set_and_take_them_out(model):
    playground = Playground(model)
    playground.clear.click()
    assert "Nothing is patched together" in playground.message()
    assert playground.code.layout.display == "none"
    playground.grid.cells[5, 3].click()
    playground.position.children[16].click()
    playground.grid.cells[2, 0].click()
    assert playground.parts.value == "5.3 2.0@15"
    assert playground.grid.chosen == {(2, 0)}
    playground.position.children[0].click()
    assert playground.grid.chosen == {(5, 3)}
    playground.grid.cells[5, 3].click()
    assert playground.parts.value == "2.0@15"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("2", "'2' does not name a head"),
        ("2.x", "'2.x' does not name a head"),
        ("2.0@-1", "does not name a head"),
        ("9.0", "There is no layer 9"),
        ("2.0 2.99", "There is no head 99"),
        ("2.0@16", "Position 16 does not exist"),
    ],
)
def test_parts_that_are_not_there(model, parts, message):
    playground = Playground(model)
    playground.parts.value = parts
    assert message in playground.message()
    assert playground.result.layout.display == "none"
    with pytest.raises(ValueError, match="nothing to draw"):
        playground.draw()
    playground.site.value = "resid_post"
    assert playground.result.layout.display == "flex"


def test_what_is_shown_can_be_drawn(explorer):
    axes = explorer.draw()
    assert len(axes) == (3 if isinstance(explorer, DirectionExplorer) else 1)
    tables = [*explorer.shown.values()][: len(axes)]
    for ax, table in zip(axes, tables, strict=True):
        if isinstance(explorer, LayerExplorer):
            assert np.allclose(ax.lines[0].get_ydata(), table["recovered"])
        else:
            assert np.allclose(ax.collections[0].get_array(), table)
    plt.close("all")


@pytest.mark.parametrize(("direction", "centre"), [("denoise", 0), ("noise", 1)])
def test_colours_are_those_of_the_static_figure(model, pair, direction, centre):
    table = patch_heads(model, pair, direction=direction)
    mesh = heatmap(table, centre=centre).collections[0]
    mesh.update_scalarmappable()
    drawn = [tuple(round(255 * part) for part in colour[:3]) for colour in mesh.get_facecolors()]
    plt.close()
    text = coloured_table(table[::-1].rename_axis("x"), centre=centre)
    written = re.findall(r"background:#(..)(..)(..)", text)
    written = np.array([[int(part, 16) for part in colour] for colour in written])
    drawn = np.array(drawn).reshape(*table.shape, 3)[::-1].reshape(-1, 3)
    assert np.abs(written - drawn).max() <= 1


def brightness(colour):
    return sum(int(colour[start : start + 2], 16) for start in (1, 3, 5)) / 3


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_patch_that_changes_nothing_is_white_in_both_directions(model, direction):
    explorer = PositionExplorer(model)
    explorer.direction.value = direction
    colours = {place: cell.style.button_color for place, cell in explorer.grid.cells.items()}
    values = explorer.grid.table - (direction == "noise")
    for place, colour in colours.items():
        if abs(values.iat[place]) < 0.01:
            assert brightness(colour) > 240
        if abs(values.iat[place]) > 0.5:
            assert brightness(colour) < 200
    ax = explorer.draw()[0]
    low, high = ax.collections[0].get_clim()
    assert (low + high) / 2 == pytest.approx(explorer.centre)
    plt.close("all")


def test_each_column_of_a_table_can_have_its_own_white():
    table = pd.DataFrame({"denoise": [0.0, 0.5], "noise": [1.0, 0.5]})
    colours = re.findall("background:(#......)", coloured_table(table, centre=pd.Series(UNPATCHED)))
    assert brightness(colours[0]) > 240
    assert brightness(colours[1]) > 240
    assert brightness(colours[2]) < 200
    assert brightness(colours[3]) < 200


# Prompts


def test_every_pair_of_the_file_can_be_picked(model):
    picker = PromptPicker(model.tokenizer)
    seen = set()
    for kind in picker.kind.options:
        picker.kind.value = kind
        for order in picker.order.options:
            picker.order.value = order
            for template in picker.template.options:
                picker.template.value = template
                for number in picker.number.options:
                    picker.number.value = number
                    seen.add((picker.pair.clean, picker.pair.corrupted, picker.pair.answer))
    assert seen == {(pair.clean, pair.corrupted, pair.answer) for pair in load_pairs()}


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("clean", "", "is empty"),
        ("corrupted", "After John", "their positions do not correspond"),
        ("answer", "", "Answer and foil are needed"),
        ("answer", "Bartholomew Xyz", "as one token"),
        ("foil", "John", "are both"),
        (
            "corrupted",
            "After John and Mary went to the store, Mary gave a bottle of milk to",
            "same",
        ),
    ],
)
def test_a_pair_that_cannot_be_patched_shows_a_message_and_no_picture(
    explorer, field, text, message
):
    getattr(explorer.picker, field).value = text
    assert message in explorer.message()
    assert explorer.picker.pair is None
    assert explorer.result.layout.display == "none"
    explorer.picker.take_from_file()
    assert explorer.picker.reason == ""
    assert explorer.result.layout.display == "flex"


def test_the_message_is_about_what_is_written_now(explorer):
    for text, message in [("", "needed"), ("John", "are both"), ("Bartholomew", "as one token")]:
        explorer.picker.foil.value = text
        assert message in explorer.message()


@pytest.mark.parametrize("explorer", EXPLORERS[1:], indirect=True)
def test_a_difference_that_is_too_small_shows_a_message_and_no_picture(explorer, monkeypatch):
    monkeypatch.setattr(metrics, "MIN_DIFFERENCE", 100.0)
    explorer.picker.number.value = 3
    for shown in (explorer, type(explorer)(explorer.model)):
        assert "would blow up noise" in shown.message()
        assert shown.result.layout.display == "none"


def test_long_prompts_are_refused(model):
    picker = PromptPicker(model.tokenizer)
    picker.writing = True
    picker.clean.value, picker.corrupted.value = "John " * 45 + "to", "Mary " * 45 + "to"
    picker.writing = False
    picker.check()
    assert "explorers show up to 40" in picker.reason


def test_free_text(explorer, model):
    own = PromptPair(
        "John and Mary met. John gave a book to",
        "John and Mary met. Mary gave a book to",
        " Mary",
        " John",
    )
    explorer.picker.write(own)
    assert (explorer.pair.clean, explorer.pair.answer) == (own.clean, own.answer)
    assert explorer.result.layout.display == "flex"
    position = differing_positions(model.tokenizer, own)[0]
    marked = re.findall(r"<li class=differs>(.*?)</li>", explorer.picker.tokens.value)
    assert marked == [f"{position} John", f"{position} Mary"]


def test_text_is_escaped(explorer):
    explorer.picker.clean.value = "<script>alert(1)</script>"
    assert "<script>" not in explorer.picker.tokens.value + explorer.status.value


# Everyone


def test_every_control_has_a_name(explorer):
    for control in controls(explorer):
        assert control.description or control.tooltip, control


def test_values_are_shown_on_demand(model):
    explorer = PositionExplorer(model)
    assert {cell.description for cell in explorer.grid.cells.values()} == {""}
    explorer.values.value = True
    shown = [explorer.grid.cells[1, n].description for n in range(explorer.grid.table.shape[1])]
    assert shown == [decimal(value) for value in explorer.grid.table.loc[1]]


def test_what_is_shown_is_announced(explorer):
    assert "role='status'" in explorer.status.value


# Work


def test_what_was_computed_once_is_not_computed_again(explorer, monkeypatch):
    explorer.picker.number.value = 1
    explorer.picker.number.value = 0
    monkeypatch.setattr(widgets, "Experiment", None)
    monkeypatch.setattr(widgets, "predictions", None)
    explorer.picker.number.value = 1
    assert explorer.result.layout.display == "flex"


def test_a_failure_is_shown(explorer, monkeypatch):
    def fail(*_):
        raise RuntimeError("the reason")
        yield

    monkeypatch.setattr(explorer, "update", fail)
    explorer.changed()
    assert "RuntimeError: the reason" in explorer.status.value
    assert explorer.result.layout.display == "none"


def test_another_model_under_a_live_explorer(explorer, load_random):
    explorer.model = load_random("llama")
    assert explorer.picker.pair is not None
    for control in controls(explorer):
        if isinstance(control, w.BoundedIntText):
            control.value = 99
            assert control.value < 20
    assert "Error" not in explorer.status.value


def test_in_a_kernel_only_the_last_of_many_changes_is_worked_on(explorer, monkeypatch):
    worked = []
    update = explorer.update

    def noting_update():
        worked.append(explorer.pair)
        return (yield from update())

    monkeypatch.setattr(explorer, "update", noting_update)

    async def change_often():
        for number in (1, 2, 3, 4):
            explorer.picker.number.value = number
        await explorer.task

    asyncio.run(change_often())
    assert worked == [explorer.pair]
    assert "Error" not in explorer.status.value


def test_a_notebook_can_wait_for_the_work(explorer):
    async def change_from_a_cell():
        explorer.picker.number.value = 4
        explorer.finish()
        await asyncio.sleep(0)
        assert explorer.task.cancelled()
        return explorer.message()

    message = asyncio.run(change_from_a_cell())
    expected = type(explorer)(explorer.model)
    expected.picker.number.value = 4
    assert message == expected.message()


def test_work_can_be_stopped(model):
    explorer = PositionExplorer(model)

    async def change_and_stop():
        explorer.picker.number.value = 2
        while explorer.stop.disabled:
            await asyncio.sleep(0)
        explorer.stop.click()
        await asyncio.sleep(0.01)

    asyncio.run(change_and_stop())
    assert "Stopped" in explorer.status.value
    assert explorer.stop.disabled
    assert explorer.result.layout.display == "none"
    explorer.picker.number.value = 3
    assert "recovered" in explorer.status.value


def change_and_listen(explorer):
    """Choose another prompt, and return all that the status line says until it is shown."""
    said = []
    explorer.status.observe(lambda _: said.append(explorer.message()), "value")
    explorer.picker.number.value = 2
    return said


def test_long_work_says_how_far_it_is(model, monkeypatch):
    monkeypatch.setattr(widgets, "SECONDS_BETWEEN_REPORTS", 0)
    explorer = PositionExplorer(model)
    *reports, result = change_and_listen(explorer)
    total = explorer.grid.table.size
    form = rf"Patching: (\d+) of {total} runs\."
    done = [int(re.fullmatch(form, report)[1]) for report in reports]
    assert done == sorted(set(done))
    assert done[-1] == total
    assert "recovered" in result


def test_quick_work_says_only_what_it_shows(model, monkeypatch):
    monkeypatch.setattr(widgets, "SECONDS_BETWEEN_REPORTS", 60)
    explorer = PositionExplorer(model)
    assert change_and_listen(explorer) == [explorer.message()]


def test_a_thousand_random_changes(model):
    rng = random.Random(0)
    explorers = [kind(model) for kind in EXPLORERS]
    longest = max(load_pairs(), key=lambda pair: len(model.tokenizer.encode(pair.clean)))
    for explorer in explorers:
        show_most_cells(explorer, longest)
    gc.collect()
    count, figures = count_widgets(), len(plt.get_fignums())
    for _ in range(1000):
        act(rng, rng.choice(explorers))
    gc.collect()
    assert count_widgets() <= count
    assert len(plt.get_fignums()) == figures
    for explorer in explorers:
        assert "Error" not in explorer.status.value
        assert len(explorer.kept) <= widgets.TABLES_KEPT


def show_most_cells(explorer, longest):
    """Have all the buttons made that any of the prompts and sites needs."""
    explorer.picker.write(longest)
    if isinstance(explorer, Playground):
        for site in ("resid_post", "z"):
            explorer.site.value = site


def count_widgets():
    """Count the live widgets, which ipywidgets 7 and 8 list in different places."""
    listed = getattr(w.widgets.widget, "_instances", None)
    return len(w.Widget.widgets if listed is None else listed)


def act(rng, explorer):
    control = rng.choice(
        [
            c
            for c in controls(explorer)
            if not isinstance(c, (w.Text, w.Textarea)) and c.description != "Stop"
        ]
    )
    if isinstance(control, w.Dropdown):
        control.index = rng.randrange(len(control.options))
    elif isinstance(control, w.BoundedIntText):
        control.value = rng.randint(control.min, control.max)
    elif isinstance(control, w.Checkbox):
        control.value = not control.value
    else:
        control.click()
