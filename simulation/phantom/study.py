"""One simulated study: a case of the plan in; volumes (S, S, S), lesion mask and report out.

The patient (anatomy, lesions, tissue) is drawn before the scanner and the grid are looked at: two hospitals, two sizes
or two subsets of modalities see the same patient.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import PhantomConfig
from simulation.phantom import abdomen, brain, reports
from simulation.phantom.acquisition import Coil, acquire
from simulation.phantom.anatomy import Deformation
from simulation.phantom.findings import Findings, measure
from simulation.phantom.grid import Array, Grid, Rng, SmoothField
from simulation.phantom.lesions import HALO, RECIPES, SMALLER, SPOT, Lesion
from simulation.phantom.scanners import scanner
from simulation.phantom.tissues import BASE, Body, index

REGION_MM = 96.0  # field of view of a lesion region
_JITTER_MM = 12.0  # a region's centre is this far from the lesion's, at most, along each axis
_ORGANS: dict[str, ModuleType] = {"brain": brain, "liver": abdomen}
MASS, REACTION = 1, 2  # values of the mask


@dataclass(frozen=True)
class Case:
    """One patient of the plan. `decoy`: the kind whose place a patient without a lesion takes."""

    patient_id: str
    site: str
    organ: str
    kind: str
    decoy: str
    split: str
    scanner: str
    modalities: tuple[str, ...]
    reported: bool = True


@dataclass(frozen=True)
class Study:
    """What one study consists of. volumes: modality -> (S, S, S) in units of reference tissue.

    gains: modality -> raw units per unit. mask: 0, 1 mass, 2 reaction around it (oedema).
    """

    grid: Grid
    volumes: dict[str, Array]
    gains: dict[str, float]
    mask: NDArray[np.uint8]
    findings: Findings
    report: str


def random_stream(seed: int, *names: str) -> Rng:
    """A generator of its own for every purpose: independent of order, of workers and of other patients."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest[:8])]))


def make_study(case: Case, config: PhantomConfig, *, seed: int) -> Study:
    """Simulate one study. The same case, config and seed give the same study, bit for bit."""
    organ = _ORGANS[case.organ]
    rng = random_stream(seed, case.patient_id, "anatomy")
    patient: Deformation = organ.draw_patient(rng)
    lesions, anchor = _draw_lesions(case, organ, patient, config, seed)
    spots = _draw_spots(case, organ, patient, config, random_stream(seed, case.patient_id, "spots"))
    grid = _grid(config, organ, anchor, random_stream(seed, case.patient_id, "view"))

    pushes = [push for lesion in lesions if (push := lesion.push)]
    sampled = organ.Sampled(patient, pushes, grid)
    parts = _compartments([*spots, *lesions], sampled, grid)
    mask = _mask(parts, grid)
    rng = random_stream(seed, case.patient_id, "tissue")
    body = Body(case.organ, rng)
    machine = scanner(case.scanner, config.scanner_strength)
    values = body.signals(case.modalities, machine)
    signals = sampled.signals(values[:, : len(BASE[case.organ])])
    _mix(signals, parts, values, case.organ)
    signals *= _texture(case.organ, grid, rng)

    coil = Coil(random_stream(seed, case.patient_id, "coil"), machine.bias)
    # A voxel averages over its width: blur away what a grid coarser than the template cannot hold.
    coarse_mm = 0.4 * float(np.sqrt(max(0.0, grid.spacing_mm**2 - organ.SPACING_MM**2)))
    volumes, gains = {}, {}
    for modality, signal in zip(case.modalities, signals, strict=True):
        rng = random_stream(seed, case.patient_id, modality)
        shift = rng.normal(0, (0.7, 1.2, 2.2)) if modality in ("C+A", "C+V", "C+Delay") else np.zeros(3)
        echo_planar = modality == "DWI"
        volume = acquire(
            signal,
            grid,
            machine,
            coil,
            rng,
            blur_mm=float(np.hypot(coarse_mm, 2.5 if echo_planar else 0.0)),
            noise=1.6 if echo_planar else 1.0,
            shift_mm=(float(shift[0]), float(shift[1]), float(shift[2])),
        )
        if sampled.inside is not None:
            volume *= sampled.inside
        volumes[modality] = volume
        gains[modality] = float(machine.gain * np.exp(rng.normal(0, 0.35)))

    findings = measure(volumes, mask, sampled.healthy, grid, lambda mm: organ.place_name(patient.template_point(mm)))
    report = ""
    if case.reported:
        seen = [s for s in spots if _visible(s, sampled, grid)]
        report = reports.write(
            findings,
            organ=case.organ,
            kind=case.kind,
            spots=len(seen),
            push_mm=max((p.peak_mm for p in pushes), default=0.0),
            withhold_diagnosis=config.withhold_diagnosis,
            rng=random_stream(seed, case.patient_id, "report"),
        )
    return Study(grid, volumes, gains, mask, findings, report)


