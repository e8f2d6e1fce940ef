"""Rebuild assets/mni_tissues_2mm.npy.xz, (4, 96, 96, 96) uint8, from an installed nilearn.

    python -m simulation.phantom.build_assets

The other asset, abdomen_labels_3mm.npz, is the label map of totalsegmentator 2.18.0's example CT (source
distribution, tests/reference_files/example_ct.nii.gz and example_seg_fast_force_split.nii.gz): its 59 structures
merged into the 15 tissues of `tissues.LIVER_BASE` (what no structure covers: air, fat, muscle or bone by CT number;
the outer 6 mm of each kidney are its cortex), cut to 96^3 at 3 mm with the liver at the top. ATTRIBUTION.md has
sources and licences.
"""

from __future__ import annotations

import importlib.util
import io
import lzma
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates, uniform_filter

SIZE, SPACING_MM = 96, 2.0
TARGET = Path(__file__).parent / "assets" / "mni_tissues_2mm.npy.xz"


def tissue_maps(folder: Path) -> np.ndarray:
    """gm, wm, csf and T1 brightness, (4, 96, 96, 96) uint8 in RAS at 2 mm, around the middle of the brain."""
    t1, gm, wm = (
        nib.Nifti1Image.from_filename(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz").get_fdata(
            dtype=np.float32
        )
        / 255
        for kind in ("t1", "gm", "wm")
    )
    head = t1 > 0
    csf = np.clip(head - gm - wm, 0, 1)
    corners = np.argwhere(head)
    middle = (corners.min(0) + corners.max(0)) / 2
    lattice = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
    index = np.stack(np.meshgrid(*(lattice + m for m in middle), indexing="ij"))
    maps = [
        map_coordinates(uniform_filter(volume, 3, mode="constant"), index, order=1, mode="constant")
        for volume in (gm * head, wm * head, csf, t1)
    ]
    return np.clip(np.stack(maps) * 255 + 1e-3, 0, 255).astype(np.uint8)


def pack(maps: np.ndarray) -> bytes:
    """The maps as .npy inside .xz."""
    buffer = io.BytesIO()
    np.save(buffer, maps)
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main() -> int:
    """Write the asset; 1 where nilearn is absent."""
    found = importlib.util.find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        print(
            "nilearn, which carries the MNI tissue maps, is not installed: "
            "run `pip install --no-deps nilearn==0.14.1` and try again.",
            file=sys.stderr,
        )
        return 1
    packed = pack(tissue_maps(Path(found.submodule_search_locations[0]) / "datasets" / "data"))
    TARGET.write_bytes(packed)
    print(f"{TARGET}: {len(packed):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
