"""The words both sides agree on: organs, their modalities (slots of a record) and their abnormalities (classes).

A vocabulary is data: it is read from YAML (`configs/vocabulary/*.yaml`) by whoever owns files, and handed in as a dict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from string import Formatter
from typing import Any

# What a caption's template may contain; `text.captions` fills them.
CAPTION_FIELDS = ("findings", "diagnosis", "Diagnosis", "organ", "modalities")


class VocabularyError(ValueError):
    """A vocabulary that contradicts itself; the message says where and what to do."""


NONE = "none"  # a multi-label organ's entry of a patient known to have no abnormality


@dataclass(frozen=True)
class Organ:
    """One organ: modality slots, classes with their public texts, and the class-independent texts.

    prompts: class -> what a report of it may say. attributes: class -> modality -> what that modality shows of it; the
    first holds for the class in general, the others for some of its patients. query, modality_texts (modality -> what
    it is): class-independent, all that enters at test time. captions: templates of a report for a patient who has none
    (`text.captions`). names: class -> its name in a sentence. templates: sentences around a prompt, `{}` in its place;
    each prompt in each of them is the class's ensemble. multi_label: a patient may have several abnormalities.
    """

    name: str
    modalities: tuple[str, ...]
    query: str
    prompts: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    modality_texts: Mapping[str, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] = ("{}",)
    multi_label: bool = False

    @cached_property
    def abnormalities(self) -> tuple[str, ...]:
        """Class names, in label order."""
        return tuple(self.prompts)

    def label(self, abnormality: str | None) -> int:
        """A label as an integer; -1 when it is not known (None or empty). Raises KeyError for a name that is no class.

        The index of the class; for a multi-label organ the bit set of the classes, whose names `;` separates, and 0 for
        `none`: a patient who is known to have none of them.
        """
        if not abnormality:
            return -1
        if self.multi_label:
            return sum(1 << self._index(name) for name in self.classes_of(abnormality))
        return self._index(abnormality)

    def classes_of(self, abnormality: str) -> tuple[str, ...]:
        """The classes that a manifest's entry names, each once: several for a multi-label organ, `;` between them."""
        if not self.multi_label:
            return (abnormality,)
        if abnormality.strip() == NONE:
            return ()
        return tuple(dict.fromkeys(name.strip() for name in abnormality.split(";")))

    def _index(self, name: str) -> int:
        try:
            return self.abnormalities.index(name)
        except ValueError:
            raise KeyError(name) from None

    def modality_text(self, modality: str) -> str:
        """What a modality is, in words that say nothing of any class."""
        return self.modality_texts.get(modality, f"{modality} MRI of the {self.name}")

    def spoken(self, abnormality: str) -> str:
        """A class's name in a sentence."""
        return self.names.get(abnormality, abnormality.replace("_", " "))

    def ensemble(self, abnormality: str) -> tuple[str, ...]:
        """Every prompt of a class in every template."""
        return tuple(t.replace("{}", prompt) for prompt in self.prompts[abnormality] for t in self.templates)


