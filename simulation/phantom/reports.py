"""Findings in, a radiology report out: a few sentences in varied wording that say only what was measured.

A word of signal needs a modality that the patient has and a contrast beyond the thresholds below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from simulation.phantom import wording as w
from simulation.phantom.findings import Contrast, Findings
from simulation.phantom.grid import Rng

MARKED, CLEAR = 1.8, 1.15  # ratio to the surroundings, or its inverse
BRIGHT, DIM = 1.12, 0.87  # enhancement against the liver
_DYNAMIC = ("C+A", "C+V", "C+Delay")
_PLAIN = {"brain": ("T1", "T2", "FLAIR"), "liver": ("T2WI", "DWI", "InPhase", "OutPhase", "C-pre")}


def write(
    findings: Findings,
    *,
    organ: str,
    kind: str,
    spots: int,
    push_mm: float,
    withhold_diagnosis: bool,
    rng: Rng,
) -> str:
    """The report of one study. `spots`: harmless foci in view; `push_mm`: largest displacement of tissue."""
    pick = _Picker(rng)
    if findings.count == 0:
        sentences = _clear(findings, spots, pick)
    else:
        sentences = [_opening(findings, organ, kind, pick)]
        signal = _signal(findings, organ, pick)
        enhancement = _brain_enhancement(findings, pick) if organ == "brain" else _phases(findings, pick)
        body = [signal, enhancement] if rng.random() < 0.5 else [enhancement, signal]
        sentences += [s for part in body for s in part]
        sentences += _around(findings, organ, push_mm, pick)
    if not withhold_diagnosis:
        forms = w.IMPRESSIONS if findings.count else w.IMPRESSIONS_CLEAR
        sentences.append(pick.filled(forms, hedge=pick(w.HEDGES), diagnosis=pick(w.DIAGNOSES[organ, kind])))
    text = " ".join(sentences)
    if rng.random() < 0.4:
        for british, american in w.AMERICAN.items():
            text = re.sub(british, american, text)
            text = re.sub(british.capitalize(), american.capitalize(), text)
    return text


class _Picker:
    """Draws one of several phrases; fills a phrase, with {Name} for a capitalised {name}."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng

    def __call__(self, phrases: tuple[str, ...]) -> str:
        return phrases[int(self.rng.integers(len(phrases)))]

    def filled(self, phrases: tuple[str, ...], **words: str) -> str:
        capitals = {k.capitalize(): v[:1].upper() + v[1:] for k, v in words.items()}
        text = self(phrases).format(**words, **capitals)
        return text[:1].upper() + text[1:]

    def list(self, items: Iterable[str]) -> str:
        names = [str(i) for i in items]
        if len(names) < 2:
            return "".join(names)
        return ", ".join(names[:-1]) + " and " + names[-1]

    def modalities(self, names: Iterable[str]) -> str:
        return self.list(self(w.NAMES[n]) for n in names)


def level(ratio: float) -> str:
    """The word for a ratio of lesion to surroundings: a key of `wording.LEVELS`."""
    if ratio >= CLEAR:
        return "markedly hyper" if ratio >= MARKED else "hyper"
    if ratio <= 1 / CLEAR:
        return "markedly hypo" if ratio <= 1 / MARKED else "hypo"
    return "iso"


def _opening(f: Findings, organ: str, kind: str, pick: _Picker) -> str:
    noun = pick(w.EXTRA_AXIAL_NOUNS if kind == "meningioma" else w.NOUNS[organ])
    long, short = round(f.long_mm), round(f.short_mm)
    size = pick((f"{long} mm", f"{long} x {short} mm", f"{f.long_mm / 10:.1f} cm"))
    article = "an" if re.match(r"8|1[18](?!\d)", size) else "a"
    form = "segment" if organ == "liver" else f.place if f.place in w.WHERE else "lobe"
    if kind == "meningioma" and form == "lobe":
        form = "convexity"
    if f.side == "midline" and f"{form} midline" in w.WHERE:
        form += " midline"
    words = {
        "a_noun": f"{'an' if noun[0] == 'e' else 'a'} {noun}",
        "noun": noun if not noun.endswith("mass") or f.count < 2 else noun + "e",
        "size": size,
        "a_size": f"{article} {size}",
        "where": pick(w.WHERE[form]).format(side=f.side, place=f.place),
        "number": w.NUMBERS.get(f.count, "multiple"),
    }
    return pick.filled(w.OPENINGS if f.count < 2 else w.OPENINGS_SEVERAL, **words)


def _signal(f: Findings, organ: str, pick: _Picker) -> list[str]:
    """Sentences on the volumes without contrast agent, grouped by level."""
    groups: dict[str, list[str]] = {}
    for modality in _PLAIN[organ]:
        if modality in f.contrast:
            groups.setdefault(level(f.contrast[modality].whole), []).append(modality)
    if not groups:
        return []
    levels = list(groups)
    order = [levels[i] for i in pick.rng.permutation(len(levels))]
    clauses = ", ".join(f"{pick(w.LEVELS[k])} on {pick.modalities(groups[k])}" for k in order)
    sentences = [pick(w.SIGNALS).format(clauses=clauses)]
    if "DWI" in f.contrast:
        bright, t2 = f.contrast["DWI"].core, f.contrast.get("T2WI")
        # Fluid is bright by its long T2 alone ("shine-through"); restriction is bright beyond that.
        if bright >= 2 and (t2 is None or bright >= 0.45 * t2.core):
            sentences.append(pick(w.RESTRICTED))
    both = {"InPhase", "OutPhase"} <= f.contrast.keys()
    if both and f.contrast["OutPhase"].whole / f.contrast["InPhase"].whole <= 0.87:
        sentences.append(pick(w.FAT))
    return sentences


