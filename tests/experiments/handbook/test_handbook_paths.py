"""The documentation can be followed: its commands are given, its Python is run, in a new folder."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

import fl_sim as package
from experiments.cli.main import app
from experiments.run.scenario import Scenario
from fl_sim.egress.policy import Policy
from fl_sim.settings import parse
from tests.experiments.cli_kit import fl_sim
from tests.experiments.page_kit import Fence, fences, followed, write

FOLLOWED = followed()


def test_every_path_has_something_to_follow() -> None:
    assert {"index.md", "paths/clean.md", "paths/study.md", "paths/flower.md"} <= set(FOLLOWED)


@pytest.mark.slow
@pytest.mark.parametrize("page", FOLLOWED)
def test_a_page_can_be_followed_from_top_to_bottom(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for fence in FOLLOWED[page]:
        if fence.wish.startswith("write"):
            write(fence, tmp_path)
        elif fence.language == "python":
            exec(compile(fence.text, page, "exec"), names)
        else:
            for words in fence.commands():
                done = fl_sim(*words, cwd=tmp_path)
                assert done.returncode == fence.exit_status, done.stdout + done.stderr


COMMANDS = [(f.page, words) for f in fences() for words in f.commands()]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda one: " ".join(one))
def test_every_command_on_a_page_is_one(page: str, words: list[str]) -> None:
    command: click.Command | None = typer.main.get_command(app)
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        command = command.get_command(click.Context(command), rest.pop(0))
    assert command is not None, (page, words)
    if not isinstance(command, click.Group):
        command.make_context("fl-sim", rest)  # raises on an option that there is not


@pytest.mark.parametrize("fence", fences(), ids=lambda fence: fence.page)
def test_every_scenario_or_policy_on_a_page_is_one(fence: Fence) -> None:
    if fence.language != "toml":
        return
    values = tomllib.loads(fence.text)
    if "grid" in values:
        return
    if "judged_by" in values:
        parse(Policy, values, "The policy on the page")
        return
    mode = "federated" if "federation" in values else "centralized"
    Scenario.create(**{"mode": mode, "dataset": "phantoms", "model": "cnn", **values})


@pytest.mark.parametrize("fence", fences(), ids=lambda fence: fence.page)
def test_every_python_on_a_page_is_python_and_names_what_there_is(fence: Fence) -> None:
    if fence.language != "python" or "<!-- include" in fence.text:
        return
    for node in ast.walk(ast.parse(fence.text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "fl_sim" or node.attr in package.__all__, node.attr
        if isinstance(node, ast.ImportFrom) and node.module == "fl_sim":
            assert {name.name for name in node.names} <= set(package.__all__)
