from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import skelpipe

ROOT = Path(skelpipe.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def python(code: str, *, cwd: Path) -> str:
    """Output of a fresh interpreter, started where no folder of ours lies."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_folder_with_code_is_a_package_that_is_installed() -> None:
    found = {
        ".".join(("skelpipe", *file.parent.relative_to(ROOT / "skelpipe").parts))
        for file in (ROOT / "skelpipe").rglob("__init__.py")
    }
    found |= {f"skelpipe.{name}" for name in ("cli", "manifests")}
    assert set(SETUPTOOLS["packages"]) == found
    assert len(SETUPTOOLS["packages"]) == len(found)
    for file in (ROOT / "skelpipe").rglob("*.py"):
        assert (file.parent / "__init__.py").exists(), file


def test_the_two_outer_folders_are_mapped_into_the_package() -> None:
    assert SETUPTOOLS["package-dir"] == {
        "skelpipe": "skelpipe",
        "skelpipe.cli": "cli",
        "skelpipe.manifests": "manifests",
    }
    for folder in ("cli", "manifests"):
        assert (ROOT / folder / "__init__.py").exists()
        assert not (ROOT / "skelpipe" / folder).exists()


def test_the_mapping_needs_no_trick(tmp_path: Path) -> None:
    for file in ("skelpipe/__init__.py", "cli/__init__.py", "manifests/__init__.py"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert "sys.modules" not in text
        assert "__path__" not in text
    code = (
        "import skelpipe, sys; print(sorted(n for n in sys.modules if n.startswith('skelpipe.')));"
        "import skelpipe.cli, skelpipe.manifests;"
        "print(skelpipe.cli.__name__, skelpipe.manifests.__name__)"
    )
    assert python(code, cwd=tmp_path).splitlines() == ["[]", "skelpipe.cli skelpipe.manifests"]


def test_data_files_are_shipped() -> None:
    patterns = SETUPTOOLS["package-data"]
    assert patterns["skelpipe.manifests"] == ["*.toml", "*.sbatch"]
    assert "py.typed" in patterns["skelpipe"]
    assert (ROOT / "skelpipe" / "py.typed").exists()
    assert {file.suffix for file in (ROOT / "manifests").iterdir() if file.is_file()} <= {
        ".toml",
        ".sbatch",
        ".py",
    }


def test_the_version_stands_once() -> None:
    assert skelpipe.__version__ == PROJECT["project"]["version"] == version("skelpipe")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["pretrain", "--help"]])
def test_help_answers_without_the_heavy_libraries(tmp_path: Path, arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["skelpipe", *{arguments!r}]
from skelpipe.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = ["torch", "numpy", "pyarrow", "matplotlib", "webdataset", "h5py"]
print("loaded:", [name for name in heavy if name in sys.modules])
"""
    assert python(code, cwd=tmp_path).splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("package", ["skelpipe.prepare", "skelpipe.shards"])
def test_preparation_loads_no_torch(tmp_path: Path, package: str) -> None:
    code = f"""
import importlib, pkgutil, sys
import {package} as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"{package}.{{module.name}}")
print("torch" in sys.modules)
"""
    assert python(code, cwd=tmp_path) == "False"
