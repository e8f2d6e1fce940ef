"""BraTS of 2018 to 2024 and FeTS: a folder per case; CASE_t1ce.nii.gz or CASE-t1c.nii.gz, in any folders.

Brats18_TCIA01_131_1_flair  BraTS20_Training_001_t1ce  BraTS2021_00000_t2  FeTS2022_01341_seg  BraTS-GLI-00005-100-t1n
"""

from __future__ import annotations

import re
from pathlib import Path

from client.sources.files import SUFFIXES, read_records, read_text, stem, walk
from client.sources.found import Found, Row

MODALITIES = {"t1": "T1", "t1n": "T1", "t1ce": "T1ce", "t1c": "T1ce", "t1gd": "T1ce", "t2": "T2", "t2w": "T2",
              "flair": "FLAIR", "t2f": "FLAIR"}  # fmt: skip
MASKS = ("seg", "gtv")  # gtv: of BraTS-MEN-RT, the volume to be irradiated
_NAME = re.compile(rf"(.+?)[_-]({'|'.join(sorted((*MODALITIES, *MASKS), key=len, reverse=True))})", re.IGNORECASE)
_VISIT = re.compile(r"(BraTS-[A-Za-z-]+-\d+)-\d{1,3}", re.IGNORECASE)  # since 2023 a patient may have several
_MAPPING = re.compile(r"(.*_)?name_mapping.*\.csv")
_TEXT = re.compile(r"(.+)_flair_text\.txt")  # TextBraTS
_GRADES = ("HGG", "LGG")


def scan(root: Path, *, partition: Path | None = None) -> Found:
    """All cases: brain, tumour. partition: a FeTS CSV (Partition_ID, Subject_ID), which gives the sites.

    Raises SourceError where there is no such folder.
    """
    found = Found()
    cases, masks, reports, grades = dict[str, dict[str, Path]](), dict[str, Path](), dict[str, str](), dict[str, str]()
    for name, path in walk(root, found):
        if _MAPPING.fullmatch(path.name):
            grades |= _grades(path, found)
        elif text := _TEXT.fullmatch(path.name):
            reports[text[1]] = " ".join(read_text(path, found).split())
        elif name.lower().endswith(SUFFIXES):
            _file(path, cases, masks, found)
    sites = _sites(partition, cases, found) if partition else {}
    for case, images in cases.items():
        grade = grades.get(case) or next((g for g in _GRADES for path in images.values() if g in path.parts), "")
        found.rows += [
            Row(
                patient_id=patient_of(case),
                study_id=case,
                modality=modality,
                image=image,
                organ="brain",
                abnormality="tumour",
                report=reports.get(case, ""),
                report_source="generated" if reports.get(case) else "",
                mask=masks.get(case),
                site=sites.get(case, ""),
                extra={"grade": grade} if grade else {},
            )
            for modality, image in images.items()
        ]
        if absent := [m for m in dict.fromkeys(MODALITIES.values()) if m not in images]:
            found.say(f"Study {case} has no {', '.join(absent)}", "It goes without", "modality")
    for case in sorted(masks.keys() - cases.keys()):
        found.say(f"{masks[case]} is a mask of a case without images", "It is left out", "mask")
    if lost := sorted(reports.keys() - cases.keys()):
        found.say(f"{len(lost)} texts are of cases without images, such as {lost[0]}", "They are left out", "report")
    _notes(found, cases, masks)
    return found


def patient_of(case: str) -> str:
    """The patient of a case: of BraTS-GLI-00005-100, visit 100 of BraTS-GLI-00005."""
    match = _VISIT.fullmatch(case)
    return match[1] if match else case


def _file(path: Path, cases: dict[str, dict[str, Path]], masks: dict[str, Path], found: Found) -> None:
    match = _NAME.fullmatch(stem(path.name))
    if match is None:
        found.say(
            f"{path} is not named as a BraTS volume", "It is left out; a segmentation is CASE_seg.nii.gz", "image"
        )
        return
    case, kind = match[1], match[2].lower()
    images = masks if kind in MASKS else cases.setdefault(case, {})
    slot = case if kind in MASKS else MODALITIES[kind]
    if (first := images.setdefault(slot, path)) != path:
        found.say(f"{path} is what {first} is already", "The first is used; remove one", "image")


def _grades(path: Path, found: Found) -> dict[str, str]:
    """Case -> HGG or LGG; the table's columns name each year's cases."""
    records = read_records(path, found)
    cases = {v: r.get("grade", "") for r in records for k, v in r.items() if k.endswith("subject_id")}
    return {case: grade for case, grade in cases.items() if grade}


def _sites(partition: Path, cases: dict[str, dict[str, Path]], found: Found) -> dict[str, str]:
    """Case -> site of a FeTS partition; -1 says that the case was held back."""
    records = read_records(partition, found)
    if records and not {"partition_id", "subject_id"} <= records[0].keys():
        found.say(f"{partition} has no columns Partition_ID and Subject_ID", "Give a FeTS partition")
        return {}
    told: dict[str, set[str]] = {}
    for record in records:
        if record["partition_id"] not in ("", "-1"):
            told.setdefault(record["subject_id"], set()).add(f"site-{record['partition_id']}")
    sites = {case: min(names) for case, names in told.items() if len(names) == 1}
    for case in sorted(told.keys() & cases.keys() - sites.keys()):
        found.say(f"{partition} has {case} in {' and '.join(sorted(told[case]))}", "Keep one row for each case", "site")
    if without := [case for case in cases if case not in told]:
        found.say(
            f"{len(without)} cases have no site in {partition}, such as {without[0]}", "Their site stays empty", "site"
        )
    return sites


def _notes(found: Found, cases: dict[str, dict[str, Path]], masks: dict[str, Path]) -> None:
    if not cases:
        return
    found.notes.append(
        "Every BraTS patient has a tumour: to learn tumour against no tumour, healthy patients must come from elsewhere "
        "(such as IXI), and a model may then tell the data sets apart instead. BraTS is skull-stripped, IXI is not."
    )
    if unmarked := len(cases.keys() - masks.keys()):
        found.notes.append(f"Cases without a mask, as those of BraTS' validation sets: {unmarked}.")
    if any(row.report for row in found.rows):
        found.notes.append("TextBraTS' reports are marked as generated: its files do not say who wrote a sentence.")
    if any(row.extra for row in found.rows):
        found.notes.append("The column grade (HGG, LGG) is kept; training ignores it.")
