"""The words both sides agree on: organs, their modalities (slots of a record) and their abnormalities (classes).

A vocabulary is data: it is read from YAML (`configs/vocabulary/*.yaml`) by whoever owns files, and handed in as a dict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


class VocabularyError(ValueError):
    """A vocabulary that contradicts itself; the message says where and what to do."""


@dataclass(frozen=True)
class Organ:
    """One organ: modality slots, classes with their public texts, and the class-independent texts.

    prompts: class -> what a report of it may say. attributes: class -> modality -> what that modality shows of it.
    query, modality_texts (modality -> what it is): class-independent, all that enters at test time. captions: templates
    of a report for a patient who has none (`text.captions`). multi_label: a patient may have several abnormalities.
    """

    name: str
    modalities: tuple[str, ...]
    query: str
    prompts: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    modality_texts: Mapping[str, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    multi_label: bool = False

    @cached_property
    def abnormalities(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return tuple(self.prompts)

    def label(self, abnormality: str | None) -> int:
        """A label as an integer; -1 when it is not known (None or empty). Raises KeyError for a name that is no class.

        The index of the class; for a multi-label organ the bit set of the classes, whose names `;` separates.
        """
        if not abnormality:
            return -1
        if self.multi_label:
            return sum(1 << self._index(name.strip()) for name in set(abnormality.split(";")))
        return self._index(abnormality)

    def _index(self, name: str) -> int:
        try:
            return self.abnormalities.index(name)
        except ValueError:
            raise KeyError(name) from None

    def modality_text(self, modality: str) -> str:
        """What a modality is, in words that say nothing of any class."""
        return self.modality_texts.get(modality, f"{modality} MRI of the {self.name}")


@dataclass(frozen=True)
class Vocabulary:
    """All organs of a federation. Two sites with the same `hash` mean the same things by the same names."""

    name: str
    organs: Mapping[str, Organ]

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Vocabulary:
        """Build from the YAML's content. Raises VocabularyError with the offending key."""
        organs = {str(name): _organ(str(name), body) for name, body in spec["organs"].items()}
        if not organs:
            raise VocabularyError("organs is empty: name at least one organ")
        return cls(str(spec["name"]), organs)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`, JSON-safe."""
        return {"name": self.name, "organs": {o.name: _spec(o) for o in self.organs.values()}}

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Every modality once, in the order of the organs. Organs that name the same modality share its encoder."""
        return tuple(dict.fromkeys(m for o in self.organs.values() for m in o.modalities))

    @cached_property
    def hash(self) -> str:
        """SHA-256 (first 16 hex digits) of the content; part of what a site must agree on before it may join."""
        text = json.dumps(self.to_dict(), sort_keys=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _organ(name: str, body: Mapping[str, Any]) -> Organ:
    where = f"organs.{name}"
    modalities = tuple(str(m) for m in body["modalities"])
    prompts = {str(k): tuple(str(t) for t in v) for k, v in body["prompts"].items()}
    attributes = {
        str(c): {str(m): tuple(str(t) for t in ts) for m, ts in by_modality.items()}
        for c, by_modality in (body.get("attributes") or {}).items()
    }
    texts = {str(m): str(t) for m, t in (body.get("modality_texts") or {}).items()}
    if len(set(modalities)) != len(modalities):
        raise VocabularyError(f"{where}.modalities names a modality twice: {modalities}")
    if len(prompts) < 2 or not all(prompts.values()):
        raise VocabularyError(f"{where}.prompts needs two or more abnormalities with a prompt each")
    if any("." in m or "/" in m for m in modalities):
        raise VocabularyError(f"{where}.modalities: a name may not contain '.' or '/': {modalities}")
    if unknown := sorted(set(attributes) - set(prompts)):
        raise VocabularyError(f"{where}.attributes.{unknown[0]} is no abnormality; take one of {', '.join(prompts)}")
    named = {f"attributes.{c}": set(by_modality) for c, by_modality in attributes.items()}
    for key, used in (named | {"modality_texts": set(texts)}).items():
        if unknown := sorted(used - set(modalities)):
            raise VocabularyError(f"{where}.{key}.{unknown[0]} is no modality; take one of {', '.join(modalities)}")
    multi_label = bool(body.get("multi_label", False))
    if multi_label and (len(prompts) > 62 or any(";" in c for c in prompts)):
        raise VocabularyError(f"{where}: a multi-label organ has at most 62 abnormalities, without ';' in their names")
    captions = tuple(str(t) for t in body.get("captions") or ())
    return Organ(name, modalities, str(body["query"]), prompts, attributes, texts, captions, multi_label)


def _spec(organ: Organ) -> dict[str, Any]:
    return {
        "modalities": list(organ.modalities),
        "query": organ.query,
        "prompts": {k: list(v) for k, v in organ.prompts.items()},
        "attributes": {c: {m: list(t) for m, t in by.items()} for c, by in organ.attributes.items()},
        "modality_texts": dict(organ.modality_texts),
        "captions": list(organ.captions),
        "multi_label": organ.multi_label,
    }
