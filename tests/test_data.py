"""The published figures are well formed, and are what the documents say they are."""

import pandas as pd
import pytest

from helpers.engine import SITES
from helpers.shipped import DATA

LAYERS = HEADS = range(12)


@pytest.fixture
def patching():
    return pd.read_csv(DATA / "gpt2_patching.csv")


@pytest.fixture
def classes():
    return pd.read_csv(DATA / "gpt2_head_classes.csv")


def test_published_patching_is_of_parts_that_exist(patching):
    assert set(patching["site"]) <= set(SITES)
    assert set(patching["layer"]) <= set(LAYERS)
    assert set(patching["position"]) == {"second subject", "last", "all"}
    assert patching["recovered"].between(-1, 1).all()
    of_heads = patching["site"] == "z"
    assert (patching["position"] == "all").equals(of_heads)
    assert (patching["head"].notna() == of_heads).all()
    assert not patching.duplicated(["site", "layer", "head", "position"]).any()


def test_published_classes_name_each_head_once(classes):
    assert classes["layer"].isin(LAYERS).all()
    assert classes["head"].isin(HEADS).all()
    assert not classes.duplicated(["layer", "head"]).any()


def test_signs_of_published_heads_fit_their_class(patching, classes):
    heads = patching.query("site == 'z'").merge(classes, on=["layer", "head"])
    negative = heads["head_class"] == "negative name mover"
    assert (heads.loc[negative, "recovered"] < 0).all()
    senders = heads["head_class"].isin(["S-inhibition", "induction", "duplicate token"])
    assert (heads.loc[senders, "recovered"] > 0).all()
