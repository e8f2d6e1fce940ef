"""A bound on the cache's disk: it holds, what was used longest ago goes first, and nobody notices but by the time it takes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.cache import CubeCache
from client.manifest import Study
from client.problems import DataError
from client.records import SiteRecords
from client.room import Room
from configs import load_vocabulary
from configs.schema import VolumesConfig
from tests.client.test_cache import CONFIG, make_study, write_volume
from tests.conftest import small_config


def size_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in (folder / "cubes").rglob("*") if p.is_file())


def bounded(tmp_path: Path, *, studies: int, of: int) -> tuple[VolumesConfig, list[Study], int]:
    """A bound that `studies` of `of` studies fill, the studies, and the bound in bytes."""
    made = [make_study(tmp_path / "scans", i) for i in range(of)]
    one = CubeCache(tmp_path / "measure", CONFIG).entry(made[0]).path.stat().st_size
    return replace(CONFIG, cache_gb=(studies + 0.5) * one / 1e9), made, int((studies + 0.5) * one)


def test_a_bounded_cache_stays_within_its_bound_and_gives_the_same_cubes(tmp_path):
    config, studies, limit = bounded(tmp_path, studies=10, of=30)
    free = CubeCache(tmp_path / "free", CONFIG)
    expected = [entry.read() for entry in free.entries(studies)]
    cache = CubeCache(tmp_path / "cache", config)
    entries = cache.entries(studies)
    assert size_of(tmp_path / "cache") <= limit < size_of(tmp_path / "free")
    for _ in range(2):
        for study, entry, cubes in zip(studies, entries, expected, strict=True):
            assert np.array_equal(cache.read(entry, study), cubes)
            assert size_of(tmp_path / "cache") <= limit
    with pytest.raises(DataError):  # the control: without the cache's help an evicted entry is gone
        [entry.read() for entry in entries]


def test_what_was_used_longest_ago_goes_first(tmp_path):
    config, studies, _ = bounded(tmp_path, studies=4, of=8)
    cache = CubeCache(tmp_path / "cache", config)
    first = cache.entry(studies[0])
    for i, study in enumerate(studies[1:]):
        os.utime(cache.entry(study).path, ns=(0, i))  # used long ago, one after the other
        cache.read(first, studies[0])
    kept = {cache.entry(study).path for study in [studies[0], studies[7]]}
    assert cache.built == 8 and all(path.exists() for path in kept)  # nothing was made twice
    cache.entry(studies[1])
    assert cache.built == 9


def test_a_study_that_changed_under_a_bounded_cache_is_not_mixed_up(tmp_path):
    config, studies, _ = bounded(tmp_path, studies=1, of=2)
    cache = CubeCache(tmp_path / "cache", config)
    entry = cache.entry(studies[0])
    cache.entry(studies[1])
    entry.path.unlink(missing_ok=True)
    write_volume(studies[0].images["T1"], seed=99)
    with pytest.raises(DataError, match="cannot be made again"):
        cache.read(entry, studies[0])


def test_a_folder_that_was_full_before_is_brought_within_the_bound(tmp_path):
    config, studies, limit = bounded(tmp_path, studies=5, of=20)
    CubeCache(tmp_path / "cache", CONFIG).entries(studies[:19])
    assert size_of(tmp_path / "cache") > limit
    CubeCache(tmp_path / "cache", config).entry(studies[19])
    assert size_of(tmp_path / "cache") <= limit


def test_a_folder_that_is_full_is_brought_within_a_new_bound_although_nothing_is_prepared(tmp_path):
    config, studies, limit = bounded(tmp_path, studies=5, of=20)
    CubeCache(tmp_path / "cache", CONFIG).entries(studies)
    assert size_of(tmp_path / "cache") > limit
    CubeCache(tmp_path / "cache", config)
    assert 0 < size_of(tmp_path / "cache") <= limit


def test_a_study_that_others_delete_as_soon_as_it_is_made_is_handed_out_all_the_same(tmp_path, monkeypatch):
    """What several processes do to one another where the bound is a few studies."""
    config, studies, _ = bounded(tmp_path, studies=1, of=3)
    expected = [entry.read() for entry in CubeCache(tmp_path / "free", CONFIG).entries(studies)]
    cache = CubeCache(tmp_path / "cache", config)
    monkeypatch.setattr(Room, "took", lambda self, path: path.unlink())
    entries = cache.entries(studies)
    assert size_of(tmp_path / "cache") == 0
    for study, entry, cubes in zip(studies, entries, expected, strict=True):
        assert np.array_equal(cache.read(entry, study), cubes)


def test_a_site_trains_on_the_same_batches_whatever_the_bound(tmp_path, hospitals):
    volumes = replace(small_config().data.volumes, memory_mb=0)

    def batches(folder: str, cache_gb: float) -> list[torch.Tensor]:
        records = SiteRecords(
            [hospitals["east"]], vocabulary=load_vocabulary("medmom"), volumes=replace(volumes, cache_gb=cache_gb),
            embed=lambda texts: torch.zeros(len(texts), 4), cache_dir=tmp_path / folder,
        )  # fmt: skip
        return [b.volumes for b in records.train_batches(batch_size=4, seed=0, augment=None)]

    free = batches("free", 0.0)
    limit = size_of(tmp_path / "free") // 5
    tight = batches("tight", limit / 1e9)
    assert len(free) == len(tight) > 1 and all(torch.equal(a, b) for a, b in zip(free, tight, strict=True))
    assert size_of(tmp_path / "tight") <= limit
