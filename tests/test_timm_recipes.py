"""Each recipe of `timm_recipes` for a few steps.

Our own stand-in for train.py takes the flags that it has, the real ones take all; `timm_matrix`
makes a table of them.
"""

from __future__ import annotations

import re

import pytest

from tests.timm_recipes import NAFLEX, RECIPES
from tests.timm_run import CLASSES, refusal
from tests.timm_scripts import (
    BATCH,
    OWN,
    PER_CLASS,
    call,
    options_of,
    run,
    run_distributed,
    scripts,
)

SUBSET = ["--subset-fraction", "0.5", "--subset-strategy", "by-class", "--subset-every", "1"]


def flags_for(script, recipe):
    """The flags of a recipe that the stand-in has, or all of them; skips a script without one."""
    given = RECIPES[recipe].split()
    if script != OWN:
        return options_of(script, given)
    groups = []
    for word in given:
        groups += [[word]] if word.startswith("--") else []
        groups[-1] += [] if word.startswith("--") else [word]
    source = script.read_text()
    return [word for group in groups if f'"{group[0]}"' in source for word in group]


@pytest.mark.slow
@scripts
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_on_its_weighted_subset(script, recipe, flags, tmp_path):
    own = [*flags, *flags_for(script, recipe), *SUBSET, "--epochs", "2"]
    k = CLASSES * PER_CLASS // 2
    if "--aug-repeats" not in RECIPES[recipe]:
        report = run(script, own)
        assert [len(set(epoch)) for epoch in report["seen"]] == [k] * 2
        assert len(report["calls"]) == 2 * k // BATCH
        assert [size for size in report["calls"] if size < 0]
        return
    reports = run_distributed(script, [*own, "-b", "4"], tmp_path, 2)
    for epoch in range(2):
        both = [report["seen"][epoch] for report in reports]
        assert [len(indices) for indices in both] == [k // 2] * 2
        assert len(set(both[0] + both[1])) == k // 3  # three times each
    sizes = [size for report in reports for size in report["calls"]]
    assert {abs(size) for size in sizes} == {4}
    # A batch of a sample and its repeats can be of one weight, which tells nothing; not all are.
    assert min(sizes) < 0


@scripts
def test_naflexvit_is_refused(script, flags):
    options = [*NAFLEX.split(), "--subset-fraction", "0.5"]
    error = call(refusal, script, [*flags, *options_of(script, options)])
    assert re.search("--naflex-loader cannot go with a subset: it fills batches by tokens", error)
