"""What the text of files says of registrations."""

from pathlib import Path

import pytest

from fl_sim.registrations import read_declarations, source_files
from fl_sim.registry import Registry

TEXT = """
import atexit
from base import THINGS as mine
atexit.register(print)
@mine.register("one", "the " "first")
class One: ...
mine.register("two", "a function")(
    print
)
for name in ("three", "four"):
    mine.register(name, "in a loop")(name)
def later():
    mine.register("five", "inside")(print)
"""


def test_registrations_are_read_or_told_to_be_unreadable(tmp_path: Path) -> None:
    file = tmp_path / "things.py"
    file.write_text(TEXT)
    found = read_declarations("things", file)
    assert [(d.name, d.summary, d.statement) for d in found] == [
        ("one", "the first", 3),
        ("two", "a function", 4),
        (None, "", 5),
        (None, "", None),
    ]
    assert {d.registry for d in found} == {("base", "THINGS")}


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "things.py"
    file.write_text("A = 1")
    assert read_declarations("things", file) == ()
    file.write_text("THINGS = 1\n@THINGS.register('a', 'b')\ndef f(): ...")
    assert [d.name for d in read_declarations("things", file)] == ["a"]


def test_only_modules_of_the_package_itself_are_its_files() -> None:
    files = source_files("fl_sim.attacks")
    assert files["fl_sim.attacks.dec"].parts[-2:] == ("dec", "__init__.py")
    assert "fl_sim.attacks.combined" in files and not [n for n in files if "__init__" in n]
    assert list(source_files("fl_sim.data.partitions")) == ["fl_sim.data.partitions"]
    assert source_files("no_such_package") == {}


def test_a_registry_imports_only_the_file_that_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "reg_things"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text(
        "from fl_sim.registry import Registry\nTHINGS = Registry('thing', 'reg_things')\n"
    )
    for name, body in (
        ("near", "@THINGS.register('far', 'another name')\ndef f(): ..."),
        ("loud", "raise RuntimeError\n@THINGS.register('loud', 'breaks')\ndef f(): ..."),
    ):
        (package / f"{name}.py").write_text(f"from reg_things.base import THINGS\n{body}")
    monkeypatch.syspath_prepend(tmp_path)
    from reg_things.base import THINGS  # type: ignore[import-not-found]

    registry: Registry[object] = THINGS
    assert registry.summaries() == {"far": "another name", "loud": "breaks"}
    assert registry.get("far").__module__ == "reg_things.near"
    with pytest.raises(ValueError, match="Did you mean 'loud'"):
        registry.get("lod")
    with pytest.raises(RuntimeError):
        registry.get("loud")
