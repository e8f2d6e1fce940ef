"""A site's patients as training records: manifests in; batches of one organ out, (B, M, size, size, size) float32.

The record is a PATIENT. A patient may have several studies, also of several organs: each training pass draws one of
them, and evaluation takes, per organ, the last one in the manifest's order. Modality slots are those of the organ's
vocabulary; a slot without a volume is zeros, and `present` says so.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from client.augment import augment as augmented
from client.augment import mirror_report
from client.cache import CubeCache, Entry
from client.manifest import Problem, Study, read_manifest
from client.preprocess.nyul import Landmarks, scales, standardised
from client.problems import DataError
from configs.schema import AugmentConfig, VolumesConfig
from medmap_model.batch import Batch
from medmap_model.text.captions import caption
from medmap_model.text.negatives import TURNS
from medmap_model.vocabulary import Vocabulary


class SiteRecords:
    """All prepared records of one site, grouped by split and organ.

    `problems`: bad volumes that were left out. `captioned`: training studies whose report was made from the label.
    """

    def __init__(
        self,
        manifests: Sequence[Path],
        *,
        vocabulary: Vocabulary,
        volumes: VolumesConfig,
        embed: Callable[[Sequence[str]], Tensor],
        cache_dir: Path,
        captions: bool = False,
        hard_negatives: bool = False,
    ) -> None:
        """Read, check and prepare everything.

        embed: N texts -> (N, E) float32; called once, with every distinct text: reports, mirrored ones, negatives.
        captions: training patients with a label and no report get a caption (`medmap_model.text.captions`) as report.
        hard_negatives: batches carry `negatives` (`medmap_model.text.negatives`), of reports in training and validation.
        scales: of `volumes.standardise=nyul`: modality -> the scale that its volumes are brought to.
        Patients of different manifests are different people. Raises ManifestError, and DataError when there is a bad
        volume and `volumes.on_bad_volume` is `stop`, or when nothing is left.
        """
        self.vocabulary, self.size, self.cache_dir = vocabulary, volumes.size, cache_dir
        self._studies: list[Study] = []
        self._entries: list[Entry] = []
        self._patients: dict[str, list[list[int]]] = {}  # split -> patients -> studies, in the manifests' order
        self.problems: list[Problem] = []
        self._cache = cache = CubeCache(cache_dir, volumes)
        for path in manifests:
            self._add(read_manifest(path, vocabulary, check_files=False).studies, cache)
        if self.problems and volumes.on_bad_volume == "stop":
            raise DataError(f"{len(self.problems)} bad volumes, and on_bad_volume is stop", self.problems)
        if not self._studies:
            raise DataError("No volume can be used", self.problems)
        self._slots = [self._slots_of(i) for i in range(len(self._studies))]
        self.scales = self._learnt(volumes) if volumes.standardise == "nyul" else {}
        self._in_memory = self._hold(volumes.memory_mb * 1_000_000)
        self.captioned = 0
        self._embed(embed, self._reports(captions), hard_negatives)

    def counts(self, split: str = "train") -> tuple[dict[str, int], dict[str, int]]:
        """(modality -> volumes, organ -> patients) of a split, without those that have none."""
        volumes: dict[str, int] = {}
        patients: dict[str, int] = {}
        for studies in self._patients.get(split, ()):
            for modality in (m for i in studies for m in self._entries[i].modalities):
                volumes[modality] = volumes.get(modality, 0) + 1
            for organ in {self._studies[i].organ for i in studies}:
                patients[organ] = patients.get(organ, 0) + 1
        return (
            {m: volumes[m] for m in self.vocabulary.modalities if m in volumes},
            {o: patients[o] for o in self.vocabulary.organs if o in patients},
        )

    def behind(self) -> dict[str, int]:
        """Each number that a site tells of its cohort, in words -> the patients behind it, however many studies they have."""
        people = [
            {m for i in studies for m in self._entries[i].modalities} for studies in self._patients.get("train", ())
        ]
        told = {"volumes": Counter(m for modalities in people for m in modalities), "studies": self.counts()[1]}
        return {
            f"{what} of '{name}'": n for what, of in {**told, "splits": self.splits()}.items() for name, n in of.items()
        }

    def splits(self) -> dict[str, int]:
        """Split -> patients."""
        return {split: len(patients) for split, patients in self._patients.items()}

    def organs(self, split: str) -> tuple[str, ...]:
        """Organs with a patient in the split, in the vocabulary's order."""
        return tuple(self.counts(split)[1])

    def studies(self, *, split: str, organ: str) -> list[Study]:
        """One study per patient, in the order of `eval_batches`."""
        return [self._studies[i] for i in self._last(split, organ)]

    def counted(self, *, split: str, organ: str) -> list[bool]:
        """Beside `studies`: whether the patient's last study is of this organ, so that nobody is counted for two."""
        last = {indices[-1] for indices in self._patients.get(split, ())}
        return [i in last for i in self._last(split, organ)]

    def cubes(self, *, split: str, organ: str) -> Iterator[tuple[list[int], Tensor]]:
        """Beside `studies`: the slots that have a volume, and these volumes (k, size, size, size) float16."""
        for i in self._last(split, organ):
            yield self._slots[i], self._cubes(i)

    def train_batches(
        self, *, batch_size: int, seed: int, augment: AugmentConfig | None, split: str = "train"
    ) -> Iterator[Batch]:
        """One pass over all patients in random order, organs interleaved; the seed decides everything.

        Batches hold `batch_size` records of one organ; the last of an organ may be smaller, or one larger: a single
        left-over record joins the batch before it, as one record gives nothing to contrast with. A patient drawn as
        the only one of an organ in this pass is left out.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, list[int]] = {}
        patients = self._patients.get(split, [])
        draws = torch.rand(len(patients), generator=generator, dtype=torch.float64).tolist()
        for place in torch.randperm(len(patients), generator=generator).tolist():
            studies = patients[place]
            study = studies[int(draws[place] * len(studies))]
            drawn.setdefault(self._studies[study].organ, []).append(study)
        batches = []
        for organ in sorted(drawn):
            studies = drawn[organ]
            parts = [studies[i : i + batch_size] for i in range(0, len(studies), batch_size)]
            if len(parts) > 1 and len(parts[-1]) == 1:
                single = parts.pop()
                parts[-1] += single
            batches += [(organ, part) for part in parts if len(part) > 1]
        for place in torch.randperm(len(batches), generator=generator).tolist():
            organ, part = batches[place]
            yield self._batch(organ, part, augment, generator)

    def patients(self, split: str) -> int:
        """Patients of a split: the records there are to draw from."""
        return len(self._patients.get(split, ()))

    def batches_of(
        self, patients: Sequence[int], *, augment: AugmentConfig | None, seed: int, split: str = "train"
    ) -> Iterator[Batch]:
        """The named patients (0 .. `patients` - 1), each once, with one of its studies; a batch per organ."""
        generator = torch.Generator().manual_seed(seed)
        everybody = self._patients.get(split, [])
        drawn: dict[str, list[int]] = {}
        for patient in patients:
            studies = everybody[patient]
            study = studies[int(torch.randint(len(studies), (), generator=generator))]
            drawn.setdefault(self._studies[study].organ, []).append(study)
        for organ in sorted(drawn):
            yield self._batch(organ, drawn[organ], augment, generator)

    def eval_batches(self, *, split: str, organ: str, batch_size: int = 32) -> Iterator[Batch]:
        """Every patient of the organ once, in the manifests' order, unchanged."""
        studies = self._last(split, organ)
        for i in range(0, len(studies), batch_size):
            yield self._batch(organ, studies[i : i + batch_size], None, None)

    def _add(self, studies: Sequence[Study], cache: CubeCache) -> None:
        people: dict[str, list[int]] = {}
        lost: dict[str, Study] = {}
        for study, entry in zip(studies, cache.entries(studies), strict=True):
            self.problems += entry.problems
            if not entry.modalities:
                lost[study.patient_id] = study
                continue
            people.setdefault(study.patient_id, []).append(len(self._studies))
            self._studies.append(study)
            self._entries.append(entry)
        for indices in people.values():
            self._patients.setdefault(self._studies[indices[0]].split, []).append(indices)
        for patient, study in lost.items():
            if patient not in people:
                problem = f"Patient {patient} is left out: none of the volumes can be used"
                self.problems.append(Problem(min(study.rows.values()), "patient_id", problem, "Mend one of them"))

    def _slots_of(self, study: int) -> list[int]:
        order = self.vocabulary.organs[self._studies[study].organ].modalities
        return [order.index(modality) for modality in self._entries[study].modalities]

    def _hold(self, budget: int) -> dict[int, Tensor]:
        """Cubes kept in memory: the first that fit. A pass visits each once, so no choice by recency does better."""
        held: dict[int, Tensor] = {}
        for i, entry in enumerate(self._entries):
            budget -= len(entry.modalities) * self.size**3 * 2
            if budget < 0:
                break
            held[i] = self._read(i)
        return held

    def _learnt(self, volumes: VolumesConfig) -> dict[str, Landmarks]:
        """Modality -> Nyul's scale: the settings' own, or of the training patients here."""
        training: dict[str, list[Landmarks]] = {}
        for study, entry in zip(self._studies, self._entries, strict=True):
            for modality in entry.modalities if study.split == "train" else ():
                training.setdefault(modality, []).append(entry.landmarks[modality])
        return scales(volumes, {m for entry in self._entries for m in entry.modalities}, training)

    def _cubes(self, study: int) -> Tensor:
        """(k, size, size, size) float16, of the modalities that the study has."""
        return self._in_memory[study] if study in self._in_memory else self._read(study)

    def _read(self, study: int) -> Tensor:
        entry = self._entries[study]
        cubes = self._cache.read(entry, self._studies[study])
        if self.scales:
            for cube, modality in zip(cubes, entry.modalities, strict=True):
                cube[:] = standardised(cube, entry.landmarks[modality], self.scales[modality])
        return torch.from_numpy(cubes)

    def _reports(self, captions: bool) -> list[str | None]:
        """Each study's report: as written, or made from the label; None where there is none.

        Reports of test patients are not read: no text of a patient enters at test time.
        """
        reports: list[str | None] = []
        for study, entry in zip(self._studies, self._entries, strict=True):
            report = study.report or None if study.split in ("train", "val") else None
            if captions and study.split == "train" and study.abnormality and not report:
                seed = int.from_bytes(hashlib.sha256(f"{study.patient_id}/{study.study_id}".encode()).digest()[:8])
                organ = self.vocabulary.organs[study.organ]
                report = caption(organ, study.abnormality, entry.modalities, seed=seed)
                self.captioned += 1
            reports.append(report)
        return reports

    def _embed(
        self, embed: Callable[[Sequence[str]], Tensor], reports: Sequence[str | None], hard_negatives: bool
    ) -> None:
        """Rows of the embedding table for each study's report, for its mirror image and for the negatives of both."""
        mirrored = [
            mirror_report(report) if report and study.split == "train" else None
            for study, report in zip(self._studies, reports, strict=True)
        ]
        said: list[tuple[Sequence[str | None], ...]] = [(reports, mirrored)]
        if hard_negatives:
            said += [tuple([t and turn(t) for t in texts] for texts in (reports, mirrored)) for turn in TURNS]
        texts = sorted({text for pair in said for column in pair for text in column if text})
        row = {text: i for i, text in enumerate(texts)}
        table = embed(texts) if texts else embed([""])[:0]
        self._table = torch.cat([table.float().cpu(), torch.zeros(1, table.shape[1])])  # the last row: no text
        # (report and its mirror image, the text itself and its negatives, study); -1 where there is none
        rows = [[[row[t] if t else -1 for t in column] for column in pair] for pair in said]
        self._rows = torch.tensor(rows).transpose(0, 1)

    def _last(self, split: str, organ: str) -> list[int]:
        last = []
        for studies in self._patients.get(split, ()):
            of_organ = [i for i in studies if self._studies[i].organ == organ]
            last += of_organ[-1:]
        return last

    def _batch(
        self,
        organ: str,
        studies: Sequence[int],
        config: AugmentConfig | None,
        generator: torch.Generator | None,
    ) -> Batch:
        spec = self.vocabulary.organs[organ]
        shape = (len(studies), len(spec.modalities))
        volumes = torch.zeros(*shape, *[self.size] * 3)
        present = torch.zeros(shape, dtype=torch.bool)
        for k, i in enumerate(studies):
            volumes[k, self._slots[i]] = self._cubes(i).float()
            present[k, self._slots[i]] = True
        index = torch.tensor(studies)
        plain, mirrored = self._rows[..., index]
        rows = plain
        if config is not None and generator is not None:
            mirrorable = (plain[0] < 0) | (mirrored[0] >= 0)
            volumes, flipped = augmented(volumes, present, mirrorable, config, generator)
            rows = torch.where(flipped, mirrored, plain)
        label = torch.tensor([spec.label(self._studies[i].abnormality) for i in studies])
        negatives = self._table[rows[1:].T] if len(rows) > 1 else None
        return Batch(organ, volumes, present, label, self._table[rows[0]], rows[0] >= 0, negatives)
