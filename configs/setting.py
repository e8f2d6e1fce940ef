"""What a setting is: a dataclass field with its meaning and its range, and the sentence for a value that does not fit.

`configs.schema` holds the settings of a run; site.yaml and federation.yaml (`configs.documents`) are made of the same. Imports
nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line: which key, which value, which choices."""


def setting(
    default: Any,
    help: str = "",
    *,
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """A dataclass field with its meaning and its range."""
    meta = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


def check(config: Any, path: str = "") -> None:
    """Raise ConfigError for the first value out of its range or not among its choices."""
    for f in fields(config):
        value, key = getattr(config, f.name), f"{path}{f.name}"
        if is_dataclass(value):
            check(value, f"{key}.")
            continue
        for v in value if isinstance(value, list) else [value]:
            if wrong := misfit(v, f.metadata):
                raise ConfigError(f"{key}={v} {wrong}")


def misfit(value: Any, said: Mapping[str, Any]) -> str | None:
    """Why a value is not one that `setting` allows, and what to take; None when it is. said: the field's metadata."""
    choices, low, high = (said.get(k) for k in ("choices", "minimum", "maximum"))
    if choices and value not in choices:
        return f"is not a choice: take one of {', '.join(map(str, choices))}"
    if value is None or ((low is None or value >= low) and (high is None or value <= high)):
        return None
    span = f"{low:g} to {high:g}" if high is not None and low is not None else f"{low:g} or more"
    return f"is out of range: take {span} ({said['help']})"


def default_of(f: Any) -> Any:
    """The default of a dataclass field."""
    return f.default if f.default is not MISSING else f.default_factory()
