"""What sites may release besides updates, as tables of counts: their shapes, and how much of them one patient moves.

Both sides rest on it: a site to add the right noise, the server to know what it got. Shapes come from the vocabulary alone,
never from a site's data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medmap_model import landmarks, shift
from medmap_model.vocabulary import Organ

UNIT = 1000  # a patient's share of an intensity histogram is counted in thousandths
FINE = 100_000  # sums of features are counted in parts of this, since squares are small
WORDS = (0, 1, 11, 21, 41, 81, 161)  # least number of words of each bin of report lengths
INTENSITY = np.linspace(-4, 6, 21)  # edges of the bins of normalised intensities (z-scores)


class Table(NamedTuple):
    """Shape of an organ's table; a patient moves at most `cells` cells by `unit` each.

    Or more cells by less: by `cells * unit` in all (L1) and `sqrt(cells) * unit` in length (L2), which is what noise is for.
    """

    shape: tuple[int, ...]
    cells: int
    unit: int = 1


def released_classes(classes: int, *, multi_label: bool = False) -> tuple[int, ...]:
    """Of two classes that exclude each other the second tells all; of others, every one."""
    return (1,) if classes == 2 and not multi_label else tuple(range(classes))


def score_table(organ: Organ, *, bins: int) -> Table:
    """Scores of a model: (classes, bins, 2)."""
    classes = released_classes(len(organ.abnormalities), multi_label=organ.multi_label)
    return Table((len(classes), bins, 2), len(classes))


def cohort_tables(organ: Organ) -> dict[str, Table]:
    """What can be asked of a cohort, each patient counted for one organ.

    classes: (C + 1,) patients per class, the last of unknown label. modalities: (M,) patients who have the modality.
    intensity: (M, 20) each patient's share of voxels per bin of `INTENSITY`, in thousandths. report_words: (7,) patients
    by the number of words in their report, bins of `WORDS`. moments: (M, RELEASED) `shift.released_sums`, in parts of FINE;
    a patient adds 3 of them to each modality at most. landmarks: (M, RELEASED) `landmarks.released_sums`, in the same parts;
    2 at most.
    """
    classes, modalities = len(organ.abnormalities), len(organ.modalities)
    return {
        "classes": Table((classes + 1,), classes if organ.multi_label else 1),
        "modalities": Table((modalities,), modalities),
        "intensity": Table((modalities, len(INTENSITY) - 1), modalities, UNIT),
        "report_words": Table((len(WORDS),), 1),
        "landmarks": Table((modalities, landmarks.RELEASED), 2 * modalities, FINE),
        "moments": Table((modalities, shift.RELEASED), 3 * modalities, FINE),
    }


COHORT = ("classes", "modalities", "intensity", "report_words")  # the statistics of a cohort
SHIFT, SCALES = ("moments",), ("landmarks",)  # asked for on their own: what they cost decides what they can show
