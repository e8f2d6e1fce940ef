"""LLD-MMRI (498 patients, 8 phases each, 7 classes of liver lesions) in both of its layouts.

    ROOT/labels/Annotation.json, ROOT/images/MR<ID>/<studyUID>/<seriesUID>.nii.gz                      whole volumes
    ROOT/classification_dataset/{images/MR<ID>[_<k>]/<phase>.nii.gz, labels/*.txt}                     a crop per lesion

Voxel edges come from Annotation.json ("the true volume spacing"), since headers lie; a crop's header has 1 mm and no
origin. A crop MR<ID>_<k> is a further lesion of patient MR<ID>: a study of its own, never a patient of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.grids import HEADER_BYTES, Grid, VolumeError, read_grid
from client.manifest import Spacing
from client.sources.boxes import Box, write_mask
from client.sources.files import read_json, read_text, stem, volumes
from client.sources.found import Found, Row, SourceError

CLASSES = ("hemangioma", "icc", "abscess", "metastasis", "cyst", "fnh", "hcc")  # in the order of the data set's numbers
PHASES = {"T2WI": "T2WI", "DWI": "DWI", "In Phase": "InPhase", "Out Phase": "OutPhase", "C-pre": "C-pre", "C+A": "C+A",
          "C+V": "C+V", "C+Delay": "C+Delay"}  # fmt: skip
_NAMES = ("hepatic_hemangioma", "intrahepatic_cholangiocarcinoma", "hepatic_abscess", "hepatic_metastasis", "hepatic_cyst",
          "focal_nodular_hyperplasia", "hepatocellular_carcinoma")  # fmt: skip
_NUMBERS = {"-1": "", **{str(n): name for n, name in enumerate(CLASSES)}}
_FOLDER = re.compile(r"(MR[^/\\]+?)(?:_(\d+))?")  # some ids look negative: MR-411388
_BOXED = ("C+V", "C+A", "C+Delay", "C-pre", "T2WI", "DWI", "InPhase", "OutPhase")  # the first whose box is the mask


@dataclass(frozen=True)
class _Series:
    """What Annotation.json says of one volume."""

    modality: str
    file: str
    spacing_mm: Spacing
    labels: tuple[str, ...]
    boxes: tuple[Box, ...]
    hollow: int = 0  # boxes that hold no voxel


def scan(
    root: Path, *, fold: int | None = None, rois: bool = False, masks: Path | None = None, force: bool = False
) -> Found:
    """Whole volumes; lesion crops with `rois`, or where there are no others.

    fold: train and val of that fold (1 to 5); the official lists otherwise. masks: a folder in which the lesion boxes of
    whole volumes are written as masks; force: in place of what is there. Raises SourceError: neither layout is there, or
    masks cannot be written.
    """
    found = Found()
    crops = root if root.name == "classification_dataset" else root / "classification_dataset"
    if not crops.is_dir() and (root / "labels" / "labels.txt").is_file():
        crops = root
    top = crops.parent if root == crops and not (root / "labels" / "Annotation.json").is_file() else root
    annotation = top / "labels" / "Annotation.json"
    series = _annotated(annotation, found) if annotation.is_file() else {}
    lists = _Lists(crops / "labels", fold, found)
    if series and (top / "images").is_dir() and not rois and root != crops:
        if masks is not None and masks.resolve().is_relative_to((top / "images").resolve()):
            raise SourceError(f"{masks} lies among the images, where nothing is written: choose another folder")
        _whole(top / "images", series, lists, masks, force, found)
    elif (crops / "images").is_dir():
        _crops(crops / "images", series, lists, found)
        if masks:
            raise SourceError("--write-masks needs whole volumes: a crop is the box already")
    else:
        raise SourceError(
            f"{root} holds neither images/ with labels/Annotation.json nor classification_dataset/: give the folder that does"
        )
    lists.close(found)
    found.notes.append("One hospital made all of it (Ningbo): sites can only be simulated.")
    found.notes.append("Its licence (CC BY-NC 4.0) allows copies at a single site of one organisation only.")
    return found


def _annotated(path: Path, found: Found) -> dict[str, list[_Series]]:
    """Patient -> series of Annotation.json."""
    content = read_json(path, found)
    people = content.get("Annotation_info") if isinstance(content, dict) else None
    if not isinstance(people, dict):
        found.say(f"{path} has no Annotation_info", "Download it again")
        return {}
    told: dict[str, list[_Series]] = {}
    for patient, items in people.items():
        if not _FOLDER.fullmatch(patient):
            found.say(f"{path}: '{patient}' is not named as a patient, MR and a number", "It is left out")
            continue
        for item in items if isinstance(items, list) else [None]:
            try:
                told.setdefault(patient, []).append(_series(patient, item))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
                uid = item.get("seriesUID", "?") if isinstance(item, dict) else "?"
                found.say(f"{path}: series {uid} of {patient} is not described as the others are", "Download it again")
    hollow = {patient: sum(item.hollow for item in items) for patient, items in told.items()}
    if some := [patient for patient, count in hollow.items() if count]:
        problem = f"{path}: {sum(hollow.values())} lesion boxes hold no voxel, such as of {some[0]}"
        found.say(problem, "They give no mask; correct their corners", "mask")
    return told


def _sound(box: Sequence[int]) -> bool:
    """Whether a box (least x, y, z, most x, y, z) holds a voxel."""
    return box[0] < box[3] and box[1] < box[4] and box[2] <= box[5]


def _series(patient: str, item: Any) -> _Series:
    lesions = item["annotation"]["lesion"].values()
    rows_mm, columns_mm = (float(v) for v in item["pixel_spacing"])  # DICOM's order: down the rows, then across
    spacing_mm = columns_mm, rows_mm, float(item["slice_thickness"])
    if not all(0 < edge < math.inf for edge in spacing_mm):
        raise ValueError("no voxel edges")
    names = [str(lesion["category"]).strip().lower() for lesion in lesions]
    corners = ("x_min", "y_min", "z_min", "x_max", "y_max", "z_max")
    boxes = [[int(lesion["bbox"]["3D_box"][corner]) for corner in corners] for lesion in lesions]
    return _Series(
        modality=PHASES[item["phase"]],
        file=f"{patient}/{item['studyUID']}/{item['seriesUID']}",
        spacing_mm=spacing_mm,
        labels=tuple(label for n in names if (label := CLASSES[_NAMES.index(n)] if n in _NAMES else _NUMBERS[n])),
        # x and y end before their maximum, slices with it: so does the data set's own cropping
        boxes=tuple(((b[0], b[1], b[2]), (b[3], b[4], b[5] + 1)) for b in boxes if _sound(b)),
        hollow=sum(not _sound(b) for b in boxes),
    )


def _whole(
    images: Path, series: Mapping[str, list[_Series]], lists: _Lists, masks: Path | None, force: bool, found: Found
) -> None:
    files = {name[: -len(path.name)] + stem(path.name): path for name, path in volumes(images, found)}
    lying = 0
    for patient, told in series.items():
        label, split = _label(patient, told, lists, found), lists.split(patient)
        rows, boxed = [], dict[str, tuple[Grid, tuple[Box, ...]]]()
        for item in told:
            path = files.pop(item.file, None)
            if path is None:
                found.say(
                    f"{images / item.file}.nii.gz is missing", f"{item.modality} is left out; unpack it again", "image"
                )
                continue
            grid, true_mm = _grid(path, item.spacing_mm, found)
            lying += true_mm is not None
            if grid is not None:
                boxed[item.modality] = grid, item.boxes
            rows.append(Row(patient, patient, item.modality, path, "liver", label, split=split, spacing_mm=true_mm))
        _say_absent(patient, {item.modality for item in told}, found)
        slot = next((slot for slot in _BOXED if slot in boxed and boxed[slot][1]), None)
        named = masks / f"{patient}.nii.gz" if masks is not None and slot else None
        mask = write_mask(named, *boxed[slot], force=force) if named and slot else None
        found.rows += [replace(row, mask=mask) for row in rows]
    if files:
        found.say(
            f"{len(files)} volumes below {images} are not in Annotation.json, such as {min(files)}", "They are left out"
        )
    _note_spacing(lying, found)
    if masks is not None:
        found.notes.append(
            "A mask is the filled box of Annotation.json in one phase, not an outline: lesions are smaller."
        )


def _label(patient: str, told: list[_Series], lists: _Lists, found: Found) -> str:
    """The class of all its lesions, by Annotation.json and by the lists, which may know what the other withholds."""
    said = dict.fromkeys(label for item in told for label in item.labels)
    said |= dict.fromkeys([lists.label(patient)] if lists.label(patient) else [])
    if len(said) > 1:
        problem = f"Patient {patient} has lesions called {' and '.join(said)}"
        found.say(problem, "Used without a label; --rois takes the crops, a study per lesion", "abnormality")
    return next(iter(said)) if len(said) == 1 else ""


def _crops(images: Path, series: Mapping[str, list[_Series]], lists: _Lists, found: Found) -> None:
    spacings = {(patient, s.modality): s.spacing_mm for patient, told in series.items() for s in told}
    seen: dict[str, set[str]] = {}
    lying = 0
    for name, path in volumes(images, found):
        folder, phase = name.partition("/")[0], PHASES.get(stem(path.name), "")
        match = _FOLDER.fullmatch(folder)
        if not phase or match is None or name.count("/") != 1:
            found.say(f"{path} is named as none of {', '.join(PHASES)} in a folder MR...", "It is left out; rename it")
            continue
        patient = match[1]
        spacing = spacings.get((patient, phase))
        _, true_mm = _grid(path, spacing, found)
        lying += true_mm is not None
        seen.setdefault(folder, set()).add(phase)
        found.rows.append(
            Row(
                patient_id=patient,
                study_id=folder,
                modality=phase,
                image=path,
                organ="liver",
                abnormality=lists.label(folder),
                spacing_mm=true_mm,
            )
        )
    splits = {folder: lists.split(folder) for folder in seen}
    found.rows = [replace(row, split=splits[row.study_id]) for row in found.rows]
    for folder, phases in seen.items():
        _say_absent(folder, phases, found)
    if series:
        _note_spacing(lying, found)
        found.notes.append(
            "Crops carry no position: their middles are laid upon one another, each centred on the lesion."
        )
    else:
        found.notes.append(
            "Crops without Annotation.json: their headers say 1 mm, which is untrue, and nothing says what is true. Put "
            "labels/ beside classification_dataset/."
        )


def _grid(path: Path, spacing: Spacing | None, found: Found) -> tuple[Grid | None, Spacing | None]:
    """The corrected grid, and the true edges where the header's are others (by more than 1 %)."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
        stored = read_grid(head)
    except VolumeError as error:
        found.say(f"{path}: {error.problem}", error.remedy, "image")
        return None, spacing
    except OSError as error:
        found.say(f"{path} cannot be read: {error.strerror}", "Check its permissions and the disk", "image")
        return None, spacing
    if spacing is None or abs(stored.spacing_mm / spacing - 1).max() <= 0.01:
        return stored, None
    return read_grid(head, spacing), spacing


