"""A glance: what a module of this project defines, without importing what it imports.

Importing torch takes seconds, and to know a component's settings nothing of torch is needed. So a
module's file is parsed, and of its statements only those are run that define a name which is looked
up, when it is looked up. What a function is annotated with is left out, since nothing here reads
it; the fields of pydantic models keep their types. Names from other modules of this project are
glanced at in the same way; any other import is made when a name that it gives is looked up.

Whatever cannot be known in this way raises :class:`NotGlanced` or whatever else it comes upon; then
the module has to be imported, see :func:`at_a_glance`.
"""

import ast
import builtins
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel

from fl_sim import component, errors, plain, registrations, registry, settings
from fl_sim.errors import FlSimError
from fl_sim.registrations import Declaration, locate
from fl_sim.registry import Registry

T = TypeVar("T")

PROJECT = frozenset({"fl_sim", "strategies", "clients", "experiments"})
SLOW = "torch"
"""What takes seconds to import; once it is there, a glance saves nothing."""

# Cheap, and the same on both sides: errors that are caught, settings that are compared.
_SHARED = {
    module.__name__: module for module in (component, errors, plain, registrations, settings)
}
_KEPT = frozenset({"ClassVar", "InitVar", "KW_ONLY"})


class NotGlanced(Exception):
    """What was asked for needs the real import."""


class Glance:
    """Modules of this project, as far as they have been looked at.

    Each glance has classes of its own: one's are not another's, nor the imported ones.

    Attributes:
        doubtful: whether something went wrong that only a glance comes upon, whoever caught it:
            some code makes a sentence of whatever it calls raises.
    """

    def __init__(self) -> None:
        self.doubtful = False
        self._modules: dict[str, ModuleType] = {
            **_SHARED,
            "importlib": _like(importlib, import_module=self.refuse),
            "fl_sim.registry": _like(
                registry, Registry=_registry_of(self), import_plugins=self._import_plugins
            ),
        }

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Say that the real import is needed; stands for what is not done at a glance.

        Raises:
            NotGlanced: always.
        """
        self.doubtful = True
        raise NotGlanced

    def _import_plugins(self, modules: Any) -> None:
        if modules != () and modules != []:
            self.refuse()

    def get(self, module: str, name: str) -> Any:
        """Return what a module of this project calls ``name``.

        Raises:
            NotGlanced: if there is no such module, or more has to be known than a glance can tell.
            AttributeError: if the module has no such name.
        """
        return getattr(self.module(module), name)

    def module(self, dotted: str) -> ModuleType:
        """Return a module, nothing of which has been run; see :meth:`get`."""
        if dotted not in self._modules:
            self._modules[dotted] = _Module(dotted, self)
        return self._modules[dotted]

    def register(self, declared: Declaration) -> None:
        """Run one statement that registers components.

        Raises:
            NotGlanced: if it is inside a function or a class.
        """
        module = self.module(declared.module)
        if declared.statement is None or not isinstance(module, _Module):
            self.refuse()
        names = _names_of(module)
        names.run(names.statements[declared.statement])

    def import_(
        self, name: str, _globals: Any = None, _locals: Any = None, chosen: Any = (), level: int = 0
    ) -> ModuleType:
        """Stand for ``__import__`` in a module that is glanced at."""
        top = name.partition(".")[0]
        if level == 0 and (top in PROJECT or name == "importlib"):
            module = self.module(name)
            return module if chosen else self.module(top)
        return __import__(name, _globals, _locals, chosen, level)


class _Module(ModuleType):
    """A module that runs what defines a name when the name is looked up."""

    def __init__(self, dotted: str, glance: Glance) -> None:
        super().__init__(dotted)
        path = locate(dotted)
        file = path / "__init__.py" if path is not None and path.is_dir() else path
        if file is None or not file.is_file():
            glance.refuse()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        self.__doc__ = ast.get_docstring(tree)
        self.__file__ = str(file)
        if path is not file:
            self.__path__ = [str(path)]
        vars(self)["__builtins__"] = _Names(self, tree, glance)

    def __getattr__(self, name: str) -> Any:
        return _names_of(self).look_up(name)


def _names_of(module: ModuleType) -> "_Names":
    found: _Names = vars(module)["__builtins__"]  # an attribute could hide one of the module's
    return found


class _Names(dict[str, Any]):
    """The builtins of a module that is glanced at: asked for what it has not defined yet."""

    def __init__(self, module: _Module, tree: ast.Module, glance: Glance) -> None:
        super().__init__(vars(builtins), __import__=glance.import_, __refuse__=glance.refuse)
        self.statements = tree.body
        self._module = module
        self._glance = glance
        self._waiting: dict[str, list[ast.stmt]] = {}
        functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
        for statement in tree.body:
            for single in _single(statement):
                for name in _needed_for(single, functions):
                    self._waiting.setdefault(name, []).append(single)
                    self.pop(name, None)  # a builtin's name that the module gives a meaning
        self._run: set[int] = set()

    def __missing__(self, name: str) -> Any:
        try:
            return self.look_up(name)
        except AttributeError:
            self._glance.doubtful = True
            raise KeyError(name) from None

    def look_up(self, name: str) -> Any:
        """Return a name's value, or the package's module of that name."""
        for statement in self._waiting.pop(name, ()):
            self.run(statement)
        if name in vars(self._module):
            return vars(self._module)[name]
        if "__path__" in vars(self._module) and locate(f"{self._module.__name__}.{name}"):
            return self._glance.module(f"{self._module.__name__}.{name}")
        raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}")

    def run(self, statement: ast.stmt) -> None:
        """Run a statement of the module, unless it has been."""
        if id(statement) in self._run:
            return
        self._run.add(id(statement))
        kept = ast.fix_missing_locations(_Stripped(vars(self._module)).visit(statement))
        code = compile(ast.Module([kept], []), str(self._module.__file__), "exec")
        try:
            exec(code, vars(self._module))
        except FlSimError:
            raise
        except BaseException:
            self._glance.doubtful = True
            raise


class _Stripped(ast.NodeTransformer):
    """Takes away what only readers and type checkers need, and would have to be imported."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        every = node.args
        for argument in (*every.posonlyargs, *every.args, *every.kwonlyargs):
            argument.annotation = None
        for rest in (every.vararg, every.kwarg):
            if rest is not None:
                rest.annotation = None
        if any(not self._is_here(decorator) for decorator in node.decorator_list):
            node.decorator_list = []
            node.body = [ast.parse("__refuse__()").body[0]]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """At a module's top level: a value without its type."""
        if node.value is None:
            return ast.Pass()
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        typed = any(self._is_model(base) for base in node.bases)
        body: list[ast.stmt] = []
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign):
                if not typed and not _mentioned(statement.annotation) & _KEPT:
                    statement.annotation = ast.Name("object", ast.Load())
                body.append(statement)
            else:
                body.append(self.visit(statement))
        node.body = body
        return node

    def _is_model(self, base: ast.expr) -> bool:
        kind = eval(compile(ast.Expression(base), "<base>", "eval"), self._names)
        return isinstance(kind, type) and issubclass(kind, BaseModel)

    def _is_here(self, decorator: ast.expr) -> bool:
        """Whether a decorator can be had without importing anything large."""
        return SLOW not in _mentioned(decorator) or SLOW in sys.modules


