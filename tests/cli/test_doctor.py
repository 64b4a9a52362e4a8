"""``multiflow doctor``: it sees what is there, and says how to get what is not."""

from __future__ import annotations

from importlib import metadata

import pytest

from multiflow.cli import doctor
from tests.conftest import Run


def test_what_is_installed(run: Run):
    said = run("doctor")
    assert said.code == 0
    for name in ("torch", "transformers", "safetensors"):
        line = next(line for line in said.out.splitlines() if line.split()[:1] == [name])
        assert line.split()[1] == metadata.version(name)
    assert "models of the hub" in said.out


@pytest.mark.parametrize("found", [None, "0.1"], ids=["missing", "too old"])
def test_what_is_missing_or_too_old(run: Run, monkeypatch: pytest.MonkeyPatch, found: str | None):
    version = metadata.version

    def other(name: str) -> str:
        if name not in ("safetensors", "datasets"):
            return version(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr("multiflow.cli.doctor.version", other)
    said = run("doctor")
    assert said.code == 1
    assert "not everything is there: safetensors" in said.out
    assert "pip install -e '.[data]'" in said.out
    assert found is None or "0.1 is installed" in said.out


def test_one_who_installed_a_wheel_is_told_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "__file__", "/site-packages/multiflow/cli/doctor.py")
    assert doctor.install("data") == "pip install 'multiflow-pruning[data]'"
    assert doctor.install() == "pip install --upgrade multiflow-pruning"


def test_every_extra_that_users_need_is_described() -> None:
    extras = metadata.metadata("multiflow-pruning").get_all("Provides-Extra")
    assert set(extras) - set(doctor.DEVELOPMENT) <= set(doctor.EXTRAS)
