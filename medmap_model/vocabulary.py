"""The words both sides agree on: organs, their modalities (slots of a record) and their abnormalities (classes).

A vocabulary is data: it is read from YAML (`configs/vocabulary/*.yaml`) by whoever owns files, and handed in as a dict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


class VocabularyError(ValueError):
    """A vocabulary that contradicts itself; the message says where and what to do."""


@dataclass(frozen=True)
class Organ:
    """One organ: modality slots, classes with their public prompts, and the class-independent query text."""

    name: str
    modalities: tuple[str, ...]
    query: str
    prompts: Mapping[str, tuple[str, ...]]

    @cached_property
    def abnormalities(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return tuple(self.prompts)

    def label(self, abnormality: str | None) -> int:
        """Index of a class; -1 when it is not known (None or empty). Raises KeyError for a name that is not a class."""
        if not abnormality:
            return -1
        try:
            return self.abnormalities.index(abnormality)
        except ValueError:
            raise KeyError(abnormality) from None


@dataclass(frozen=True)
class Vocabulary:
    """All organs of a federation. Two sites with the same `hash` mean the same things by the same names."""

    name: str
    organs: Mapping[str, Organ]

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Vocabulary:
        """Build from the YAML's content. Raises VocabularyError with the offending key."""
        organs = {}
        for name, body in spec["organs"].items():
            modalities = tuple(str(m) for m in body["modalities"])
            prompts = {str(k): tuple(str(t) for t in v) for k, v in body["prompts"].items()}
            if len(set(modalities)) != len(modalities):
                raise VocabularyError(f"organs.{name}.modalities names a modality twice: {modalities}")
            if len(prompts) < 2 or not all(prompts.values()):
                raise VocabularyError(f"organs.{name}.prompts needs two or more abnormalities with a prompt each")
            if any("." in m or "/" in m for m in modalities):
                raise VocabularyError(f"organs.{name}.modalities: a name may not contain '.' or '/': {modalities}")
            organs[str(name)] = Organ(str(name), modalities, str(body["query"]), prompts)
        if not organs:
            raise VocabularyError("organs is empty: name at least one organ")
        return cls(str(spec["name"]), organs)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`, JSON-safe."""
        return {
            "name": self.name,
            "organs": {
                o.name: {
                    "modalities": list(o.modalities),
                    "query": o.query,
                    "prompts": {k: list(v) for k, v in o.prompts.items()},
                }
                for o in self.organs.values()
            },
        }

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Every modality once, in the order of the organs. Organs that name the same modality share its encoder."""
        return tuple(dict.fromkeys(m for o in self.organs.values() for m in o.modalities))

    @cached_property
    def hash(self) -> str:
        """SHA-256 (first 16 hex digits) of the content; part of what a site must agree on before it may join."""
        text = json.dumps(self.to_dict(), sort_keys=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