def _single(statement: ast.stmt) -> Iterator[ast.stmt]:
    """Yield an import's names one by one, anything else as it is."""
    if isinstance(statement, ast.Import):
        yield from (ast.Import([alias]) for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            yield ast.ImportFrom(statement.module, [alias], statement.level)
    else:
        yield statement


def _needed_for(statement: ast.stmt, functions: dict[str, ast.FunctionDef]) -> set[str]:
    """Return the names that have no value, or another one, until a statement has been run.

    Args:
        statement: of a module's top level.
        functions: the module's own, by name; one that is called, or decorates, may change things.
    """
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        decorating = set().union(*map(_mentioned, statement.decorator_list))
        return {statement.name} | _reached(decorating, functions)
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return _mentioned(statement)
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [name for target in targets for name in ast.walk(target)]
        if not any(isinstance(name, ast.Attribute | ast.Subscript) for name in names):
            return {name.id for name in names if isinstance(name, ast.Name)}
    # What registers runs only when a registry asks for it; see Glance.register.
    if any(isinstance(n, ast.Attribute) and n.attr == "register" for n in ast.walk(statement)):
        return set()
    mentioned = _mentioned(statement)
    return mentioned | _reached(mentioned, functions)


def _reached(names: set[str], functions: dict[str, ast.FunctionDef]) -> set[str]:
    """Return what functions among some names mention, and those that they mention in turn."""
    found: set[str] = set()
    ahead = names & functions.keys()
    while ahead:
        inside = _mentioned(functions[ahead.pop()]) - found
        found |= inside
        ahead |= inside & functions.keys()
    return found


def _mentioned(node: ast.AST) -> set[str]:
    """Return every name that is read, given a value or imported in a piece of a program."""
    found = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    aliases = (part for part in ast.walk(node) if isinstance(part, ast.alias))
    return found | {alias.asname or alias.name.partition(".")[0] for alias in aliases}


def _registry_of(glance: Glance) -> type[Registry[Any]]:
    class Glanced(Registry[T]):
        """A registry whose files are glanced at."""

        def _is_called(self, module: str, name: str) -> bool:
            try:
                return glance.get(module, name) is self
            except (AttributeError, NotGlanced):
                return False

        def _load(self, declared: Declaration) -> None:
            glance.register(declared)

    return Glanced


def _like(module: ModuleType, **others: Any) -> ModuleType:
    """Return a module that differs from another in some names."""
    same = ModuleType(module.__name__, module.__doc__)
    vars(same).update({**vars(module), **others})
    return same


def at_a_glance(module: str, name: str, check: Callable[[Any], T]) -> T | None:
    """Do what needs no data with a glance instead of an import.

    Args:
        module, name: what is glanced at, for example a class that reads a file.
        check: gets it.

    Returns:
        What ``check`` returns; ``None`` where that could not be told from a glance, or where a
        glance saves nothing because what is slow has been imported.

    Raises:
        FlSimError: what ``check`` raised, where the glance was enough for it.
    """
    if SLOW in sys.modules:
        return None
    glance = Glance()
    try:
        return check(glance.get(module, name))
    except FlSimError:
        if glance.doubtful or SLOW in sys.modules:
            return None  # it came upon more than a glance; the import may know better
        raise
    except Exception:
        return None
