"""federation.yaml and site.yaml: a wrong line is named with its number, and the JSON schemas say what the dataclasses say."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from client.cli import app as client_app
from client.policy import SiteSettings
from configs.json_schema import schema_text
from configs.setting import ConfigError
from server.cli import app
from server.provision.federation import Federation, read_federation
from tests.server.provisioned import PLAN, Coordinator, write_plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("port: 9443", "prot: 9443"), r"line 3: `prot` is not a setting, did you mean `port`"),
        (("port: 9443", "port: ninety"), "line 3, port: 'ninety' is not a whole number"),
        (("port: 9443", "port: 99999"), "line 3, port: 99999 is out of range: take 1 to 65535"),
        (("port: 9443", "port: 18443"), "choose another superlink_port"),
        (("address: localhost", "address: https://fl"), "line 2, address: 'https://fl' cannot be used, give the server's DNS name"),
        (("address: localhost", "address:"), "line 2, address: the value is missing"),
        (("address: localhost\n", ""), r"federation.yaml has no `address`"),
        (("name: south", "name: north"), "line 8: there is another entry with `name: north`"),
        (("name: south", "name: server"), "line 8, sites.name: 'server' cannot be used"),
        (("name: south", "name: ../x"), "line 8, sites.name"),
        (("key: coordinator", "key: me"), "line 9, sites.key: me is not a choice: take one of site, coordinator"),
        (("  - name: north\n", "  - contact: x\n"), r"line 7: the entry has no `sites.name`"),
        (("medmap-fl==0.1.0", "dist/x.whl"), "x.whl, which is not there"),
        (("medmap-fl==0.1.0", '"x; rm -rf y"'), "line 5, package"),
        (("name: brain\n", "name: brain\nname: brain\n"), "line 2: `name` is said twice"),
        (("sites:\n", "sites: all\nx:\n"), "line 6, sites: write a list"),
        (("port: 9443", "port: [1, 2"), "is not YAML"),
        ((PLAN[:0], "- a\n- b\n#"), "is not YAML"),
    ],
)  # fmt: skip
def test_a_wrong_line_of_federation_yaml_is_named_with_its_number(tmp_path, change, words):
    path = write_plan(tmp_path)
    read_federation(path)
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ConfigError, match=words) as error:
        read_federation(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "authority").exists()


def test_the_schemas_are_the_dataclasses_and_accept_what_is_read(tmp_path):
    write_plan(tmp_path)
    coordinator = Coordinator(tmp_path).provisioned()
    for name, kind in (("federation", Federation), ("site", SiteSettings)):
        told = (ROOT / "configs" / "schemas" / f"{name}.json").read_text()
        assert told == schema_text(kind, title=f"{name}.yaml"), (
            "write it again: `medmap-server schema`, `medmap-client schema`"
        )
    assert CliRunner().invoke(app, ["schema"]).output == (ROOT / "configs/schemas/federation.json").read_text()
    assert CliRunner().invoke(client_app, ["schema"]).output == (ROOT / "configs/schemas/site.json").read_text()
    plan = yaml.safe_load(coordinator.plan.read_text())
    schema = json.loads((ROOT / "configs/schemas/federation.json").read_text())
    jsonschema.validate(plan, schema)
    for wrong in ({"prot": 1}, {"port": "x"}, {"sites": [{"name": "server"}]}, {"sites": [{"key": "site"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(plan | wrong, schema)
    kit = coordinator.kits / "north"
    jsonschema.validate(
        yaml.safe_load((kit / "site.example.yaml").read_text()), json.loads((kit / "site.schema.json").read_text())
    )
