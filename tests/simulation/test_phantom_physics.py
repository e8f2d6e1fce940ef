"""The signal equations and tables: limits known in closed form, and the textbook pattern of every class."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from simulation.phantom import physics
from simulation.phantom.physics import Tissues
from simulation.phantom.scanners import MAKES, REFERENCE, SCANNERS, scanner
from simulation.phantom.tissues import BRAIN, LIVER, Body, index


def tissue(t1: float, t2: float, *, density: float = 1.0, fat: float = 0.0, adc: float = 1.0) -> Tissues:
    return Tissues(*(np.array([v]) for v in (t1, t2, density, fat, adc)))


def test_signal_equations_meet_their_limits() -> None:
    long = tissue(1000, 100)
    assert physics.spin_echo(long, tr_ms=1e6, te_ms=0)[0] == pytest.approx(1)
    assert physics.spin_echo(long, tr_ms=1e6, te_ms=100)[0] == pytest.approx(np.exp(-1))
    ti = physics.nulling_time(4200, tr_ms=9000)
    fluid = physics.inversion_spin_echo(tissue(4200, 1e9), tr_ms=9000, te_ms=0, ti_ms=ti)
    assert fluid[0] == pytest.approx(0, abs=1e-9)
    assert physics.diffusion(tissue(800, 1e9, adc=1), b_value=1000, te_ms=0)[0] == pytest.approx(np.exp(-1))
    flips = np.arange(2, 60)
    gre = [
        physics.spoiled_gradient_echo(tissue(800, 1e9), tr_ms=5, te_ms=0, flip_deg=f, fat_suppression=1)[0]
        for f in flips
    ]
    ernst = np.rad2deg(np.arccos(np.exp(-5 / 800)))
    assert abs(flips[int(np.argmax(gre))] - ernst) <= 1


def test_fat_and_contrast_agent_act_as_they_should() -> None:
    # Water and fat cancel where their signals are equal, and add in phase.
    ratio = physics._spoiled(800.0, 120, 60) / physics._spoiled(physics.FAT_T1_MS, 120, 60)
    half = tissue(800, 1e9, fat=float(ratio / (1 + ratio)))
    assert physics.dixon(half, opposed=True)[0] == pytest.approx(0, abs=1e-6)
    assert physics.dixon(half, opposed=False)[0] > 0.1
    plain = tissue(1400, 90)
    after = plain.with_contrast(np.array([0.5]))
    assert after.t1_ms[0] == pytest.approx(1 / (1 / 1400 + 0.5 * physics.RELAXIVITY / 1000))
    assert physics.mprage(after, tr_ms=2000, te_ms=3)[0] > 1.5 * physics.mprage(plain, tr_ms=2000, te_ms=3)[0]


def ratios(organ: str, modality: str, lesion: str, reference: str, machine: str) -> float:
    """Mean over patients of a tissue's signal over another's."""
    names = index(organ)
    values = [Body(organ, np.random.default_rng(i)).signals([modality], scanner(machine, 1.0))[0] for i in range(12)]
    return float(np.mean([v[names[lesion]] / v[names[reference]] for v in values]))


@pytest.mark.parametrize("machine", MAKES)
def test_every_class_enhances_as_in_the_textbook_on_every_scanner(machine: str) -> None:
    def liver(modality: str, lesion: str) -> float:
        return ratios("liver", modality, lesion, "liver", machine)

    assert liver("C+A", "hcc") > 1.1 > 0.97 > liver("C+Delay", "hcc")  # washout
    assert liver("C+Delay", "hcc_capsule") > liver("C+Delay", "hcc") * 1.1
    assert liver("C+A", "hemangioma_nodule") > 1.2 > 0.9 > liver("C+A", "hemangioma")
    assert liver("C+Delay", "hemangioma") > 1.0  # filled in
    assert liver("T2WI", "hemangioma") > 2
    assert liver("C+A", "fnh") > 1.1
    assert liver("C+V", "fnh") > 0.95  # no washout
    assert liver("C+Delay", "fnh_scar") > liver("C+A", "fnh_scar") * 1.3
    assert max(liver(m, "cyst") for m in ("C-pre", "C+A", "C+V", "C+Delay")) < 0.75
    assert liver("C+A", "metastasis_rim") > 1.05 > 0.95 > liver("C+V", "metastasis_core")
    assert liver("C+Delay", "icc_core") > 1.1 > 0.95 > liver("C+A", "icc_core")
    assert liver("C+V", "abscess_wall") > 1.0 > 0.7 > liver("C+V", "pus")
    assert liver("DWI", "pus") > 2 * liver("DWI", "cyst")
    for modality in ("T1ce",):
        assert ratios("brain", modality, "tumour_rim", "wm", machine) > 1.2
        assert ratios("brain", modality, "meningioma", "wm", machine) > 1.2
        assert ratios("brain", modality, "glioma", "wm", machine) < 1.0
    assert ratios("brain", "FLAIR", "brain_oedema", "wm", machine) > 1.2
    assert ratios("brain", "FLAIR", "csf", "wm", machine) < 0.3
    assert ratios("brain", "T2", "csf", "wm", machine) > 2


def test_scanner_strength_runs_from_alike_to_their_own() -> None:
    same = {replace(scanner(name, 0.0), name="") for name in (*MAKES, "aster-3T/2")}
    assert same == {replace(REFERENCE, name="")}
    for name in SCANNERS:
        own = scanner(name, 1.0)
        for f in fields(own):
            assert getattr(own, f.name) == pytest.approx(getattr(SCANNERS[name], f.name)) or f.name == "name"
    half, full = scanner("dune-0.5T", 0.4), scanner("dune-0.5T", 1.0)
    assert REFERENCE.noise < half.noise < full.noise
    assert scanner("dune-0.5T/2", 0.4) == scanner("dune-0.5T/2", 0.4) != scanner("dune-0.5T/3", 0.4)
    with pytest.raises(KeyError):
        scanner("nobody-7T", 0.4)


def test_tables_are_complete() -> None:
    from simulation.phantom.lesions import HALO, SPOT
    from simulation.phantom.tissues import LIVER_BASE

    assert tuple(LIVER)[:15] == LIVER_BASE
    assert {"brain_oedema", SPOT} <= set(BRAIN)
    assert "liver_oedema" in HALO
