"""Tables of settings: how they are validated, and how ``key=value`` changes them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from skelpipe.errors import UserError, nearest


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError("a range is two positive numbers, the smaller one first")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Smallest and largest value of a draw."""
FromTo = tuple[float, float]
"""First and last value of a schedule."""
Temperature = Annotated[float, Field(ge=0.02)]
"""Of a softmax over logits in [-1, 1]: float32 holds exp(1 / 0.02)."""


class Settings(BaseModel):
    """A frozen table of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


def apply_changes(table: dict[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """A copy of a table with ``section.key=value`` changes; values are TOML, else plain strings."""
    result: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in table.items()
    }
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"'{change}' is no setting", expected="key=value, such as train.epochs=20"
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        *sections, last = key.strip().split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"'{key}' is no setting", found=f"'{section}' is a value")
        target[last] = value
    return result


def build(model: type[SettingsT], table: dict[str, Any], *, what: str) -> SettingsT:
    """Validate a table; the first fault becomes a UserError that names key, value and remedy."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            if isinstance(first["input"], dict) and first["input"]:
                key += f".{next(iter(first['input']))}"
            raise UserError(
                f"{what} has no setting '{key}'", remedy=nearest(key, setting_names(model))
            ) from error
        raise UserError(
            f"a setting of {what} does not fit",
            place=key,
            found=first.get("input") if first["loc"] else "",
            expected=first["msg"].removeprefix("Value error, "),
        ) from error


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All settings of a model as ``section.key``."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += setting_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
