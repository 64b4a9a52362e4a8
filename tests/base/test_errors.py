from __future__ import annotations

import pickle

from multiflow.base.errors import MultiflowError


def test_an_argument_is_named_as_the_reader_gives_it():
    error = MultiflowError("{steps} 0 with {a, 2}; pass {steps=1}, or leave {pattern} out", field=["steps", "pattern"])
    assert str(error) == "steps 0 with {a, 2}; pass steps=1, or leave pattern out"
    option = {"steps": "--set steps", "pattern": "--pattern"}.get
    assert error.worded(option) == "--set steps 0 with {a, 2}; pass --set steps=1, or leave --pattern out"
    assert error.worded(str) == str(error)


def test_a_place_before_it_changes_nothing_else():
    error = MultiflowError("{a=} is wrong", field="a").within("tasks.vqa")
    assert (str(error), error.fields) == ("tasks.vqa: a= is wrong", ("a",))


def test_it_crosses_processes():
    error = pickle.loads(pickle.dumps(MultiflowError("{a} is wrong", field="a")))
    assert (str(error), error.worded("--{}".format)) == ("a is wrong", "--a is wrong")


def test_a_message_of_thousands_of_words_keeps_its_beginning_and_its_fix():
    error = MultiflowError(f"{{sparsity}} is '{'0.75 ' * 3_000}'; expected a number", field="sparsity")
    for said in (str(error), error.worded("--{}".format)):
        assert len(said) < 2_300
        assert "sparsity is '0.75 0.75" in said
        assert said.endswith("; expected a number")
