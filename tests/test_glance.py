"""A glance tells what the import tells, without torch; and says so where it cannot."""

import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from experiments.catalogue.contents import KINDS
from experiments.run.scenario import Scenario
from fl_sim.errors import FlSimError
from fl_sim.glance import Glance, NotGlanced, at_a_glance
from fl_sim.registry import Registry

ROOT = Path(__file__).parents[1]
SCENARIOS = ROOT / "experiments/scenarios"
SCHEMAS = """
def schemas(get):
    from experiments.catalogue.contents import KINDS, TABLES
    found = {}
    for kind in KINDS:
        registry = get(kind.module, kind.registry)
        for name, summary in registry.summaries().items():
            keys = kind.settings(get, name, registry.get(name))
            schema = keys.model_json_schema() if keys else None
            found[f"{kind.name} {name}"] = [summary, schema]
    for name, place in TABLES.items():
        found[name] = ["", get(*place).model_json_schema()]
    found["scenario"] = ["", get("experiments.run.scenario", "Scenario").model_json_schema()]
    return found
"""
BASE = {"mode": "centralized", "dataset": "phantoms", "model": "cnn"}
MISTAKES: list[dict[str, Any]] = [
    {"mode": "centralised"},
    {"modle": "cnn"},
    {"dataset": "dermamist"},
    {"dataset": {"name": "phantoms", "size": "28"}},
    {"dataset": "x.csv"},
    {"model": "resnt18"},
    {"model": {"name": "cnn", "stem": "tiny"}},
    {"attack": {"name": "transpose", "imges": 3}},
    {"attack": {"name": "dec"}},
    {"attack": {"name": "dec", "codec": "png", "carrier": {"name": "lsb", "bit": 3}}},
    {"attack": {"name": "dec", "codec": "png", "contents": "latents"}},
    {"attack": {"name": "dec", "codec": "png", "external": "phantoms", "carrier": "weights"}},
    {"attack": {"name": "dec", "codec": "factorized", "external": "phantoms"}},
    {"attack": {"name": "combined", "parts": {"a": "transpse"}}},
    {"defense": {"name": "lwlrd", "high": 1e-5}},
    {"defense": {"name": "chain", "steps": ["lwlrd", "random_bts"]}},
    {"training": {"epochs": True}},
    {"training": {"dp": {"noise": 1}}},
    {"attacker": {"restorations": ["afine"]}},
    {"federation": {}},
    {"mode": "federated", "federation": {"strategy": "fedprx"}},
    {"mode": "federated", "federation": {"strategy": "fedprox", "proximal": 1}},
    {"mode": "federated", "federation": {"strategy": "krum", "hospitals": 2}},
    {"mode": "federated", "federation": {"partition": "dirichlt"}},
    {"mode": "federated", "federation": {"malicious": [7]}},
    {"model": {"name": "two_headed", "codec": "png"}},
    {"plugins": "my_attacks"},
    {"model": "no_module:make"},
]


def _outside(program: str, *arguments: str) -> Any:
    """Run a program in a process of its own; return what it printed, from JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _imported(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


GLANCES = (
    SCHEMAS
    + """
import json, sys
from pathlib import Path
from fl_sim.errors import FlSimError
from fl_sim.glance import Glance, at_a_glance
module = "experiments.run.scenario"
def said(values):
    try:
        at_a_glance(module, "Scenario", lambda s: s.from_mapping(values))
    except FlSimError as error:
        return str(error)
mistakes = [said(values) for values in json.loads(sys.argv[1])]
read = Glance().get(module, "Scenario").from_toml
scenarios = {f.name: [(s := read(f)).identity, s.model_dump(mode="json")]
             for f in Path(sys.argv[2]).glob("*.toml")}
components = schemas(Glance().get)
slow = [m for m in ("torch", "flwr", "ray", "torchvision", "pandas") if m in sys.modules]
print(json.dumps({"mistakes": mistakes, "scenarios": scenarios, "components": components,
                  "slow": slow}))
