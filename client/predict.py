"""Exams in, predictions out: NIfTI files -> cubes (B, M, D, H, W) -> probabilities (B, C), with what was used and why not.

The reading is `volumes.prepare`, with the settings that the model was trained with: a simulation's predictions for the
same patient are these. A bad file costs its volume, or its study where nothing is left; never the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.cache import read_files
from client.exams import Exam, Ignored
from client.preprocess.nyul import scales, standardised
from client.problems import Problem
from client.volumes import prepare
from configs.schema import VolumesConfig
from medmap_model.checkpoint import LoadedMedMAP
from medmap_model.detector import refuse_untrained
from medmap_model.vocabulary import Organ, Vocabulary

NOTICE = "Not a medical device: for research only, not for diagnosis or treatment."
_CHUNK = 8  # studies in memory at once
_DATA = {
    "phantom": "The model was trained on simulated patients (a phantom): its results say nothing about real patients.",
    "real": "The model was trained on a few real scans and on simulated patients: this proves the path, not accuracy.",
}

# An organ, volumes (B, M, D, H, W) and present (B, M) bool -> probabilities (B, C).
Network = Callable[[str, Tensor, Tensor], Tensor]


@dataclass
class Prediction:
    """One study's result. probabilities: class -> probability, or None, and `reason` says why there are none.

    thresholds: class -> operating point; source: where they come from. call: the class, or classes of a multi-label organ.
    """

    patient_id: str
    study_id: str
    organ: str | None
    probabilities: dict[str, float] | None = None
    reason: str | None = None
    thresholds: dict[str, float] | None = None
    source: str | None = None
    call: list[str] | None = None
    above: list[str] | None = None
    used: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether the study was predicted, and from every file that was given for it."""
        return self.probabilities is not None and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe form."""
        point = {"thresholds": self.thresholds, "source": self.source} if self.thresholds else None
        return {
            "patient_id": self.patient_id,
            "study_id": self.study_id,
            "organ": self.organ,
            "probabilities": self.probabilities,
            "reason": self.reason,
            "operating_point": point,
            "call": self.call,
            "above_threshold": self.above,
            "modalities": {
                "used": self.used,
                "missing": self.missing,
                "ignored": [{"modality": i.modality, "file": i.file, "reason": i.reason} for i in self.ignored],
            },
            "problems": [{"row": p.row, "problem": p.problem, "remedy": p.remedy} for p in self.problems],
            "notes": self.notes,
        }


def predict(model: LoadedMedMAP, exams: Sequence[Exam]) -> Iterator[Prediction]:
    """One prediction per exam, in their order. Raises UntrainedError (stage 1 alone)."""

    def network(organ: str, volumes: Tensor, present: Tensor) -> Tensor:
        embedded = model.encode(volumes, present, organ)
        return model.probabilities(model.classify(model.fuse(embedded, present, organ), organ), organ)

    yield from predict_with(network, model.info, model.vocabulary, exams)


def predict_with(
    network: Network, info: Mapping[str, Any], vocabulary: Vocabulary, exams: Sequence[Exam]
) -> Iterator[Prediction]:
    """As `predict`, by whatever runs the network. info: as `medmap_model.checkpoint.read_info`."""
    refuse_untrained(info)
    volumes = VolumesConfig(**info["volumes"])
    if volumes.standardise == "nyul":
        scales(volumes, info["modalities"], {})  # an early word: without landmarks nothing can be predicted

    def opened(exam: Exam) -> tuple[Prediction, dict[str, NDArray[np.float16]]]:
        return _opened(exam, info, vocabulary, volumes)

    with ThreadPoolExecutor(2) as pool:  # unpacking and resampling release the interpreter lock
        for at in range(0, len(exams), _CHUNK):
            done = list(pool.map(opened, exams[at : at + _CHUNK]))
            for organ in dict.fromkeys(p.organ for p, cubes in done if cubes):
                mine = [(p, cubes) for p, cubes in done if p.organ == organ and cubes]
                _detect(network, info, vocabulary.organs[organ or ""], mine, volumes.size)
            yield from (p for p, _ in done)


def _opened(
    exam: Exam, info: Mapping[str, Any], vocabulary: Vocabulary, volumes: VolumesConfig
) -> tuple[Prediction, dict[str, NDArray[np.float16]]]:
    """An exam's cubes, and its prediction with everything but the probabilities."""
    result = Prediction(
        exam.patient_id, exam.study_id, exam.organ, ignored=list(exam.ignored), problems=list(exam.problems)
    )
    if exam.organ is None or exam.organ not in vocabulary.organs:
        result.reason = (
            "no modality of the model was given" if exam.organ is None else f"no organ '{exam.organ}' in the model"
        )
        return result, {}
    if exam.organ not in info["organs"]:
        result.reason = f"the model was never trained on the {exam.organ}"
        return result, {}
    slots = vocabulary.organs[exam.organ].modalities
    images = {m: path for m, path in exam.images.items() if m in info["modalities"]}
    never = [m for m in exam.images if m not in images]
    result.ignored += [Ignored(m, str(exam.images[m]), f"the model was never trained on {m}") for m in never]
    uses_mask = volumes.crop in ("lesion", "organ")
    files = images | ({"mask": exam.mask} if exam.mask and uses_mask and images else {})
    contents, findings = read_files(files)
    mask = contents.pop("mask", None)
    done = prepare(contents, mask, volumes, exam.spacings, organ=exam.organ)
    for modality, own in done.landmarks.items():
        done.cubes[modality] = standardised(done.cubes[modality], own, tuple(volumes.landmarks[modality])).astype(
            np.float16
        )
    result.problems += [_where(finding.at(exam.study()), exam) for finding in findings + done.findings]
    result.used = [m for m in slots if m in done.cubes]
    result.missing = [m for m in slots if m not in done.cubes and m in info["modalities"]]
    if not done.cubes:
        result.reason = "none of its volumes can be used"
    elif uses_mask and mask is None:
        result.notes.append(
            f"No mask was given: the model was trained on cubes around the {volumes.crop}, this one is around the foreground."
        )
    return result, done.cubes


