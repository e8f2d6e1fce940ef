"""docs/use.md: its Python blocks run, one after the other, and the commands it names exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app as client_app
from server.cli import app as server_app
from tests.trained import manifest_of, trained_run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "use.md"


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with what the page talks of: a run in outputs/demo, and the files of one study in study."""
    run = trained_run()
    shutil.copytree(run, tmp_path / "outputs" / "demo")
    (tmp_path / "study").mkdir()
    for modality in ("T1", "FLAIR"):
        shutil.copy(
            manifest_of(run, "east").parent / f"east-test-1-{modality}.nii.gz",
            tmp_path / "study" / f"{modality}.nii.gz",
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, "" for those that name none."""
    fences = re.findall(r"^```([^\n]*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [body for name, body in fences if name == language]


def test_the_python_blocks_run_in_their_order(desk, capsys):
    code = blocks("python")
    assert len(code) >= 5
    names: dict[str, object] = {}
    for block in code:
        exec(compile(block, str(PAGE), "exec"), names)
    shown = capsys.readouterr().out
    for text in ("2 ['T1', 'T2', 'FLAIR'] ['brain'] phantom", "['T1', 'FLAIR'] ['T2']", "'tumour':", "yours is", "---"):
        assert text in shown


def test_the_commands_of_the_page_run(desk):
    shutil.copytree("study", "studies/0017")
    shutil.copytree("study", "studies/0018")
    shutil.copy("study/T1.nii.gz", "t1.nii.gz")
    shutil.copy("study/FLAIR.nii.gz", "flair.nii.gz")
    Path("manifest.csv").write_text(
        "patient_id,study_id,modality,image,split\nP,1,T1,t1.nii.gz,test\nP,1,FLAIR,flair.nii.gz,test\n"
    )
    lines = [line.partition("  #")[0].split() for block in blocks("") for line in block.splitlines()]
    ours = [line for line in lines if line and line[0] in ("medmap-client", "medmap-server") and "onnx" not in line]
    assert len(ours) == 6
    for command, *arguments in ours:
        done = CliRunner().invoke(client_app if command == "medmap-client" else server_app, arguments)
        assert done.exit_code == 0, (arguments, done.output)
    assert Path("result.json").is_file() and Path("exported/model.json").is_file() and Path("bundle/configs").is_dir()
