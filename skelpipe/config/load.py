"""Recipes by name or file: defaults < base recipe < recipe < ``--set key=value``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter

from skelpipe.config.pcm3 import PCM3Recipe
from skelpipe.config.settings import apply_changes, build
from skelpipe.config.slim import SLiMRecipe
from skelpipe.errors import UserError, nearest
from skelpipe.manifest import manifest_names, read_manifest

Recipe: TypeAlias = SLiMRecipe | PCM3Recipe
RECIPES: dict[str, type[Recipe]] = {"slim": SLiMRecipe, "pcm3": PCM3Recipe}
"""By method."""
RECIPE: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="method")])
"""Reads what `model_dump_json` of a recipe of any method wrote."""


def build_recipe(table: dict[str, Any], *, what: str) -> Recipe:
    """Validate a recipe's table by the settings of its method, SLiM where none is named.

    Raises:
        UserError: Unknown method or key (with the nearest), or a value that does not fit.
    """
    method = table.get("method", "slim")
    if method not in RECIPES:
        raise UserError(
            f"{what} has an unknown method '{method}'", remedy=nearest(str(method), RECIPES)
        )
    return build(RECIPES[method], table, what=what)


def load_recipe(name: str, changes: Sequence[str] = (), *, base: str | None = None) -> Recipe:
    """A recipe by packaged name or path of a TOML file, with ``key=value`` changes applied.

    A recipe may name another one as its ``base``, packaged or (a path ending with ".toml", from the
    recipe's own folder) a file. Defaults < base < recipe < changes; tables merge key by key, all
    other values, lists too, are replaced whole. Name and title are each recipe's own.

    Args:
        name: The recipe.
        changes: Settings that win over all.
        base: Stands in for the base that the recipe names.

    Raises:
        UserError: Unknown recipe, base or key (with the nearest), a circle of bases, or a value
            that does not fit.
    """
    table = _read_recipe(name)
    if base is not None:
        table["base"] = base
    table = apply_changes(_on_its_base(table, name), changes)
    return build_recipe(table, what=f"recipe '{name}'")


def _read_recipe(name: str) -> dict[str, Any]:
    """The table of a recipe as it stands in its file."""
    path = Path(name)
    if path.suffix != ".toml":
        return read_manifest("recipe", name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            "the recipe cannot be read",
            file=path,
            found=error,
            remedy=f"or name a packaged one: {', '.join(manifest_names('recipe'))}",
        ) from error
    return {"name": path.stem, **table}


def _on_its_base(table: dict[str, Any], name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's table merged onto its base's, and that one onto its own.

    Args:
        table: The recipe's own.
        name: Its name or path.
        above: The recipes that stand on this one.
    """
    if "base" not in table:
        return table
    chain = (*above, str(Path(name).resolve()) if name.endswith(".toml") else name)
    base = table["base"]
    if not isinstance(base, str):
        raise UserError(f"the base of recipe '{name}' is no name", found=base)
    if base.endswith(".toml"):
        base = str((Path(name).parent / base).resolve())
    elif base not in manifest_names("recipe"):
        raise UserError(
            f"recipe '{name}' has an unknown base '{base}'",
            remedy=nearest(base, manifest_names("recipe")),
        )
    if base in chain:
        raise UserError(
            f"recipe '{name}' stands on itself", place="base", found=" on ".join((*chain, base))
        )
    own = {key: value for key, value in table.items() if key != "base"}
    below = _on_its_base(_read_recipe(base), base, chain)
    return _merged({key: below[key] for key in below if key not in ("name", "title")}, own)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            value = _merged(under, value)
        result[key] = value
    return result