"""
)


@pytest.fixture(scope="module")
def glanced() -> dict[str, Any]:
    """What a process of its own says at a glance, and what of the slow it imported for that."""
    return dict(_outside(GLANCES, json.dumps([{**BASE, **m} for m in MISTAKES]), str(SCENARIOS)))


def test_nothing_slow_is_imported_for_a_glance(glanced: dict[str, Any]) -> None:
    assert glanced["slow"] == []


def test_every_component_is_the_same_at_a_glance(glanced: dict[str, Any]) -> None:
    seen = glanced["components"]
    own: dict[str, Any] = {}
    exec(SCHEMAS, own)
    imported = json.loads(json.dumps(own["schemas"](_imported)))
    # Other tests may have registered components of their own in this process.
    assert len(seen) > 90 and seen == {name: imported[name] for name in seen}


def test_every_registry_is_known_to_the_catalogue() -> None:
    made = re.compile(r"^([A-Z]+)(?:: Registry\[.*\])? = (?:Registry|Models)\(", re.MULTILINE)
    found = set()
    for folder in ("fl_sim", "strategies", "clients"):
        for file in (ROOT / folder).rglob("*.py"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found |= {(module, name) for name in made.findall(file.read_text())}
    assert found == {(kind.module, kind.registry) for kind in KINDS}


def test_names_are_those_that_importing_the_whole_package_gives() -> None:
    for kind in KINDS:
        registry: Registry[Any] = _imported(kind.module, kind.registry)
        shipped = Glance().get(kind.module, kind.registry).summaries()
        imported = {entry.name: entry.summary for entry in registry.entries()}
        assert shipped and shipped.items() <= imported.items(), kind.name


def test_a_mistake_has_the_same_sentence_before_torch_is_imported(glanced: dict[str, Any]) -> None:
    for mistake, sentence in zip(MISTAKES, glanced["mistakes"], strict=True):
        values = {**BASE, **mistake}
        try:
            Scenario.from_mapping(values)
            real = None
        except FlSimError as error:
            real = str(error)
        if "plugins" in values or values["model"] == "no_module:make":  # needs an import
            assert real is not None and sentence is None
        else:
            assert sentence == real, values
    assert sum(sentence is not None for sentence in glanced["mistakes"]) >= 24


def test_what_is_right_passes_and_is_the_same_scenario(glanced: dict[str, Any]) -> None:
    assert len(glanced["scenarios"]) >= 10
    for name, seen in glanced["scenarios"].items():
        real = Scenario.from_toml(SCENARIOS / name)
        assert seen == [real.identity, json.loads(real.model_dump_json())], name


def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Glance:
    """Return a glance at a project of one module, ``seen``."""
    (tmp_path / "seen.py").write_text(textwrap.dedent(text))
    (tmp_path / "loud.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("fl_sim.glance.locate", lambda dotted: tmp_path / f"{dotted}.py")
    return Glance()


def test_only_what_a_name_needs_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glance = _project(
        tmp_path,
        monkeypatch,
        """
        import loud
        from loud import Thing
        from pydantic import BaseModel
        BROKEN = 1 / 0
        TABLE = {"a": 1}
        TABLE["b"] = 2
        KEPT = []
        def keep(function):
            KEPT.append(function.__name__)
            return function
        @keep
        def first(x: loud.Thing) -> Thing:
            return TABLE
        class Plain:
            thing: loud.Thing = None
            @loud.decorated
            def late(self) -> Thing: ...
        class Keys(BaseModel):
            count: int = 1
        def len(x):
            return "own"
        def measure():
            return len([])
    """,
    )
    assert glance.get("seen", "KEPT") == ["first"]
    assert glance.get("seen", "first")(None) == {"a": 1, "b": 2}
    assert glance.get("seen", "Keys").model_fields["count"].annotation is int
    assert glance.get("seen", "measure")() == "own"
    with pytest.raises(RuntimeError, match="imported"):
        glance.get("seen", "Thing")
    with pytest.raises(ZeroDivisionError):
        glance.get("seen", "BROKEN")
    with pytest.raises(AttributeError):
        glance.get("seen", "nothing")


def test_a_method_that_torch_decorates_is_not_glanced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    glance = _project(
        tmp_path,
        monkeypatch,
        """
        import torch
        class Codec:
            @torch.no_grad()
            def encode(self): return 1
            def name(self): return "x"
    """,
    )
    codec = glance.get("seen", "Codec")()
    assert codec.name() == "x"
    with pytest.raises(NotGlanced):
        codec.encode()


def test_with_torch_there_nothing_is_glanced() -> None:
    importlib.import_module("torch")
    assert at_a_glance("fl_sim.data", "no_such_name", lambda found: found) is None


def test_what_only_a_glance_comes_upon_is_no_mistake_of_the_user() -> None:
    program = """
        import json
        from fl_sim.errors import FlSimError
        from fl_sim.glance import at_a_glance
        def check(parse):
            try:
                parse.__globals__["__builtins__"]["__refuse__"]()
            except Exception as error:  # as code does that calls a stranger's
                raise FlSimError(f"It raises {error!r}.")
        print(json.dumps(at_a_glance("fl_sim.data", "dataset_settings", check)))
    """
    assert _outside(program) is None
