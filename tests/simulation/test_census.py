"""Who has what: the census of a plan, and `medmap-sim partition`, which writes it and trains nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from configs import load_vocabulary
from configs.schema import SitesConfig
from medmap_model.vocabulary import Vocabulary
from simulation.census import of_hospitals, of_plan
from simulation.cli import main
from simulation.sites import plan_sites
from tests.simulation.test_clusters import scanned


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary("medmom")


def test_the_census_of_a_plan_is_that_of_the_patients_it_simulates(vocabulary: Vocabulary, tmp_path: Path) -> None:
    from client.site import SiteEntry
    from configs.schema import PhantomConfig
    from simulation.conditions import Hospital
    from simulation.phantom import generate

    config = SitesConfig(
        kind="shards", count=2, organs=["brain"], classes_per_site=1, patients=4, validation_patients=1, test_patients=2,
        common_patients=2, external_patients=2, missing_rate=0.5, unreported_rate=0.5,
    )  # fmt: skip
    specs = plan_sites(config, vocabulary, seed=3)
    folder = generate(specs, PhantomConfig(size=16, workers=1), vocabulary, tmp_path / "data", seed=3)
    hospitals = [Hospital(SiteEntry(s.name, (folder / s.name / "manifest.csv",)), s.external) for s in specs]
    told = of_plan(specs, vocabulary, seed=3)
    assert told == of_hospitals(hospitals, vocabulary)
    assert of_plan(specs, vocabulary, seed=4) != told
    one, two, external = told["sites"]
    assert (one["patients"], external["patients"]["test"]) == ({"train": 4, "val": 1, "test": 2, "common": 2}, 2)
    assert {*one["organs"]["brain"]["labels"], *two["organs"]["brain"]["labels"]} == {"no_tumour", "tumour"}
    assert sum(external["organs"]["brain"]["labels"].values()) == 2


def test_the_command_shows_a_partition_and_trains_nothing(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["partition", "sites=shards", f"output_dir={tmp_path}/plan"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "shards-6" in shown and "external (test)" in shown
    assert sorted(p.name for p in (tmp_path / "plan").iterdir()) == ["partition.json", "partition.png"]
    assert json.loads((tmp_path / "plan/partition.json").read_text())["sites"][0]["patients"]["train"] == 160
    assert (tmp_path / "plan/partition.png").read_bytes().startswith(b"\x89PNG")
    assert "without" not in shown
    with pytest.raises(SystemExit):
        main(["partition", "sites=phase_availability", f"output_dir={tmp_path}/phases"])
    lines = capsys.readouterr().out.splitlines()
    assert (
        "without T2WI: phase-availability-1" in lines
        and "without T1: phase-availability-1, phase-availability-5" in lines
    )


def test_the_command_partitions_a_manifest(tmp_path: Path, capsys, vocabulary: Vocabulary) -> None:
    arguments = [
        "data=manifest", f"data.manifest={scanned(tmp_path)}", "sites=scanner_clusters", "sites.count=3",
        "sites.external_site=scanner-3", f"output_dir={tmp_path}/out",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(["partition", *arguments])
    assert ended.value.code == 0 and "scanner-3 (test)" in capsys.readouterr().out
    with (tmp_path / "out/sites/scanner-3/manifest.csv").open(newline="") as handle:
        assert {row["split"] for row in csv.DictReader(handle)} == {"test"}
    with pytest.raises(SystemExit) as ended:
        main(["partition", *arguments, "sites.count=60"])
    assert ended.value.code == 2 and "18 different" in capsys.readouterr().err


def test_what_an_earlier_partition_left_goes_and_who_has_no_place_is_counted(tmp_path: Path, capsys) -> None:
    manifest = scanned(tmp_path)  # four patients have T1 alone, and one a file that cannot be read
    arguments = [
        "data=manifest",
        f"data.manifest={manifest}",
        "sites.external_patients=0",
        f"output_dir={tmp_path}/out",
    ]
    for kind, told in (("sites=iid", None), ("sites=modality_skew", "patients are left out")):
        more = ["sites.count=4" if told is None else "sites.count=2", "sites.modalities_per_site=2"]
        with pytest.raises(SystemExit) as ended:
            main(["partition", *arguments, kind, *more])
        shown = capsys.readouterr()
        assert ended.value.code == 0 and ("left out" in shown.out) == (told is not None)
    assert sorted(p.name for p in (tmp_path / "out" / "sites").iterdir()) == ["modality-skew-1", "modality-skew-2"]
    (tmp_path / "out" / "config.yaml").touch()
    with pytest.raises(SystemExit) as ended:
        main(["partition", *arguments, "sites=iid"])
    assert ended.value.code == 2 and "holds a run" in capsys.readouterr().err


def test_a_partition_in_which_nobody_trains_is_refused(tmp_path: Path, capsys) -> None:
    manifest = scanned(tmp_path)
    header, *lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([f"{header},split", *(f"{line},test" for line in lines)]) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "partition",
                "data=manifest",
                f"data.manifest={manifest}",
                "sites=iid",
                "sites.count=2",
                f"output_dir={tmp_path}/o",
            ]
        )
    assert ended.value.code == 2 and "trains" in capsys.readouterr().err
