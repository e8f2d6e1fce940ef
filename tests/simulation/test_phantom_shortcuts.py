"""The shortcut probe: where a scan was taken, on what, and what lies around a lesion must not tell the label.

A cross-validated logistic regression on those features has to stay near chance, and to find the label when it is given
the lesion itself or a phantom that leaks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from configs.schema import PhantomConfig
from simulation.phantom import lesions
from simulation.phantom.kinds import KINDS, balanced
from simulation.phantom.lesions import RECIPES
from simulation.phantom.plan import cases_of, single_case
from simulation.phantom.scanners import MAKES
from simulation.phantom.study import Study, make_study
from simulation.sites import OrganShare, SiteSpec

pytest.importorskip("sklearn")

# Area under the ROC curve, one against the rest where there are seven classes. With 360 patients its standard error at
# chance is 0.03: NEAR_CHANCE lies three of them away.
NEAR_CHANCE, FOUND = 0.59, 0.85
COUNT = {"brain": 384, "liver": 336}
SIZE = 16
CONFIG = PhantomConfig(size=SIZE)


@dataclass
class Patients:
    """Features, each (n, k), of n patients with balanced labels and scanners. around: beside any lesion, matched."""

    label: np.ndarray
    view: np.ndarray
    scanner: np.ndarray
    gain: np.ndarray
    foreground: np.ndarray
    around: np.ndarray
    lesion: np.ndarray


def statistics(volume: np.ndarray, where: np.ndarray) -> list[float]:
    values = volume[where]
    if len(values) < 20:
        return [0.0] * 5
    return [
        float(v)
        for v in (np.log(values.mean() + 1e-3), np.log(values.std() + 1e-3), *np.quantile(values, [0.1, 0.5, 0.9]))
    ]


def simulate(organ: str, count: int) -> Patients:
    real = [k for k in KINDS[organ] if (organ, k) in RECIPES]
    kinds, columns = balanced(organ, count), {f: [] for f in Patients.__annotations__}  # type: dict[str, list]
    for i, kind in enumerate(kinds):
        machine = kinds[:i].count(kind) % len(MAKES)  # every kind equally often on every scanner
        decoy = real[(i // 2) % len(real)]
        case = single_case(organ, kind, f"p{i}", scanner=MAKES[machine], decoy=decoy)
        s = make_study(case, CONFIG, seed=5)
        # A normal patient's twin with a lesion says which voxels to leave out: the same for both labels.
        twin = s if (s.mask > 0).any() else make_study(replace(case, kind=decoy, modalities=("T1",)), CONFIG, seed=5)
        lesion = binary_dilation(twin.mask > 0, iterations=2)
        images = list(s.volumes.values())
        body = images[0] > 0.1
        x, y, z = s.grid.centre_mm
        columns["label"].append(KINDS[organ][kind])
        columns["view"].append([x, y, z, abs(x), x * x, y * y, z * z])
        columns["scanner"].append(np.eye(len(MAKES))[machine])
        columns["gain"].append([np.log(g) for g in s.gains.values()])
        columns["foreground"].append([body.mean(), body[:, :, : SIZE // 2].mean(), body[: SIZE // 2].mean()])
        columns["around"].append([x for v in images for x in statistics(v, body & ~lesion)])
        columns["lesion"].append([np.log(v[twin.mask == 1].mean() / v[body & ~lesion].mean() + 1e-3) for v in images])
    return Patients(**{k: np.array(v) for k, v in columns.items()})


def probe(features: np.ndarray, label: np.ndarray) -> float:
    """Cross-validated AUROC of a logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(model, features, label, cv=folds, method="predict_proba")
    if scores.shape[1] == 2:
        return float(roc_auc_score(label == np.unique(label)[1], scores[:, 1]))
    return float(roc_auc_score(label, scores, multi_class="ovr"))


@pytest.fixture(scope="module")
def brains() -> Patients:
    return simulate("brain", COUNT["brain"])


