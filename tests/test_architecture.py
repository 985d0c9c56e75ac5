from __future__ import annotations

import ast
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import skelpipe
from skelpipe.released import MAE, MOCO

ROOT = Path(skelpipe.__file__).parent.parent
FOLDERS = {"skelpipe": ROOT / "skelpipe", "skelpipe.cli": ROOT / "cli"}

# What every unit but these themselves may use.
COMMON = {"errors", "files", "skeleton", "manifest", "config", "random"}
# Unit (a folder or a module of the package) -> units it may import beside the common ones.
ALLOWED: dict[str, set[str]] = {
    "shards": set(),
    "prepare": {"shards"},
    "stream": {"shards"},
    "views": {"stream"},
    "models": {"distributed"},
    "optim": set(),
    "distributed": set(),
    "methods": {"models", "views", "stream", "optim", "distributed"},
    "checkpoint": set(),
    "costs": set(),
    "estimate": {"costs", "distributed"},
    "released": {"methods", "checkpoint"},
    "train": {"methods", "stream", "shards", "optim", "checkpoint", "estimate", "distributed"},
    "protocols": {"methods", "models", "views", "stream", "shards", "optim", "checkpoint",
                  "distributed"},
    "api": {"protocols", "models", "views", "stream", "shards", "checkpoint"},
    "export": {"api", "stream"},
    "report": {"protocols", "train", "methods", "stream", "shards", "checkpoint"},
    "tables": {"report", "protocols", "train", "prepare", "stream", "shards", "checkpoint",
               "estimate"},
    "bench": {"prepare", "methods", "models", "views", "costs", "stream", "shards", "estimate",
              "optim", "train", "protocols"},
    "cli": {"tables", "report", "protocols", "train", "prepare", "bench", "estimate", "stream",
            "shards", "checkpoint", "distributed", "released", "api", "export"},
    # The common ones among themselves.
    "errors": set(),
    "files": set(),
    "skeleton": set(),
    "random": set(),
    "manifest": {"errors", "skeleton"},
    "config": {"errors", "manifest"},
}  # fmt: skip


def module_files() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


FILES = module_files()


@cache
def imports(module: str) -> frozenset[str]:
    """Full names of all that a module imports, wherever in the file: modules, or names in them."""
    return frozenset(_imports(module))


def _imports(module: str) -> Iterator[str]:
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def modules_imported(module: str) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    for name in imports(module):
        while name and name not in FILES:
            name = name.rpartition(".")[0]
        if name and name != "skelpipe":
            found.add(name)
    return found


def unit(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def libraries(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)} - {"skelpipe"} - sys.stdlib_module_names


MODULES = sorted(name for name in FILES if unit(name))


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_the_allowed_ways(module: str) -> None:
    own = unit(module)
    common = set() if own in COMMON else COMMON
    used = {unit(name) for name in modules_imported(module)} - {own}
    assert own in ALLOWED, "a new unit: say in the table what it may import"
    assert used <= ALLOWED[own] | common


def test_the_table_has_no_circle_and_no_stale_row() -> None:
    graph = {
        name: allowed | (COMMON if name not in COMMON else set())
        for name, allowed in ALLOWED.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(ALLOWED)
    assert set(ALLOWED) == {unit(module) for module in MODULES}


def test_the_commands_are_used_by_nothing() -> None:
    users = {
        module for module in FILES if any(unit(name) == "cli" for name in modules_imported(module))
    }
    assert {unit(module) for module in users} <= {"cli"}


def test_preparation_never_reaches_torch() -> None:
    reached = {module for module in MODULES if unit(module) in ("prepare", "shards")}
    todo = list(reached)
    while todo:
        for name in modules_imported(todo.pop()) - reached:
            reached.add(name)
            todo.append(name)
    assert {module for module in reached if "torch" in libraries(module)} == set()


@pytest.mark.parametrize("library", ["typer", "rich", "click"])
def test_the_screen_belongs_to_the_commands(library: str) -> None:
    assert {unit(module) for module in MODULES if library in libraries(module)} <= {"cli"}


def test_models_know_no_data_set() -> None:
    for module in MODULES:
        if unit(module) == "models":
            used = {unit(name) for name in modules_imported(module)}
            assert used <= {"models", "errors", "skeleton", "config", "random", "distributed"}


def test_views_and_methods_take_only_the_batch_from_the_stream() -> None:
    for module in MODULES:
        if unit(module) in ("views", "methods"):
            taken = {name for name in imports(module) if name.startswith("skelpipe.stream")}
            assert taken <= {"skelpipe.stream.source.Batch"}


@pytest.mark.parametrize("library", ["pickle", "dill", "joblib", "cloudpickle"])
def test_nothing_unpickles(library: str) -> None:
    for module, path in FILES.items():
        assert library not in {name.split(".")[0] for name in imports(module)}
        assert "allow_pickle=True" not in path.read_text(encoding="utf-8")


def test_torch_loads_in_one_place_and_nothing_but_weights() -> None:
    found = []
    for module, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        calls = [
            {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
        ]
        # However it may be named or split over lines: all mentions are calls.
        mentions = len(re.findall(r"\btorch\s*\.\s*load\b|weights_only", text))
        assert mentions == 2 * len(calls), module
        found += [(module, call.get("weights_only")) for call in calls]
        for name in imports(module):
            assert not name.startswith(("torch.load", "torch.serialization")), module
        assert "import torch as" not in text
    assert found == [("skelpipe.released", "True")]


def test_types_beside_tensors_are_let_in_where_torch_loads_and_only_there() -> None:
    released = ast.parse(FILES["skelpipe.released"].read_text(encoding="utf-8"))
    (around,) = [
        node
        for node in ast.walk(released)
        if isinstance(node, ast.With) and "torch.load" in ast.unparse(node)
    ]
    (item,) = around.items
    assert ast.unparse(item) == "torch.serialization.safe_globals(list(form.admitted))"
    for module, path in FILES.items():
        mentions = path.read_text(encoding="utf-8").count("safe_globals")
        assert mentions == (module == "skelpipe.released"), module
    assert [MOCO.admitted, MAE.admitted] == [(), (Namespace,)]


def test_no_library_generator_draws_what_must_be_keyed() -> None:
    for module in MODULES:
        if unit(module) in ("views", "stream", "methods"):
            text = FILES[module].read_text(encoding="utf-8")
            text = text.replace("torch.random.fork_rng", "")  # initial weights are not keyed
            for word in ("torch.rand", "torch.bernoulli", "multinomial", "np.random", "Generator"):
                assert word not in text, (module, word)
