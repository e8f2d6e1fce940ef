"""One volume of a DICOM series in, one NIfTI file out that holds its voxels and its grid and no word of the header.

dcm2niix (of its PyPI package) decodes and orders the slices; it is shown links to the volume's own files in a folder of
their own, or, of a multi-frame file that holds several volumes, a copy with the volume's frames. What comes back must lie
where the headers say.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import cast

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import aff2axcodes
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID

from client.dicom.headers import number, text
from client.dicom.parts import Part
from client.dicom.rules import Facts
from client.grids import Grid

_TIMEOUT_S = 600
_SLACK = 0.2  # of a voxel, between where the headers and dcm2niix say that the first one is and the next ones are


class ConversionError(ValueError):
    """A volume that could not be converted: what is wrong, and what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem}. {remedy}.")


def convert(part: Part) -> nib.Nifti1Image:
    """The volume, (X, Y, Z) in dcm2niix's order of voxels, with the stored type and scaling. Raises ConversionError."""
    with tempfile.TemporaryDirectory(prefix="medmap-dicom-") as scratch:
        source, out = Path(scratch, "in"), Path(scratch, "out")
        source.mkdir()
        out.mkdir()
        _gather(part, source)
        said = _dcm2niix(source, out)
        made = sorted(out.glob("*.nii"))
        if not made:
            raise ConversionError(*_why_none(part, said))
        if len(made) > 1:
            problem = f"dcm2niix makes {len(made)} files of it, where the headers tell one volume"
            raise ConversionError(problem, "Convert it by hand, and add the file to the manifest")
        image = nib.Nifti1Image.from_bytes(made[0].read_bytes())
    return _placed(image, part.grid)


def bare(image: nib.Nifti1Image) -> bytes:
    """The same volume, gzip-packed, with a header of shape, type, scaling and affine alone; the same in, the same bytes out.

    Nothing else of dcm2niix's header stays: no description, no file name, no extension, no time of packing.
    """
    proxy = cast(ArrayProxy, image.dataobj)  # of a file's bytes: voxels as stored, and their scaling
    clean = nib.Nifti1Image(np.asanyarray(proxy.get_unscaled()), image.affine)
    clean.header.set_data_dtype(image.get_data_dtype())
    clean.header.set_slope_inter(proxy.slope, proxy.inter)
    clean.header.set_xyzt_units("mm")
    clean.set_qform(image.affine, code=1)
    clean.set_sform(image.affine, code=1)
    return gzip.compress(clean.to_bytes(), 6, mtime=0)


def sidecar(part: Part, facts: Facts) -> str:
    """What a physicist asks of a volume, as JSON: numbers and the maker. No free text, no date, no id."""
    header = part.series.header
    known = {
        "Manufacturer": text(header, "Manufacturer").split(" ")[0],
        "MagneticFieldStrength_T": number(header.get("MagneticFieldStrength")),
        "RepetitionTime_ms": facts.tr_ms,
        "EchoTime_ms": facts.te_ms,
        "InversionTime_ms": facts.ti_ms,
        "FlipAngle_deg": facts.flip_deg,
        "BValue_s_per_mm2": facts.b_value,
        "SliceThickness_mm": number(header.get("SliceThickness")),
        "Orientation": "".join(map(str, aff2axcodes(part.grid.affine))),
    }
    return json.dumps({k: v for k, v in known.items() if v not in (None, "")}, indent=1) + "\n"


def _gather(part: Part, folder: Path) -> None:
    """Links to the volume's files; the frames of a multi-frame file that holds more than this volume are copied out."""
    frames: dict[Path, list[int]] = {}
    for image in part.images:
        if image.frame is not None:
            frames.setdefault(image.path, []).append(image.frame)
    whole = {path for path in frames if sum(i.path == path for i in part.series.images) == len(frames[path])}
    for count, path in enumerate(dict.fromkeys(image.path for image in part.images)):
        name = folder / f"{count:06d}.dcm"  # its own name may be anything, and tells the patient at times
        if path in frames and path not in whole:
            _carve(path, sorted(frames[path]), name)
        else:
            os.symlink(path.resolve(), name)