_KEYS = {f.name for f in fields(Organ)} - {"name"}


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

    def modalities_in(self, joined: str) -> list[str]:
        """The modalities of `T1+C+A`; the empty text has none. Raises ValueError for a name that is none.

        A name may contain a plus sign itself (C+A): the longest known name is taken first.
        """
        rest, members = joined, list[str]()
        while rest:
            found = max((m for m in self.modalities if rest == m or rest.startswith(f"{m}+")), key=len, default=None)
            if found is None:
                raise ValueError(f"'{rest}' is no modality; take {', '.join(self.modalities)}")
            members.append(found)
            rest = rest[len(found) + 1 :]
        return members

    @cached_property
    def hash(self) -> str:
        """SHA-256 (first 16 hex digits) of the content; part of what a site must agree on before it may join."""
        text = json.dumps(self.to_dict(), sort_keys=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _organ(name: str, body: Mapping[str, Any]) -> Organ:
    if unknown := sorted(set(body) - _KEYS):
        raise VocabularyError(
            f"organs.{name}.{unknown[0]} is no key of an organ; take one of {', '.join(sorted(_KEYS))}"
        )
    organ = Organ(
        name,
        modalities=tuple(str(m) for m in body["modalities"]),
        query=str(body["query"]),
        prompts={str(c): _texts(ts) for c, ts in body["prompts"].items()},
        attributes={
            str(c): {str(m): _texts(ts) for m, ts in by_modality.items()}
            for c, by_modality in (body.get("attributes") or {}).items()
        },
        modality_texts={str(m): str(t) for m, t in (body.get("modality_texts") or {}).items()},
        captions=_texts(body.get("captions") or ()),
        names={str(c): str(t) for c, t in (body.get("names") or {}).items()},
        templates=_texts(body.get("templates") or ("{}",)),
        multi_label=bool(body.get("multi_label", False)),
    )
    _check_names(organ)
    _check_texts(organ)
    return organ


def _texts(values: Iterable[Any]) -> tuple[str, ...]:
    """A list of texts; one text alone would be taken for a list of letters."""
    return (values,) if isinstance(values, str) else tuple(str(v) for v in values)


def _check_names(organ: Organ) -> None:
    """Raise VocabularyError for a modality or class that is twice there, badly named, or named where it is not."""
    where, modalities, classes = f"organs.{organ.name}", organ.modalities, organ.abnormalities
    if len(set(modalities)) != len(modalities):
        raise VocabularyError(f"{where}.modalities names a modality twice: {modalities}")
    if any("." in m or "/" in m for m in modalities):
        raise VocabularyError(f"{where}.modalities: a name may not contain '.' or '/': {modalities}")
    if len(classes) < 2 or not all(organ.prompts.values()):
        raise VocabularyError(f"{where}.prompts needs two or more abnormalities with a prompt each")
    if organ.multi_label and (len(classes) > 62 or any(";" in c for c in classes)):
        raise VocabularyError(f"{where}: a multi-label organ has at most 62 abnormalities, without ';' in their names")
    for key, used in {"attributes": set(organ.attributes), "names": set(organ.names)}.items():
        if unknown := sorted(used - set(classes)):
            raise VocabularyError(f"{where}.{key}.{unknown[0]} is no abnormality; take one of {', '.join(classes)}")
    named = {f"attributes.{c}": set(by_modality) for c, by_modality in organ.attributes.items()}
    for key, used in (named | {"modality_texts": set(organ.modality_texts)}).items():
        if unknown := sorted(used - set(modalities)):
            raise VocabularyError(f"{where}.{key}.{unknown[0]} is no modality; take one of {', '.join(modalities)}")


def _check_texts(organ: Organ) -> None:
    """Raise VocabularyError for a template that cannot be filled, and for a text that two classes share."""
    where = f"organs.{organ.name}"
    for template in organ.templates:
        if template.count("{}") != 1:
            raise VocabularyError(f"{where}.templates: '{template}' must have one {{}}, where the prompt goes")
    for template in organ.captions:
        try:
            used = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        except ValueError as error:
            raise VocabularyError(f"{where}.captions: '{template}' is no template ({error})") from None
        if not used or used - set(CAPTION_FIELDS):
            known = ", ".join(f"{{{f}}}" for f in CAPTION_FIELDS)
            raise VocabularyError(f"{where}.captions: '{template}' needs one or more of {known}, and no other braces")
    said: dict[tuple[str, str], str] = {}
    texts = [("prompts", c, t) for c, ts in organ.prompts.items() for t in ts]
    texts += [(m, c, t) for c, by in organ.attributes.items() for m, ts in by.items() for t in ts]
    for kind, abnormality, text in texts:
        other = said.setdefault((kind, text), abnormality)
        if other != abnormality:  # an image would be drawn towards a text and pushed away from it
            raise VocabularyError(f"{where}: '{text}' is said of both {other} and {abnormality}; word it apart")


def _spec(organ: Organ) -> dict[str, Any]:
    return {
        "modalities": list(organ.modalities),
        "query": organ.query,
        "prompts": {k: list(v) for k, v in organ.prompts.items()},
        "attributes": {c: {m: list(t) for m, t in by.items()} for c, by in organ.attributes.items()},
        "modality_texts": dict(organ.modality_texts),
        "captions": list(organ.captions),
        "names": dict(organ.names),
        "templates": list(organ.templates),
        "multi_label": organ.multi_label,
    }