def _where(problem: Problem, exam: Exam) -> Problem:
    """A problem of a file that no manifest names has no column either."""
    return problem if exam.rows else replace(problem, column=None)


def _detect(
    network: Network,
    info: Mapping[str, Any],
    organ: Organ,
    given: Sequence[tuple[Prediction, Mapping[str, NDArray[np.float16]]]],
    size: int,
) -> None:
    """Fill in the probabilities and calls of predictions of one organ."""
    present = torch.tensor([[m in cubes for m in organ.modalities] for _, cubes in given])
    volumes = torch.zeros(*present.shape, size, size, size)
    for row, (_, cubes) in zip(volumes, given, strict=True):
        for modality, cube in cubes.items():
            row[organ.modalities.index(modality)] = torch.from_numpy(cube).float()
    with torch.no_grad():
        found = network(organ.name, volumes, present).float().cpu()
    thresholds, source = operating_point(info, organ)
    for (result, _), row in zip(given, found, strict=True):
        result.probabilities = dict(zip(organ.abnormalities, row.tolist(), strict=True))
        result.thresholds, result.source = thresholds, source
        result.above = [c for c, p in result.probabilities.items() if p >= thresholds[c]]
        result.call = called(result.probabilities, thresholds, multi_label=organ.multi_label)


def operating_point(info: Mapping[str, Any], organ: Organ) -> tuple[dict[str, float], str]:
    """(class -> threshold, where it comes from): the run's own, chosen on validation patients, or 0.5."""
    point = (info.get("operating_points") or {}).get(organ.name)
    if not point:
        return dict.fromkeys(organ.abnormalities, 0.5), "0.5, as the checkpoint comes without a chosen one"
    thresholds = {c: float(point["thresholds"][c]) for c in organ.abnormalities}
    if point["rule"] != "validation":
        return thresholds, "0.5, by the run's settings"
    return thresholds, f"Youden's J on {point['patients']} validation patients"


def called(probabilities: Mapping[str, float], thresholds: Mapping[str, float], *, multi_label: bool) -> list[str]:
    """The call at the operating point: of two classes the second if it reaches its threshold, of several the likeliest.

    Multi-label: every class that reaches its own threshold.
    """
    names = list(probabilities)
    if multi_label:
        return [c for c in names if probabilities[c] >= thresholds[c]]
    if len(names) == 2:
        return [names[1] if probabilities[names[1]] >= thresholds[names[1]] else names[0]]
    return [max(names, key=probabilities.__getitem__)]


def notices(info: Mapping[str, Any]) -> list[str]:
    """What has to be said beside every result."""
    return [NOTICE, *([_DATA[info["data"]]] if info["data"] in _DATA else [])]


def to_json(info: Mapping[str, Any], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The whole answer, JSON-safe."""
    kept = ("data", "sites", "stage", "rounds", "modalities", "organs")
    return {
        "notices": notices(info),
        "model": {"name": info["model"]["name"]}
        | {k: info[k] for k in kept}
        | {"vocabulary_hash": info["vocabulary"]["hash"], "text_hash": info["text"]["hash"]},
        "studies": [p.to_dict() for p in predictions],
    }