@pytest.fixture(scope="module")
def livers() -> Patients:
    return simulate("liver", COUNT["liver"])


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lesions without mass effect."""

    def apply() -> None:
        for key, recipe in list(lesions.RECIPES.items()):
            monkeypatch.setitem(lesions.RECIPES, key, replace(recipe, push=0.0))

    return apply


@pytest.mark.parametrize("feature", ["view", "scanner", "gain", "foreground"])
@pytest.mark.parametrize("organ", ["brain", "liver"])
def test_position_scanner_and_outline_do_not_tell_the_label(
    organ: str, feature: str, brains: Patients, livers: Patients
) -> None:
    patients = brains if organ == "brain" else livers
    assert probe(getattr(patients, feature), patients.label) < NEAR_CHANCE


def test_together_they_do_not_either(brains: Patients, livers: Patients) -> None:
    for p in (brains, livers):
        everything = np.hstack([p.view, p.scanner, p.gain, p.foreground])
        assert probe(everything, p.label) < NEAR_CHANCE


def test_the_tissue_around_tells_the_label_by_mass_effect_alone(
    brains: Patients, livers: Patients, still: Callable[[], None]
) -> None:
    """Displaced tissue is a sign of a mass, so a little more than chance is right; without it nothing may be left."""
    assert probe(brains.around, brains.label) < 0.68
    assert probe(livers.around, livers.label) < NEAR_CHANCE
    still()
    flat = simulate("brain", COUNT["brain"])
    assert probe(flat.around, flat.label) < NEAR_CHANCE


def test_the_probe_finds_the_label_in_the_lesion(brains: Patients, livers: Patients) -> None:
    """Positive control."""
    for p in (brains, livers):
        assert probe(p.lesion, p.label) > FOUND


def test_the_probe_finds_a_leak(brains: Patients) -> None:
    """Positive controls: views centred on lesions only, and tumours on another scanner more often."""
    rng = np.random.default_rng(0)
    tumour = brains.label == "tumour"
    leaky = brains.view.copy()
    leaky[~tumour, :3] *= 0.4  # normal brains are viewed nearer to the middle
    leaky[:, 3] = np.abs(leaky[:, 0])
    leaky[:, 4:] = leaky[:, :3] ** 2
    assert probe(leaky, brains.label) > 0.65
    swap = rng.random(len(tumour)) < 0.5
    scanners = brains.scanner.copy()
    scanners[tumour & swap] = np.eye(len(MAKES))[0]
    assert probe(scanners, brains.label) > 0.65


def test_position_tells_nothing_in_a_hospital_with_a_skewed_mix() -> None:
    """Meningiomas sit on the convexity: where they are half of the patients, normal brains must be viewed there too."""
    share = OrganShare(320, 0, 0, 0, ("T1",), {"normal": 0.5, "meningioma": 0.45, "glioblastoma": 0.05})
    cases = list(cases_of(SiteSpec("west", "dune-0.5T", {"brain": share}), seed=2))

    def depth(decoys: bool) -> float:
        views = []
        for case in cases:
            twin = case if decoys else replace(case, decoy="glioblastoma")
            x, y, z = make_study(twin, CONFIG, seed=2).grid.centre_mm
            views.append([x, y, z, np.sqrt(x * x + y * y + z * z), abs(x)])
        return probe(np.array(views), np.array([KINDS["brain"][c.kind] for c in cases]))

    assert depth(decoys=True) < NEAR_CHANCE
    assert depth(decoys=False) > 0.7  # positive control: the probe sees where meningiomas are


def test_a_patient_with_and_without_a_lesion_are_twins(still: Callable[[], None]) -> None:
    """Cause and effect: the same patient with and without a lesion differ where the lesion is, and nowhere else."""
    still()
    config = PhantomConfig(size=24)

    def twins(kind: str, i: int) -> tuple[Study, Study]:
        case = single_case("brain", "normal", f"t{i}", decoy=kind, scanner=MAKES[i % len(MAKES)])
        return make_study(case, config, seed=1), make_study(replace(case, kind=kind), config, seed=1)

    for i, kind in enumerate(k for k in KINDS["brain"] if k != "normal"):
        without, with_lesion = twins(kind, i)
        assert without.grid == with_lesion.grid
        assert without.gains == with_lesion.gains
        assert not without.mask.any()
        near = binary_dilation(with_lesion.mask > 0, iterations=4)
        for modality, volume in without.volumes.items():
            gap = np.abs(volume - with_lesion.volumes[modality])
            assert np.quantile(gap[~near], 0.99) < 0.03
            assert gap[with_lesion.mask == 1].max() > 0.1
