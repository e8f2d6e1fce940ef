"""YAML that people write by hand (site.yaml, federation.yaml), read into dataclasses; a mistake is one sentence with its line.

A field is a text, a whole number, a number, true/false, a path (relative to the file), a dataclass, a list (tuple) of
those, texts by name (dict[str, str]), or `None |` one of those. `configs.setting.setting` gives its meaning and its range;
one without a default is required. Its metadata may hold a `pattern` (of a text) and `unique` (of a list: the setting in
which its entries differ) as well.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from configs.setting import ConfigError, misfit

T = TypeVar("T")
_WORDS = {str: "a text", int: "a whole number", float: "a number"}
_NULL, _BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"


def read_document(path: Path, kind: type[T]) -> T:
    """The file as an instance of the dataclass `kind`. Raises ConfigError: file, line, setting, what to do."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give the path of a {path.name}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8: save it in that encoding") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where} is not YAML: mend that line") from None
    if not isinstance(node, yaml.MappingNode):
        lines = ", ".join(f"`{f.name}: ...`" for f in fields(kind) if required(f))  # type: ignore[arg-type]
        raise ConfigError(f"{path} holds no settings: it needs at least {lines}")
    return _read(node, kind, path, "")


def required(field: Field[Any]) -> bool:
    """Whether a file must give this setting."""
    return field.default is MISSING and field.default_factory is MISSING


def optional(hint: Any) -> tuple[Any, bool]:
    """(X, True) of `X | None`, otherwise (hint, False)."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in get_args(hint) if a is not type(None)]
        if len(inner) == 1:
            return inner[0], True
    return hint, False


def _read(node: yaml.MappingNode, kind: type[T], path: Path, prefix: str) -> T:
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        where = f"{path}, line {key_node.start_mark.line + 1}"
        if key not in known:
            raise ConfigError(f"{where}: `{prefix}{key}` is not a setting{_hint(key, known)}")
        if key in values:
            raise ConfigError(f"{where}: `{prefix}{key}` is said twice: take one of the lines out")
        values[key] = _value(value_node, hints[key], known[key], path, f"{where}, {prefix}{key}", f"{prefix}{key}")
    for name, f in known.items():
        if required(f) and name not in values:
            where = f"{path}, line {node.start_mark.line + 1}: the entry" if prefix else str(path)
            raise ConfigError(f"{where} has no `{prefix}{name}`: add it ({f.metadata.get('help', 'it is required')})")
    return kind(**values)


def _hint(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return (f", did you mean `{near[0]}`?" if near else ";") + f" there are {', '.join(sorted(known))}"


def _value(node: yaml.Node, hint: Any, field: Field[Any], path: Path, where: str, key: str) -> Any:
    """The typed value of a node; `where` opens a message, `key` is the setting's dotted name."""
    inner, may_be_none = optional(hint)
    if node.tag == _NULL and not (inner is str and node.value):
        if may_be_none:
            return None
        if is_dataclass(inner) and not any(required(f) for f in fields(inner)):
            return inner()  # type: ignore[operator]
        raise ConfigError(f"{where}: the value is missing ({field.metadata.get('help', 'it is required')})")
    if is_dataclass(inner):
        if not isinstance(node, yaml.MappingNode):
            names = ", ".join(sorted(f.name for f in fields(inner)))
            raise ConfigError(f"{where}: write its settings on lines of their own, indented: {names}")
        return _read(node, inner, path, f"{key}.")  # type: ignore[arg-type]
    if get_origin(inner) is dict:
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{where}: write `name: value` lines, indented")
        return {
            str(k.value): _value(v, get_args(inner)[1], field, path, f"{where}.{k.value}", f"{key}.{k.value}")
            for k, v in node.value
        }
    if get_origin(inner) is tuple:
        if not isinstance(node, yaml.SequenceNode):
            raise ConfigError(f"{where}: write a list, one entry a line, each after a dash")
        lines = [f"{path}, line {entry.start_mark.line + 1}" for entry in node.value]
        values = [
            _value(entry, get_args(inner)[0], field, path, f"{line}, {key}", key)
            for entry, line in zip(node.value, lines, strict=True)
        ]
        _check_unique(values, field, lines)
        return tuple(values)
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{where}: write one value, not a list or a group")
    value = _scalar(node, inner, where)
    pattern = field.metadata.get("pattern")
    if pattern and not re.fullmatch(pattern, value):
        raise ConfigError(f"{where}: {value!r} cannot be used, give {field.metadata['help']}")
    if wrong := misfit(value, field.metadata):
        raise ConfigError(f"{where}: {node.value} {wrong}")
    return path.parent / value if inner is Path else value


def _scalar(node: yaml.ScalarNode, kind: type, where: str) -> Any:
    if kind is bool:
        if node.tag != _BOOL:
            raise ConfigError(f"{where}: take true or false")
        return bool(yaml.SafeLoader("").construct_yaml_bool(node))
    if kind in (int, float):
        try:
            return kind(node.value)  # not YAML's own reading, to which 1e-5 is a text
        except ValueError:
            raise ConfigError(f"{where}: {node.value!r} is not {_WORDS[kind]}") from None
    return node.value  # as written: a site called `no` is no boolean


def _check_unique(values: list[Any], field: Field[Any], lines: list[str]) -> None:
    """No two entries of a list may have the same value in the setting that the field's `unique` names."""
    seen: set[str] = set()
    name = field.metadata.get("unique")
    for value, line in zip(values, lines, strict=True):
        if name and getattr(value, name) in seen:
            raise ConfigError(f"{line}: there is another entry with `{name}: {getattr(value, name)}`, choose another")
        if name:
            seen.add(getattr(value, name))
