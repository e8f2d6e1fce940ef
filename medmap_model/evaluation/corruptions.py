"""MRI corruptions at three severities: normalised volumes (B, M, D, H, W) in, the same shape out, alike for a seed.

Artefacts arise in the magnitude image, so a volume is taken back to magnitudes in [0, 1] (0: its lowest value, air), is
corrupted there, and scaled back: a change of gain, which a hospital's own normalisation would remove, is taken away.
Bias field, noise, undersampling and resolution are MONAI's, motion and ghosting TorchIO's (an optional extra).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medmap_model.batch import Batch
from medmap_model.evaluation.metrics import scores
from medmap_model.evaluation.missing import Encodings, encode_all, subset_probabilities
from medmap_model.model import MedMAP

SEVERITIES = (1, 2, 3)
METRICS = ("auroc", "balanced_accuracy", "ece")
CLIP_Z = (-4.0, 6.0)  # what normalised intensities are clipped to at a hospital
_FOREGROUND = 0.12  # of the 98th percentile: above air, below tissue; as in a hospital's normalisation
_CENTRE = 0.25  # undersampling: share of k-space lines in the middle that are always read
_MARGIN = 4  # voxels, around a volume that is moved: it is a crop of a body that goes on beyond it

Apply = Callable[[Tensor, float, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Corruption:
    """One artefact: its level at severity 1, 2 and 3, and (C, D, H, W) magnitudes, level, generator -> magnitudes."""

    levels: tuple[float, float, float]
    apply: Apply
    torchio: bool = False


def _bias_field(image: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Times exp(polynomial of degree 3), coefficients uniform in +-level: a coil's uneven sensitivity."""
    from monai.transforms import RandBiasField

    transform = RandBiasField(degree=3, coeff_range=(-level, level), prob=1.0)
    transform.set_random_state(_seed(rng))
    return torch.as_tensor(transform(image))


