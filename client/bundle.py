"""What an exported MONAI bundle runs: exams in, the JSON of `medmap-client predict` out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.exams import Exam
from client.predict import predict_with, to_json
from medmap_model.detector import Detector


class Evaluator:
    """Runs the bundle's network over exams of its organ; named as MONAI's inference workflow wants it."""

    def __init__(
        self,
        network: Detector,
        inferer: Callable[..., Tensor],
        exams: Sequence[Exam],
        output: str | None = None,
    ) -> None:
        self.network, self.inferer, self.exams, self.output = network, inferer, exams, output

    def run(self) -> dict[str, Any]:
        """The answer; also written to `output`, or printed. Exams of other organs say that they were not predicted."""
        device = next(self.network.parameters()).device

        def detect(organ: str, volumes: Tensor, present: Tensor) -> Tensor:
            return self.inferer(volumes.to(device), self.network, present=present.to(device))

        model = self.network.model
        about = model.info | {"organs": [self.network.organ]}
        with torch.no_grad():
            done = list(predict_with(detect, about, model.vocabulary, self.exams))
        answer = to_json(about, done)
        text = json.dumps(answer, indent=1, ensure_ascii=False, allow_nan=False)
        if self.output is None:
            print(text)
        else:
            Path(self.output).write_text(text + "\n", encoding="utf-8")
        return answer
