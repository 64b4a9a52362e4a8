from __future__ import annotations

import pytest

from multiflow.bench.records import DENSE
from multiflow.report.bench.cost import kept
from multiflow.report.bench.learning import curves, gained, lessons, verdict
from multiflow.report.bench.quality import columns, figures_table
from multiflow.report.bench.results import gather
from multiflow.report.bench.words import scope

from .conftest import make_cell


def settings(steps, part="vqa"):
    return {"task": {"kind": "vqa", "data": {"part": part}, "finetune": {"steps": steps}}, "seed": 0}


def make_bench(part="vqa", score=90.0, curve=((100, 50.0), (600, 90.0))):
    """Short trainings with a pruner beside, and another dense one of the same task on some part of the data."""
    short = [make_cell(DENSE, seed=s, score=80, settings=settings(150)) for s in (0, 1)]
    long = make_cell(DENSE, task="vqa-long", metric="accuracy", score=score, curve=curve, settings=settings(600, part))
    return gather([*short, *(make_cell(seed=s, settings=settings(150)) for s in (0, 1)), long])


def test_the_curve_is_the_mean_at_steps_that_all_seeds_have():
    cells = [make_cell(DENSE, seed=s) for s in (0, 1)]
    cells.append(make_cell(DENSE, seed=2, curve=[(100, 90.0), (150, 72.0), (200, 99.0)]))
    bench = gather([*cells, make_cell()])
    (curve,) = curves(bench)
    assert curve.seeds == 3
    assert curve.points == ((100, 70.0, 60.0, 90.0), (150, 71.0, 70.0, 72.0))
    (lesson,) = lessons(bench)
    assert verdict(lesson).endswith("accuracy 71.0 on the validation data after 150 steps, +1.0 since step 100.")
    assert gained([lesson]) is None


def test_without_curves_nothing_is_drawn():
    assert curves(gather([make_cell(DENSE, curve=()), make_cell()])) == []


def test_a_longer_dense_training_stands_beside_the_one_it_prolongs():
    (lesson,) = lessons(make_bench())
    assert (lesson.curve.track.task, lesson.curve.seeds) == ("vqa", 2)
    (longer,) = lesson.longer
    assert (longer.curve.track.task, longer.curve.steps) == ("vqa-long", 600)
    assert longer.adds.seeds == (0,)  # that both have
    assert longer.adds.value == pytest.approx(10, abs=6)
    assert "; 90.0 after 600 (on the test data +" in verdict(lesson)
    assert gained([lesson]).startswith(
        "Longer training of the dense model ends higher on the test data, beyond noise, in 1 of 1 comparisons: vqa on"
    )


def test_a_training_on_other_data_stands_alone():
    found = lessons(make_bench(part="coco"))
    assert [(one.curve.track.task, one.longer) for one in found] == [("vqa", ()), ("vqa-long", ())]


def test_a_shorter_dense_training_prolongs_nothing():
    found = lessons(make_bench(curve=[(50, 50.0), (100, 60.0)]))
    assert [(one.curve.track.task, one.curve.steps, one.longer) for one in found] == [
        ("vqa", 150, ()),
        ("vqa-long", 100, ()),
    ]
    assert gained(found) is None


def test_dense_trainings_alone_take_no_part_in_the_comparison():
    bench = make_bench()
    assert bench.dense_alone == {("xvlm-shapes", "vqa-long")}
    assert {place.task for place in columns(bench, "xvlm-shapes")} == {"vqa"}
    assert [len(row.cells) for row in figures_table(bench, "xvlm-shapes", "").rows] == [2, 2]
    assert kept(bench, "xvlm-shapes", 0.75)["multiflow"].seeds == 2
    assert bench.overall[0.75, "multiflow"].places == 1
    assert scope(bench).count("vqa") == 1
    alone = gather([make_cell(DENSE)])  # nothing is pruned yet: the baseline is all there is to see
    assert alone.dense_alone == frozenset()
    assert len(columns(alone, "xvlm-shapes")) == 1