def _brain_enhancement(f: Findings, pick: _Picker) -> list[str]:
    """Uptake: post-contrast against unenhanced T1 where there is one, else against the surroundings."""
    after, before = f.contrast.get("T1ce"), f.contrast.get("T1")
    if after is None:
        return []
    rim = after.rim / (before.rim if before else 1)
    core = after.core / (before.core if before else 1)
    if max(rim, core) < CLEAR:
        # Without an unenhanced volume, a lesion that is merely dark tells nothing about uptake.
        return [pick(w.NO_UPTAKE)] if before or max(after.rim, after.core) < 1.05 else []
    if after.rim >= CLEAR * after.core and rim >= CLEAR:
        return [pick(w.RING)]
    return [pick(w.SOLID if min(rim, core) >= 1.3 and after.whole >= CLEAR else w.PARTIAL)]


def _phases(f: Findings, pick: _Picker) -> list[str]:
    """Enhancement of a liver lesion over the phases that the patient has."""
    seen = {p: f.contrast[p] for p in _DYNAMIC if p in f.contrast}
    if not seen:
        return []
    pattern = {p: _pattern(c) for p, c in seen.items()}

    def phases(*kinds: str, among: Iterable[str] = _DYNAMIC) -> list[str]:
        return [p for p in among if p in pattern and pattern[p] in kinds]

    def say(forms: tuple[str, ...], which: list[str]) -> str:
        return pick(forms).format(phases=pick.modalities(which), phase=pick.modalities(which[-1:]))

    if len(phases("none")) == len(seen):
        return [say(w.NO_ENHANCEMENT, list(seen))]
    sentences, later = [], [p for p in _DYNAMIC[1:] if p in seen]
    early_bright = pattern.get("C+A") == "bright"
    if early_bright:
        sentences.append(pick(w.ARTERIAL_BRIGHT))
    washed = [p for p in later if early_bright and seen[p].core <= 0.93]
    rims = [p for p in phases("rim") if p not in washed]
    if rims:
        sentences.append(say(w.RIM, rims))
    if washed:
        sentences.append(say(w.WASHOUT, washed))
        capsule = [p for p in washed if seen[p].rim >= BRIGHT * seen[p].core and seen[p].rim >= 0.97]
        if capsule:
            sentences.append(say(w.CAPSULE, capsule))
    first, last = next(iter(seen)), list(seen)[-1]
    if last != first and seen[last].core >= 1.25 * seen[first].core and seen[last].core >= 0.8:
        sentences.append(say(w.FILL_IN if "C+A" in seen and not early_bright else w.LATE_CENTRE, [last]))
    poor = [p for p in phases("poor", "none") if p not in washed]
    if poor:
        sentences.append(say(w.POOR, poor))
    bright = phases("bright", among=_DYNAMIC[1:])
    if bright:
        sentences.append(say(w.BRIGHT_LATER if early_bright else w.BRIGHT, bright))
    equal = [p for p in phases("equal") if p not in washed]
    if equal and not sentences:
        sentences.append(say(w.EQUAL, equal))
    return sentences


def _pattern(c: Contrast) -> str:
    """One phase: "bright", "rim", "none" (much darker throughout), "poor" or "equal", against the liver."""
    if c.rim >= 1.03 and c.rim >= 1.2 * c.core:
        return "rim"
    if c.whole >= BRIGHT:
        return "bright"
    if c.core <= 0.6 and c.rim <= 0.85:
        return "none"
    return "poor" if c.whole <= DIM else "equal"


def _around(f: Findings, organ: str, push_mm: float, pick: _Picker) -> list[str]:
    """Oedema and mass effect: oedema needs a modality that shows it."""
    sentences = []
    watery = ("T2", "FLAIR") if organ == "brain" else ("T2WI",)
    shown = [f.reaction_contrast[m] for m in watery if m in f.reaction_contrast]
    if f.reaction >= 0.2 and shown and max(shown) >= CLEAR:
        if organ == "liver":
            sentences.append(pick(w.LIVER_OEDEMA))
        else:
            sentences.append(pick(w.MUCH_OEDEMA if f.reaction >= 4 else w.OEDEMA))
    if organ == "brain" and push_mm >= 3:
        sentences.append(pick(w.PRESSURE))
    return [sentences[i] for i in np.sort(pick.rng.permutation(len(sentences)))]


def _clear(f: Findings, spots: int, pick: _Picker) -> list[str]:
    """A brain without a lesion."""
    sentences = [pick(w.CLEAR)]
    if "T1ce" in f.modalities:
        sentences.append(pick(w.CLEAR_CONTRAST))
    watery = [m for m in ("T2", "FLAIR") if m in f.modalities]
    if watery:
        sentences.append(pick(w.SPOTS) if spots else pick(w.CLEAR_SIGNAL).format(modalities=pick.modalities(watery)))
    return sentences