def _noise(image: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Rician noise, `level` of the brightest voxel."""
    from monai.transforms import RandRicianNoise

    transform = RandRicianNoise(prob=1.0, std=level, sample_std=False)
    transform.set_random_state(_seed(rng))
    return torch.as_tensor(transform(image))


def _undersampling(image: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """One k-space line in `level` along an in-plane axis and the middle ones, zero-filled: aliasing and blur."""
    from monai.apps.reconstruction.transforms.array import EquispacedKspaceMask
    from monai.data.fft_utils import fftn_centered

    axis = int(rng.integers(1, 3))
    lines = image.movedim(axis, -1)
    kspace = fftn_centered(torch.stack([lines, torch.zeros_like(lines)], -1), spatial_dims=3)
    mask = EquispacedKspaceMask(center_fractions=[_CENTRE], accelerations=[level], spatial_dims=3)
    mask.set_random_state(_seed(rng))
    # What comes first of a volume is its coils, which are combined: there is one.
    return mask(kspace[:, None])[1].movedim(-1, axis)


def _resolution(image: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Slices `level` times as thick along one axis: averaged, then interpolated back."""
    from monai.transforms import Resize

    shape = list(image.shape[1:])
    axis = int(rng.integers(3))
    coarse = list(shape)
    coarse[axis] = max(1, round(shape[axis] / level))
    return Resize(shape, mode="trilinear")(Resize(coarse, mode="area")(image))


def _motion(image: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """The head or the breath moves twice during the scan, up to `level` degrees and a third as many voxels."""
    from torchio import Motion

    move = Motion(
        degrees=rng.uniform(-level, level, (2, 3)),
        translation=rng.uniform(-level / 3, level / 3, (2, 3)),
        times=rng.uniform((0.3, 0.55), (0.45, 0.7)),
        image_interpolation="linear",
    )
    inside = slice(_MARGIN, -_MARGIN)
    return move(F.pad(image, (_MARGIN,) * 6, mode="replicate"))[:, inside, inside, inside]


def _ghosting(image: Tensor, level: float, rng: np.random.Generator) -> Tensor:
    """Every second k-space plane along an in-plane axis is weakened by `level`, but for the middle: a copy of the body."""
    from torchio import Ghosting

    return Ghosting(num_ghosts=2, axis=int(rng.integers(2)), intensity=level, restore=None)(image)


CORRUPTIONS: dict[str, Corruption] = {
    "bias_field": Corruption((0.1, 0.2, 0.35), _bias_field),
    "ghosting": Corruption((0.3, 0.6, 0.9), _ghosting, torchio=True),
    "motion": Corruption((3.0, 6.0, 12.0), _motion, torchio=True),
    "undersampling": Corruption((1.5, 2.0, 3.0), _undersampling),
    "noise": Corruption((0.04, 0.08, 0.15), _noise),
    "resolution": Corruption((2.0, 3.0, 4.0), _resolution),
}


def unavailable() -> dict[str, str]:
    """Corruptions that cannot be made here -> one sentence that says what to install."""
    if importlib.util.find_spec("torchio") is not None:
        return {}
    hint = "needs TorchIO: run `pip install 'medmap-fl[robust]'`"
    return {name: f"{name} {hint}" for name, c in CORRUPTIONS.items() if c.torchio}


def corrupt(batch: Batch, name: str, *, severity: int, seed: int, first: int = 0) -> Tensor:
    """(B, M, D, H, W): the batch's volumes with a corruption of CORRUPTIONS, all modalities of a study alike.

    The artefact depends on seed, name, severity and the study's number (the batch's first study is `first`), not on how
    studies are batched. Absent slots stay as they are. Raises KeyError, and ValueError for a severity not in 1, 2, 3.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} is not one of {', '.join(map(str, SEVERITIES))}")
    how = CORRUPTIONS[name]
    out = batch.volumes.clone()
    for i, there in enumerate(batch.present.cpu()):
        if there.any():
            rng = np.random.default_rng([seed, first + i, severity, *name.encode()])
            shown = batch.volumes[i, there].float().cpu()
            low = shown.amin((1, 2, 3), keepdim=True)
            span = (shown.amax((1, 2, 3), keepdim=True) - low).clamp(min=1e-6)
            clean = (shown - low) / span
            changed = how.apply(clean.clone(), how.levels[severity - 1], rng)
            changed = changed.as_subclass(Tensor).float().abs()  # a magnitude image has no sign
            out[i, there] = _normalised(changed, clean, low, span).to(out)
    return out


def robustness(
    model: MedMAP, batches: Callable[[], Iterable[Batch]], *, known: Collection[str] | None = None, seed: int
) -> dict[str, Any]:
    """Scores of one organ's studies, clean and under every corruption and severity; each encodes the studies anew.

    clean: auroc, balanced_accuracy, ece. rows: these and calibration_shift per name and severity. mean: AUROC over the
    rows. worst: the row of the lowest AUROC. skipped: what cannot be made here, and why. None where undefined.
    """
    clean, gap = _told(model, encode_all(model, batches(), known=known))
    skipped = unavailable()
    rows = []
    for name in [n for n in CORRUPTIONS if n not in skipped]:
        for severity in SEVERITIES:

            def change(batch: Batch, at: int, name: str = name, severity: int = severity) -> Tensor:
                return corrupt(batch, name, severity=severity, seed=seed, first=at)

            found, wider = _told(model, encode_all(model, batches(), known=known, change=change))
            shift = None if gap is None or wider is None else wider - gap
            rows.append({"name": name, "severity": severity, **found, "calibration_shift": shift})
    ranked = sorted((r for r in rows if r["auroc"] is not None), key=lambda r: float(str(r["auroc"])))
    result: dict[str, Any] = {"clean": clean, "rows": rows, "mean": None, "worst": ranked[0] if ranked else None}
    if ranked:
        result["mean"] = float(np.mean([r["auroc"] for r in ranked]))
    return result | ({"skipped": skipped} if skipped else {})


def overconfidence(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Mean confidence minus accuracy over patients whose label is known; None when there is none.

    Its change under a corruption is our reading of MedQ-Deg's calibration shift (arXiv 2603.07769), whose formula is not
    published. Single-label organs.
    """
    known = labels >= 0
    if not known.any():
        return None
    p = probabilities[known]
    return float(p.max(1).mean() - (p.argmax(1) == labels[known]).mean())


def _told(model: MedMAP, encodings: Encodings) -> tuple[dict[str, float | None], float | None]:
    """auroc, balanced_accuracy and ece of a model on encoded studies, and its overconfidence."""
    every = np.ones((1, encodings.present.shape[1]), bool)
    p = subset_probabilities(model, encodings, every)[0]
    multi_label = model.vocabulary.organs[encodings.organ].multi_label
    found = scores(encodings.label, p, multi_label=multi_label, metrics=METRICS)
    return {m: found[m] for m in METRICS}, None if multi_label else overconfidence(encodings.label, p)


def _normalised(changed: Tensor, clean: Tensor, low: Tensor, span: Tensor) -> Tensor:
    """Corrupted magnitudes as intensities of the clean volumes' scale; all are (C, D, H, W), both magnitudes in [0, 1].

    A hospital's normalisation takes a change of gain away: the body's mean is made the clean one's. It is not given the clean
    deviation, too: where an artefact flattens the body, that would raise its contrast again.
    """
    for c, (after, before) in enumerate(zip(changed, clean, strict=True)):
        body = _foreground(before)
        changed[c] = after * (before[body].mean() / after[body].mean().clamp(min=1e-6))
    return (changed * span + low).clamp(*CLIP_Z)


def _foreground(magnitude: Tensor) -> Tensor:
    bright = magnitude.flatten().kthvalue(round(0.98 * (magnitude.numel() - 1)) + 1).values
    return magnitude >= _FOREGROUND * bright


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
