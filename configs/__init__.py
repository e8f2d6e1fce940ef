"""Hydra YAML groups, one file per choice, their typed schema (schema.py), and `load`, which composes and checks them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from configs.schema import Config
from configs.setting import ConfigError, check, default_of
from medmap_model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent
GROUPS = (
    "data",
    "sites",
    "model",
    "text",
    "stage",
    "strategy",
    "privacy",
    "engine",
    "evaluation",
    "experiment",
    "variant",
)


def load(overrides: Sequence[str] = ()) -> Config:
    """Compose the YAML groups with Hydra-style overrides (`sites=iid`, `stage.pretrain.lr=1e-3`).

    A `variant` is applied last, over every other setting: an experiment with a component left out stays the same
    experiment, whatever else is overridden.

    Raises ConfigError, one line, for an unknown key or choice, a wrong type, or a value out of range.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        _check_override(override)
    ConfigStore.instance().store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(ROOT), version_base="1.3"):
            composed = compose("config", overrides=[_opened(o) for o in overrides if not o.startswith("variant=")])
        for override in overrides:
            if override.startswith("variant="):
                composed.variant = override.partition("=")[2]
        config: Config = OmegaConf.to_object(_varied(composed))  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from None
    check(config)
    return config


def to_json(config: Config) -> str:
    """The whole config as one JSON text: what travels in a Flower run config."""
    return json.dumps(asdict(config), sort_keys=True)


def from_json(text: str) -> Config:
    """The inverse of `to_json`, type-checked."""
    return from_dict(json.loads(text))


def from_dict(values: Mapping[str, Any]) -> Config:
    """A typed, checked Config from plain values. Raises ConfigError in one line."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config: Config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), dict(values)))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from None
    check(config)
    return config


def load_vocabulary(name_or_path: str) -> Vocabulary:
    """The vocabulary of `configs/vocabulary/NAME.yaml`, or of a YAML file at a path. Raises ConfigError."""
    import yaml

    path = ROOT / "vocabulary" / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        names = sorted(p.stem for p in (ROOT / "vocabulary").glob("*.yaml"))
        raise ConfigError(f"data.vocabulary={name_or_path}: neither a file nor one of {', '.join(names)}")
    try:
        return Vocabulary.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"data.vocabulary={name_or_path} is not a vocabulary: {_one_line(error)}") from None


def keys(config: Any = Config, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every setting as (dotted key, default, help)."""
    for f in fields(config):
        default = default_of(f)
        if is_dataclass(default):
            yield from keys(type(default), f"{path}{f.name}.")
        else:
            yield f"{path}{f.name}", default, f.metadata.get("help", "")


def _varied(composed: DictConfig) -> DictConfig:
    """The settings with those of their variant on top; `${without:key}` in a variant is the value it replaces."""
    from omegaconf import OmegaConf

    _check_override(f"variant={composed.variant}")
    # Values, not nodes: a variant may replace a setting by something that depends on what it was.
    OmegaConf.register_new_resolver("without", lambda key: OmegaConf.select(composed, key), replace=True)
    OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
    change = OmegaConf.load(ROOT / "variant" / f"{composed.variant}.yaml")
    OmegaConf.resolve(change)
    return cast("DictConfig", OmegaConf.merge(composed, change))


def choices(group: str) -> list[str]:
    """The named settings of a group."""
    return sorted(p.stem for p in (ROOT / group).glob("*.yaml"))


def _check_override(override: str) -> None:
    """A clearer word than Hydra's on keys and choices that do not exist."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}' is not key=value: write for example sites=iid or seed=1")
    if key in GROUPS:
        if value not in choices(key):
            raise ConfigError(f"{key}={value} is not a choice: take one of {', '.join(choices(key))}")
        return
    known = [k for k, _, _ in keys()]
    if key in known or key.startswith(_open_keys()):
        return
    if any(k.startswith(f"{key}.") for k in known):
        inside = ", ".join(k for k in known if k.startswith(f"{key}."))
        raise ConfigError(f"{key}={value}: {key} is a group of settings, set one of: {inside}")
    near = difflib.get_close_matches(key, [*known, *GROUPS], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`medmap-sim config` lists them all."
    raise ConfigError(f"{key}={value}: there is no setting '{key}'; {hint}")


def _open_keys() -> tuple[str, ...]:
    """Settings that hold names of the user's own (`strategy.site_timeout_s.north`), each with its dot."""
    return tuple(f"{k}." for k, default, _ in keys() if isinstance(default, dict))


def _opened(override: str) -> str:
    """An override as Hydra wants it: of such a setting as an addition."""
    key = override.partition("=")[0]
    return f"++{override}" if f"{key}.".startswith(_open_keys()) else override


def _one_line(error: BaseException) -> str:
    """The telling part of a Hydra or OmegaConf message: `key: what`."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    text = lines[0] if lines else type(cause).__name__
    return f"{key}: {text}" if key else text