def _say_absent(study: str, there: Collection[str], found: Found) -> None:
    if absent := [phase for phase in PHASES.values() if phase not in there]:
        found.say(f"Study {study} has no {', '.join(absent)}", "It goes without", "modality")


def _note_spacing(lying: int, found: Found) -> None:
    if lying:
        found.notes.append(
            f"{lying} headers have other voxel edges than Annotation.json: its edges go into the column spacing_mm."
        )


class _Lists:
    """Labels and splits of classification_dataset/labels/*.txt: lines such as `MR207602 0`, -1 where it is withheld."""

    def __init__(self, folder: Path, fold: int | None, found: Found) -> None:
        self.labels: dict[str, str] = {}
        self.splits: dict[str, str] = {}
        self.unlisted = 0
        if fold is not None and not (folder / f"train_fold{fold}.txt").is_file():
            raise SourceError(f"--fold {fold} needs {folder / f'train_fold{fold}.txt'}: folds are 1 to 5")
        for path in sorted(folder.glob("*.txt")):
            if "_fold" not in path.name:
                held_out = next((split for split in ("val", "test") if split in path.name), "train")
                self._read(path, held_out if fold is None else "test", found)
        for split in ("train", "val") if fold is not None else ():
            self._read(folder / f"{split}_fold{fold}.txt", split, found)

    def _read(self, path: Path, split: str, found: Found) -> None:
        for number, line in enumerate(read_text(path, found).splitlines(), 1):
            *name, label = line.split() or [""]
            if not label:
                continue
            if len(name) != 1 or label not in _NUMBERS:
                found.say(f"{path}, line {number}: '{line.strip()}' is no name and class from -1 to 6", "Correct it")
                continue
            self.splits[name[0]] = split
            if (known := _NUMBERS[label]) and self.labels.setdefault(name[0], known) != known:
                problem = f"{path}, line {number}: {name[0]} is {known} here, and {self.labels[name[0]]} elsewhere"
                found.say(problem, "It is used without a label; correct one of them", "abnormality")
                self.labels[name[0]] = ""

    def label(self, name: str) -> str:
        """Of a study; empty where it is withheld."""
        return self.labels.get(name, "")

    def split(self, name: str) -> str:
        """Of a study; one that no list names is of the official test set."""
        self.unlisted += bool(self.splits) and name not in self.splits
        return self.splits.get(name, "test") if self.splits else ""

    def close(self, found: Found) -> None:
        """Say what the lists do not."""
        if self.unlisted:
            found.notes.append(f"Studies in no list: {self.unlisted}; they are taken for the official test set.")
