from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from tyro.conf import OmitArgPrefixes, Positional

from multiflow.base.errors import MultiflowError
from multiflow.cli import Command
from multiflow.cli.settings import Seed, parse, parse_hyper, parse_value


@dataclass(frozen=True)
class Inner:
    """Inner.

    Args:
        depth: how deep
    """

    depth: int = 2


@dataclass(frozen=True)
class Given:
    """Given.

    Args:
        model: what
        sparsity: shares
        set: pairs
        mode: how
        resume: go on
    """

    model: Positional[str]
    sparsity: tuple[float, ...] = ()
    set: tuple[str, ...] = ()
    mode: Literal["fast", "slow"] = "fast"
    resume: bool = False
    seed: Seed = 0
    inner: OmitArgPrefixes[Inner] = field(default_factory=Inner)


COMMAND = Command("try", "Try it.", "multiflow try me")


def read(*args: str) -> Given:
    settings = parse(Given, COMMAND, args)
    assert settings is not None
    return settings


def test_options_in_any_order() -> None:
    expected = Given("m", (0.63, 0.75), ("a=1", "b=x"), "slow", True, 3, Inner(5))
    options = ["--set", "a=1", "b=x", "--mode", "slow", "--resume", "--seed", "3", "--depth", "5"]
    assert read("m", "--sparsity", "0.63", "0.75", *options) == expected
    assert read("--sparsity", "0.63", "0.75", *options, "m") == expected


def test_equals_signs_and_defaults() -> None:
    assert read("m", "--seed=4") == Given("m", seed=4)


@pytest.mark.parametrize("words", ["0.5,0.75", "50%,75%", "0.5; 0.75", ".5 75%", "50%, 0.75,"])
def test_shares_may_be_in_percent_and_joined_by_commas(words: str) -> None:
    assert read("m", "--sparsity", *words.split()).sparsity == (0.5, 0.75)
    assert read("m", "--set", "a=1,2", "--sparsity=" + words.replace(" ", "")).set == ("a=1,2",)


def test_help_prints_the_example_and_gives_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Given, COMMAND, ["--help"]) is None
    out = capsys.readouterr().out
    assert "Try it." in out
    assert "\nexample:\n  multiflow try me\n" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "'multiflow try' lacks its argument MODEL; see 'multiflow try --help'"),
        (["m", "--seeed", "3"], "'multiflow try' takes no option '--seeed'; did you mean '--seed'?"),
        (["m", "--dept", "3"], "'multiflow try' takes no option '--dept'; did you mean '--depth'?"),
        (["m", "--zzz"], "'multiflow try' takes no option '--zzz'; see 'multiflow try --help'"),
        (["m", "more"], "'multiflow try' takes no argument 'more'; see 'multiflow try --help'"),
        (["m", "--seed", "1.5"], "'multiflow try': --seed cannot take '1.5'; see 'multiflow try --help'"),
        (["m", "--sparsity", "0.5", "no"], "'multiflow try': --sparsity cannot take '0.5', 'no'; see"),
        (["m", "--depth", "deep"], "'multiflow try': --depth cannot take 'deep'; see"),
        (["m", "--mode", "idle"], "'multiflow try': invalid choice 'idle' for argument '--mode'. Expected one of"),
        (["m", "--sparsity", "--seed", "3"], "'multiflow try': Missing value for argument '--sparsity'; see"),
        (["m", "--set"], "'multiflow try': Missing value for argument '--set'; see 'multiflow try --help'"),
        (["m", "--seed"], "'multiflow try': Missing value for argument '--seed'. Expected 1 values; see"),
    ],
)
def test_bad_arguments_are_one_sentence(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MultiflowError) as caught:
        parse(Given, COMMAND, args)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_values_have_the_type_that_they_look_like() -> None:
    texts = ["60", "-2", "0.5", "1e-5", "true", "False", "exp", "1,2"]
    values = [parse_value(text) for text in texts]
    assert values == [60, -2, 0.5, 1e-5, True, False, "exp", "1,2"]
    assert [type(value) for value in values[:6]] == [int, int, float, float, bool, bool]


def test_hyper_parameters_take_the_type_of_their_default() -> None:
    defaults = {"alpha": 0.5, "steps": 60, "schedule": "exp", "fast": False, "limit": None}
    given = ["alpha=1e-3", "steps=3", "schedule=2", "fast=true", "limit=7"]
    hyper = parse_hyper(given, defaults)
    assert hyper == {"alpha": 0.001, "steps": 3, "schedule": "2", "fast": True, "limit": 7}
    assert parse_hyper(["unknown=3"], defaults) == {"unknown": 3}  # the pruner knows its own names
    assert parse_hyper(["schedule=a=b"], defaults) == {"schedule": "a=b"}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("alpha", "--set got 'alpha'; expected NAME=VALUE"),
        ("=3", "--set got '=3'; expected NAME=VALUE"),
    ],
)
def test_bad_hyper_parameters(pair: str, said: str) -> None:
    with pytest.raises(MultiflowError) as caught:
        parse_hyper([pair], {"alpha": 0.5, "steps": 60, "fast": False})
    assert str(caught.value).startswith(said)


def test_what_is_given_again_is_put_behind_the_first() -> None:
    expected = Given("m", (0.5, 0.75, 0.9), ("a=1", "b=x", "c=2"))
    apart = ["--set", "a=1", "b=x", "--sparsity", "0.5", "--set", "c=2", "--sparsity", "0.75", "90%"]
    assert read("m", *apart) == expected
    assert read("m", "--set=a=1", "--sparsity=0.5", "--set=b=x", "--sparsity=0.75,90%", "--set", "c=2") == expected


def test_what_is_given_again_takes_no_positional_argument_along() -> None:
    expected = Given("m", (0.5, 0.75), ())
    assert read("--sparsity=0.5", "m", "--sparsity=0.75") == expected


def test_of_what_takes_one_value_the_last_counts() -> None:
    assert read("m", "--mode", "slow", "--mode=fast") == read("m", "--mode", "fast")


def test_a_flag_may_be_given_twice() -> None:
    assert read("m", "--resume", "--resume") == Given("m", resume=True)