def _carve(path: Path, frames: list[int], target: Path) -> None:
    """A copy of a multi-frame file with some of its frames."""
    try:
        _keep(ds := pydicom.dcmread(path), frames)
    except Exception as error:  # whatever a strange file leads pydicom into
        problem = f"its volumes cannot be taken out of one file ({type(error).__name__})"
        raise ConversionError(problem, "Export one volume a file") from None
    ds.save_as(target)


def _keep(ds: pydicom.FileDataset, frames: list[int]) -> None:
    count, syntax = int(ds.NumberOfFrames), UID(ds.file_meta.TransferSyntaxUID)
    if syntax.is_compressed and syntax.is_encapsulated:
        every = list(generate_frames(ds.PixelData, number_of_frames=count))
        ds.PixelData = encapsulate([every[i] for i in frames])
    else:
        size = int(ds.Rows) * int(ds.Columns) * int(ds.SamplesPerPixel) * int(ds.BitsAllocated) // 8
        ds.PixelData = b"".join(ds.PixelData[i * size : (i + 1) * size] for i in frames)
    ds.PerFrameFunctionalGroupsSequence = [ds.PerFrameFunctionalGroupsSequence[i] for i in frames]
    ds.NumberOfFrames = len(frames)


def _dcm2niix(source: Path, out: Path) -> str:
    """Run it; what it said. Nothing of a user's defaults (-g i), no sidecar (-b n), one file (-m y), not turned (-x i)."""
    options = ["-g", "i", "-b", "n", "-z", "n", "-m", "y", "-l", "o", "-x", "i", "-f", "volume"]
    command = [dcm2niix.bin, *options, "-o", str(out), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ConversionError(f"dcm2niix took more than {_TIMEOUT_S} s", "Convert it by hand") from None
    return done.stdout + done.stderr


def _why_none(part: Part, said: str) -> tuple[str, str]:
    syntax = UID(part.images[0].syntax)
    if syntax.is_compressed or "ransfer syntax" in said:
        remedy = "Have the PACS export it uncompressed, or convert it: gdcmconv --raw IN OUT"
        return f"its pixels cannot be decoded ({syntax.name})", remedy
    return "dcm2niix makes no volume of it", "Run dcm2niix on its folder by hand to see why"


def _placed(image: nib.Nifti1Image, grid: Grid) -> nib.Nifti1Image:
    """The same voxels on the headers' grid: dcm2niix's own turns of axes, and their exact places. Raises ConversionError.

    dcm2niix takes the distance of the first two slices for all; the headers' grid is the mean of them all.
    """
    if len(image.shape) != 3 or sorted(image.shape) != sorted(grid.shape):
        wanted, found = (" x ".join(map(str, shape)) for shape in (grid.shape, image.shape))
        raise ConversionError(f"it has {wanted} voxels by its headers, {found} by dcm2niix", "Convert it by hand")
    into = np.linalg.inv(grid.affine) @ image.affine  # from its indices to those of the headers' grid
    turn = into[:3, :3].round()
    start = np.where(turn.sum(1) < 0, np.array(grid.shape) - 1, 0)  # an axis that runs backwards begins at its end
    off = max(float(np.abs(into[:3, :3] - turn).max()), float(np.abs(into[:3, 3] - start).max()))
    if abs(np.linalg.det(turn)) != 1 or off > _SLACK:
        problem = f"its voxels lie {off:.2g} voxels apart in the headers and in dcm2niix's file"
        raise ConversionError(problem, "Convert it by hand, and look at it in a viewer")
    exact = np.eye(4)
    exact[:3, :3], exact[:3, 3] = turn, start
    return nib.Nifti1Image(image.dataobj, grid.affine @ exact, image.header)