def _draw_lesions(
    case: Case, organ: ModuleType, patient: Deformation, config: PhantomConfig, seed: int
) -> tuple[list[Lesion], NDArray[np.float64]]:
    """The patient's lesions, largest first, and the place that a region is about.

    A patient without a lesion draws the same numbers as one of the decoy kind would: the two are twins, alike in
    everything but the lesion.
    """
    kind = case.kind if (case.organ, case.kind) in RECIPES else case.decoy
    recipe, rng = RECIPES[case.organ, kind], random_stream(seed, case.patient_id, "place")
    count = int(rng.integers(2, 4)) if rng.random() < recipe.several else 1
    scale = config.lesion_scale * (SMALLER if count > 1 else 1.0)
    radii = sorted((scale * rng.uniform(*recipe.radius_mm) for _ in range(count)), reverse=True)
    anchor = organ.draw_place(kind, radii[0], patient, rng)
    if kind != case.kind:
        return [], anchor
    rng = random_stream(seed, case.patient_id, "lesions")
    lesions = [Lesion.draw(rng, case.organ, kind, anchor, radii[0])]
    for radius in radii[1:]:
        for _ in range(20):  # beside the others, within a region's reach
            place = organ.draw_place(kind, radius, patient, rng)
            gaps = [np.sqrt(((place - o.centre_mm) ** 2).sum()) - 1.3 * (radius + o.radius_mm) for o in lesions]
            if min(gaps) > 0 and np.abs(place - anchor).max() < 34:
                lesions.append(Lesion.draw(rng, case.organ, kind, place, radius))
                break
    return lesions, anchor


def _draw_spots(case: Case, organ: ModuleType, patient: Deformation, config: PhantomConfig, rng: Rng) -> list[Lesion]:
    """Harmless bright spots of the white matter, in every kind of brain patient alike."""
    if case.organ != "brain":
        return []
    low, high = RECIPES["brain", SPOT].radius_mm
    return [
        Lesion.draw(rng, "brain", SPOT, organ.draw_place(SPOT, 0.0, patient, rng), rng.uniform(low, high))
        for _ in range(rng.poisson(config.confounders))
    ]


def _grid(config: PhantomConfig, organ: ModuleType, anchor: NDArray[np.float64], rng: Rng) -> Grid:
    """Full field of view: the whole template's extent; regions: 96 mm around the lesion, not quite centred."""
    if config.product == "full":
        return Grid.cube((0, 0, 0), config.size, organ.FULL_SPACING_MM * 96 / config.size)
    return Grid.cube(anchor + rng.uniform(-_JITTER_MM, _JITTER_MM, 3), config.size, REGION_MM / config.size)


def _compartments(lesions: list[Lesion], sampled: Any, grid: Grid) -> dict[str, Array]:
    """Tissue -> share of every voxel that it takes, (X, Y, Z)."""
    parts: dict[str, Array] = {}
    for lesion in lesions:
        window = grid.window(lesion.centre_mm, lesion.reach_mm)
        if window is None:
            continue
        where, axes = window
        for name, share in lesion.compartments(axes, grid.spacing_mm).items():
            whole = parts.setdefault(name, np.zeros(grid.shape, np.float32))
            whole[where] = np.maximum(whole[where], share * sampled.room(name)[where])
    return parts


def _mask(parts: dict[str, Array], grid: Grid) -> NDArray[np.uint8]:
    """Voxels that are mostly mass (1), and others with visible reaction (2)."""
    mask = np.zeros(grid.shape, np.uint8)
    mass = [share for name, share in parts.items() if name not in (*HALO, SPOT)]
    if not mass:
        return mask
    total = np.sum(mass, axis=0)
    halo = np.sum([share for name, share in parts.items() if name in HALO] or [np.zeros_like(total)], axis=0)
    mask[halo > 0.2] = REACTION  # oedema shows long before it fills a voxel
    # The largest share counts where a lesion is smaller than a voxel.
    mask[(total > min(0.5, 0.9 * float(total.max()))) & (total >= halo)] = MASS
    return mask


def _mix(signals: Array, parts: dict[str, Array], values: Array, organ: str) -> None:
    """Put the compartments into the healthy signal, in place."""
    if not parts:
        return
    position = index(organ)
    total = np.sum(list(parts.values()), axis=0)
    where = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(total > 1e-3))
    if not where[0].stop:
        return
    crowded = np.maximum(total[where], 1)
    healthy = 1 - np.minimum(total[where], 1)
    shares = {name: share[where] / crowded for name, share in parts.items()}
    for signal, row in zip(signals, values, strict=True):
        block = signal[where]
        block *= healthy
        for name, share in shares.items():
            block += share * row[position[name]]


def _texture(organ: str, grid: Grid, rng: Rng) -> Array:
    """Fine structure that three classes or one label cannot show: a factor around 1, the same in every modality."""
    half = (grid.shape[0] / 2 + 1) * grid.spacing_mm
    sd = 0.035 if organ == "brain" else 0.07
    field = SmoothField.draw(rng, sd=sd, spacing_mm=5.0, half_mm=half, centre_mm=grid.centre_mm)
    return np.clip(1 + field.on(grid.axes)[0], 0.5, 1.5)


def _visible(spot: Lesion, sampled: Any, grid: Grid) -> bool:
    """Whether a spot lies on the grid and takes most of some voxel."""
    window = grid.window(spot.centre_mm, spot.reach_mm)
    if window is None:
        return False
    where, axes = window
    share = spot.compartments(axes, grid.spacing_mm)[SPOT] * sampled.room(SPOT)[where]
    return bool(share.max() > 0.5)
