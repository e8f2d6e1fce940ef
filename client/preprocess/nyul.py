"""Nyul's standard scale of a modality: landmarks of training volumes in, cubes with aligned histograms out.

Every volume gives 11 landmarks, percentiles of its foreground; a scale is their mean over training volumes. A cube's values
are mapped by straight lines between its volume's landmarks and the scale's. Nyul, Udupa and Zhang, IEEE TMI 19(2), 2000.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.problems import DataError
from client.volumes import CLIP_Z
from configs.schema import Config, VolumesConfig
from configs.setting import ConfigError
from medmap_model.accounting import planned_releases
from medmap_model.landmarks import PERCENTILES, positions, scale

Landmarks = tuple[float, ...]


def scale_of(volumes: Iterable[Landmarks]) -> Landmarks:
    """The standard scale of training volumes: their landmarks, each volume's put to 0 and 1 at its ends, on average."""
    return scale(positions(list(volumes)).mean(0))


def standardised(cube: NDArray[Any], own: Landmarks, scale: Landmarks) -> NDArray[np.float32]:
    """Values on the standard scale, within CLIP_Z; beyond the outermost landmarks the outermost lines go on.

    own: landmarks of the cube's volume.
    """
    slopes = np.diff(scale) / np.diff(own)
    values = np.asarray(cube, np.float32)
    done = np.interp(values, own, scale)
    done += np.minimum(values - own[0], 0) * slopes[0] + np.maximum(values - own[-1], 0) * slopes[-1]
    return done.clip(*CLIP_Z).astype(np.float32)


def scales(
    config: VolumesConfig, needed: Iterable[str], training: Mapping[str, Sequence[Landmarks]]
) -> dict[str, Landmarks]:
    """Modality -> scale: the settings' public ones, or learnt of this site's training volumes alone.

    training: modality -> landmarks of each training volume. Raises DataError for a modality that has neither.
    """
    if config.landmarks:
        found = {modality: tuple(row) for modality, row in config.landmarks.items()}
    else:
        found = {modality: scale_of(rows) for modality, rows in training.items() if rows}
    for modality in needed:
        if modality not in found:
            raise DataError(
                f"data.volumes.standardise=nyul: there are no landmarks of {modality}, and no training volume to learn them "
                "from: give them with data.volumes.landmarks (medmap-client landmarks makes them)",
                [],
            )
    return found


def learnt(volumes: VolumesConfig) -> bool:
    """Whether each site learns its own scales: every record then depends on all training patients, and no noise is enough."""
    return volumes.standardise == "nyul" and not volumes.landmarks


def check(config: Config) -> None:
    """Raise ConfigError for landmarks that are none, or that privacy forbids to learn: of updates, or of a release with noise."""
    volumes = config.data.volumes
    check_landmarks(volumes.landmarks, "data.volumes.landmarks")
    private = config.privacy.kind == "patient_dp"
    if learnt(volumes) and (private or planned_releases(config.privacy)):
        raise ConfigError(
            f"{'privacy=patient_dp' if private else 'a release with noise'} and data.volumes.standardise=nyul: landmarks that a "
            "site learns are statistics of its patients in every record, which breaks the guarantee; give public ones with "
            "data.volumes.landmarks, or take zscore"
        )


def check_landmarks(landmarks: Mapping[str, Sequence[float]], where: str) -> None:
    """Raise ConfigError unless each modality has 11 increasing numbers."""
    for modality, row in landmarks.items():
        try:
            good = len(row) == len(PERCENTILES) and all(map(math.isfinite, row))
            good = good and all(b > a for a, b in itertools.pairwise(row))
        except TypeError:
            good = False
        if not good:
            raise ConfigError(
                f"{where}, {modality}: give {len(PERCENTILES)} increasing numbers, as medmap-client landmarks does"
            )


def read_landmarks(path: Path) -> dict[str, list[float]]:
    """What `medmap-client landmarks` wrote. Raises ConfigError."""
    import yaml

    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give a file of medmap-client landmarks") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        said = None
    if not isinstance(said, dict) or not said:
        raise ConfigError(f"{path} holds no landmarks: give a file of medmap-client landmarks")
    check_landmarks(said, str(path))
    return {str(modality): [float(v) for v in row] for modality, row in said.items()}
