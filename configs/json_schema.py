"""The JSON schema of a dataclass that `configs.documents` reads: by it an editor completes site.yaml and federation.yaml.

The files in `configs/schemas/` are its output, and a test holds them against the dataclasses.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from configs.documents import optional, required

_TYPES = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean"}


def schema_text(kind: type, *, title: str) -> str:
    """The schema (draft 2020-12) as the text of a file."""
    return (
        json.dumps(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title} | _object(kind), indent=1
        )
        + "\n"
    )


def _object(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    needed = [f.name for f in fields(kind) if required(f)]
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split("\n\n")[0].split()),
        "properties": {f.name: _property(hints[f.name], f) for f in fields(kind)},
        "additionalProperties": False,
        **({"required": needed} if needed else {}),
    }


def _property(hint: Any, field: Field[Any]) -> dict[str, Any]:
    inner, may_be_none = optional(hint)
    meta = field.metadata
    said: dict[str, Any] = {"description": meta["help"]} if meta.get("help") else {}
    if is_dataclass(inner):
        return _object(inner) | said  # type: ignore[arg-type]
    if get_origin(inner) is tuple:
        entry = get_args(inner)[0]
        items = _object(entry) if is_dataclass(entry) else {"type": _TYPES[entry]}  # type: ignore[arg-type]
        if meta.get("choices"):
            items["enum"] = meta["choices"]
        return {"type": "array", "items": items} | said
    said["type"] = [_TYPES[inner], "null"] if may_be_none else _TYPES[inner]
    for name, word in (("choices", "enum"), ("minimum", "minimum"), ("maximum", "maximum")):
        if meta.get(name) is not None:
            said[word] = meta[name]
    if meta.get("pattern"):
        said["pattern"] = f"^({meta['pattern']})$"
    if field.default is not MISSING and field.default is not None:
        said["default"] = field.default
    return said
