"""What the text of a package's files says of the components that they register, nothing imported.

A registration is a call of ``REGISTRY.register("name", "one line")`` at a file's top level, as a
decorator or of what it returns. One that is written in another way, in a loop for example, is
declared without a name: who wants to know it has to run it.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_REGISTER = "register"


@dataclass(frozen=True)
class Declaration:
    """One registration, as a file's text has it.

    Args:
        module: dotted name of the file's module.
        file: the file.
        registry: module and name that the registry is known by in this file.
        name: of the component; ``None`` where the text does not say it.
        summary: the line about it.
        statement: number of the statement at the file's top level that registers it, from 0;
            ``None`` where that is in a function or a class.
    """

    module: str
    file: Path
    registry: tuple[str, str]
    name: str | None
    summary: str
    statement: int | None


def locate(dotted: str) -> Path | None:
    """Return the file of a module, or the folder of a package, without importing it.

    Only what the dotted name begins with has to be importable.
    """
    top, *parts = dotted.split(".")
    spec = importlib.util.find_spec(top)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root, *parts)
        if path.is_dir():
            return path
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
    return None


def source_files(package: str) -> dict[str, Path]:
    """Return the modules that lie directly in a package and their files, sorted.

    Args:
        package: its dotted name; or a module's, which then is the only one.
    """
    path = locate(package)
    if path is None:
        return {}
    if path.is_file():
        return {package: path}
    found = {file.stem: file for file in path.glob("*.py")}
    found |= {file.parent.name: file for file in path.glob("*/__init__.py")}
    valid = sorted(name for name in found if name.isidentifier() and not name.startswith("__"))
    return {f"{package}.{name}": found[name] for name in valid}


def read_declarations(module: str, file: Path) -> tuple[Declaration, ...]:
    """Return what a file registers, in its order.

    Raises:
        SyntaxError: if it is no Python.
    """
    return _read(module, file, file.stat().st_mtime_ns)


@functools.cache
def _read(module: str, file: Path, changed: int) -> tuple[Declaration, ...]:
    text = file.read_text(encoding="utf-8")
    if f".{_REGISTER}" not in text:
        return ()
    return tuple(_declarations(module, file, text))


def _declarations(module: str, file: Path, text: str) -> Iterator[Declaration]:
    tree = ast.parse(text)
    origins = dict(_origins(module, tree))
    lines = [n for n, line in enumerate(text.split("\n"), start=1) if f".{_REGISTER}" in line]
    ends = [0, *(statement.end_lineno or 0 for statement in tree.body)]
    for number, statement in enumerate(tree.body):
        if not any(ends[number] < line <= ends[number + 1] for line in lines):
            continue
        literal = {id(call.func): call for call in _calls(statement)}
        for node in ast.walk(statement):
            origin = origins.get(_registry(node))
            if origin is None:
                continue
            call = literal.get(id(node))
            words = _words(call) if call else None
            name, summary = words or (None, "")
            inside = isinstance(statement, ast.FunctionDef | ast.ClassDef) and call is None
            yield Declaration(module, file, origin, name, summary, None if inside else number)


def _origins(module: str, tree: ast.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the names that a registry may have here, and the module and name each comes from."""
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                yield alias.asname or alias.name, (statement.module, alias.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id, (module, target.id)


def _registry(node: ast.AST) -> str:
    """Return what ``register`` is taken from, if the node takes it from a name."""
    if isinstance(node, ast.Attribute) and node.attr == _REGISTER:
        return node.value.id if isinstance(node.value, ast.Name) else ""
    return ""


def _calls(statement: ast.stmt) -> Iterator[ast.Call]:
    """Yield the calls that register at once: decorators, and what is called with a component."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield from (call for call in statement.decorator_list if isinstance(call, ast.Call))
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        yield from (call for call in (statement.value.func,) if isinstance(call, ast.Call))


def _words(call: ast.Call) -> tuple[str, str] | None:
    try:
        name, summary = (ast.literal_eval(argument) for argument in call.args)
    except ValueError:  # not two, or no literals
        return None
    both = isinstance(name, str) and isinstance(summary, str) and not call.keywords
    return (name, summary) if both else None
