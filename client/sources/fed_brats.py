"""Flower's fed-brats (BraTS 2024, five sites), as a snapshot of its repository.

ROOT/metadata/{train,test}*.{parquet,csv}   BraTS Subject ID, Site, t1n, t1c, t2w, t2f, Mask: paths relative to ROOT
"""

from __future__ import annotations

from pathlib import Path

from client.sources.brats import MODALITIES, patient_of
from client.sources.files import read_records
from client.sources.found import Found, Row, SourceError

_COLUMNS = ("t1n", "t1c", "t2w", "t2f")
_READ = ("brats_subject_id", "site", *_COLUMNS, "mask")


def scan(root: Path) -> Found:
    """All cases, by the tables. Raises SourceError where there are none, or none that can be read."""
    found = Found()
    folder = root / "metadata"
    tables = {
        split: sorted(folder.glob(f"{split}*.csv")) or sorted(folder.glob(f"{split}*.parquet"))
        for split in ("train", "test")
    }
    if not any(tables.values()):
        raise SourceError(f"{folder} holds no train*.parquet or test*.parquet: give a snapshot of flwrlabs/fed-brats")
    for split, paths in tables.items():
        for path in paths:
            for record in _records(path, found):
                _case(root, record, split, path, found)
    found.notes.append("Sites are the data set's own; train and test as well, validation patients are not set apart.")
    found.notes.append(
        "Every patient has, or had, a tumour: these are scans after surgery (BraTS 2024), and some may show none."
    )
    return found


def _case(root: Path, record: dict[str, str], split: str, table: Path, found: Found) -> None:
    case = record.get("brats_subject_id", "")
    if not case:
        found.say(f"{table} has a row without BraTS Subject ID", "It is left out", "patient_id")
        return
    files = {column: root / record[column] for column in (*_COLUMNS, "mask") if record.get(column)}
    for column, path in list(files.items()):
        if not path.is_file():
            found.say(f"{path} is missing", f"{case} goes without {column}; download it again", "image")
            del files[column]
    found.rows += [
        Row(
            patient_id=patient_of(case),
            study_id=case,
            modality=MODALITIES[column],
            image=files[column],
            organ="brain",
            abnormality="tumour",
            mask=files.get("mask"),
            site=f"site-{record['site']}" if record.get("site") else "",
            split=split,
        )
        for column in _COLUMNS
        if column in files
    ]


def _records(path: Path, found: Found) -> list[dict[str, str]]:
    if path.suffix == ".csv":
        return read_records(path, found)
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise SourceError(
            f"{path} needs pyarrow to be read: pip install 'medmap-fl[ingest]', or write it as "
            f"{path.with_suffix('.csv').name} beside it"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = {name: name.lower().replace(" ", "_") for name in file.schema_arrow.names}
            table = file.read([name for name, plain in columns.items() if plain in _READ])
        for field in table.schema:
            if types.is_nested(field.type) or types.is_binary(field.type) or types.is_large_binary(field.type):
                remedy = "Take a snapshot of the repository, whose tables name the files beside them"
                found.say(f"{path}: {field.name} holds {field.type} instead of paths", remedy)
                return []
        return [{columns[name]: _text(value) for name, value in row.items()} for row in table.to_pylist()]
    except (OSError, ValueError, ArrowException) as error:
        found.say(f"{path} is no Parquet file that can be read ({type(error).__name__})", "Download it again")
        return []


def _text(value: object) -> str:
    """A cell as a CSV has it; a whole number that became 3.0 in a column with gaps is 3 again."""
    if value is None or value != value:  # pandas' gaps are NaN
        return ""
    return f"{value:.15g}" if isinstance(value, float) else str(value).strip()
