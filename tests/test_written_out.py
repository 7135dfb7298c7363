"""Code that is written out runs as it stands, and gives what plain hooks give."""

import runpy
from dataclasses import astuple

import pytest
from conftest import RANDOM_MODELS
from nnsight import TransformersModel
from reference import measure

from helpers.engine import SITES, Part
from helpers.prompts import PromptPair
from helpers.shipped import DATA
from helpers.written_out import write_code


def run(code, folder, **names):
    """Run code from a file, where nnsight finds its source."""
    path = folder / "pasted.py"
    path.write_text(code, encoding="utf-8")
    return runpy.run_path(str(path), names)


def expected(model, pair, site, parts, direction):
    clean, corrupted, patched = measure(
        model._module, model.tokenizer, pair, site, map(astuple, parts), direction
    )
    return (patched - corrupted) / (clean - corrupted)


def parts_of(site):
    if site == "z":
        return [Part(2, 1, -1), Part(0, 2), Part(2, 3, 8), Part(1)]
    return [Part(2, position=-1), Part(1, position=7), Part(1, position=8), Part(0)]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("any_model", ["ioi-mini", *RANDOM_MODELS], indirect=True)
def test_gives_what_plain_hooks_give(any_model, unrelated_pair, tmp_path, site, direction):
    parts = parts_of(site)[:3]
    code = write_code(any_model, unrelated_pair, parts, site=site, direction=direction)
    recovered = run(code, tmp_path, model=any_model)["recovered"]
    assert recovered == pytest.approx(
        expected(any_model, unrelated_pair, site, parts, direction), abs=1e-4
    )


@pytest.mark.parametrize("site", SITES)
def test_whole_layers_can_be_patched(random_model, unrelated_pair, tmp_path, site):
    parts = parts_of(site)
    code = write_code(random_model, unrelated_pair, parts, site=site)
    recovered = run(code, tmp_path, model=random_model)["recovered"]
    assert recovered == pytest.approx(
        expected(random_model, unrelated_pair, site, parts, "denoise"), abs=1e-4
    )


def test_runs_on_a_model_loaded_without_this_course(model, pair, tmp_path, capsys):
    plain = TransformersModel(
        str(DATA / "ioi-mini"), task="text-generation", dispatch=True, device="cpu"
    )
    code = write_code(model, pair, [Part(2, 0)])
    assert "helpers" not in code
    recovered = run(code, tmp_path, model=plain)["recovered"]
    assert recovered == pytest.approx(expected(model, pair, "z", [Part(2, 0)], "denoise"), abs=1e-4)
    assert capsys.readouterr().out == f"{recovered:.2f} recovered\n"


def test_prompts_with_quotes_and_braces(model, tmp_path):
    text = 'John said "{{no}}\\n" and Mary\'s {name} \\ met.'
    pair = PromptPair(f"{text} John gave", f"{text} Mary gave", " Mary", " John")
    names = run(write_code(model, pair, [Part(2, 0)]), tmp_path, model=model)
    assert (names["clean"], names["corrupted"]) == (pair.clean, pair.corrupted)


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([], {}, "nothing to patch"),
        ([Part(9)], {}, "There is no layer 9"),
        ([Part(1, 99)], {}, "There is no head 99"),
        ([Part(1, position=99)], {}, "Position 99 does not exist"),
        ([Part(1, 1)], {"site": "resid_post"}, "only the site 'z' has heads"),
        ([Part(1)], {"site": "output"}, "There is no site 'output'"),
        ([Part(1)], {"direction": "back"}, "There is no direction 'back'"),
    ],
)
def test_bad_input(model, pair, parts, options, message):
    with pytest.raises(ValueError, match=message):
        write_code(model, pair, parts, **options)
