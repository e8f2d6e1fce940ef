"""A MONAI bundle: configs/, models/model.pt (tensors alone), docs/; `monai.bundle` loads it, and runs it on NIfTI files.

The network and the reading of volumes are MedMAP-FL's own code, named in metadata.json among the required packages: only
so are a hospital's numbers those of the simulation. Without the package, take the ONNX export.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medmap_model.checkpoint import LoadedMedMAP, to_json
from medmap_model.detector import Detector

_DOCS = "docs/README.md"


def write_bundle(target: Path, model: LoadedMedMAP) -> None:
    """configs/metadata.json, configs/inference.json and models/model.pt in a folder that exists."""
    (target / "configs").mkdir()
    (target / "models").mkdir()
    organ = model.info["organs"][0]
    state = Detector(model, organ).state_dict()  # whichever organ: it holds all of the model, and the public texts
    torch.save({k: v.contiguous() for k, v in state.items()}, target / "models" / "model.pt")
    (target / "configs" / "metadata.json").write_bytes(to_json(_metadata(model, organ)))
    (target / "configs" / "inference.json").write_bytes(to_json(_inference(organ)))


def _metadata(model: LoadedMedMAP, organ: str) -> dict[str, Any]:
    info, words = model.info, model.vocabulary.organs[organ]
    size, slots = int(info["volumes"]["size"]), len(words.modalities)
    needed = ("medmap-fl", "safetensors", "nibabel", "scipy")
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": slots,
        "spatial_shape": [size, size, size],
        "dtype": "float32",
        "value_range": [-4, 6],
        "is_patch_data": False,
        "channel_def": {str(i): m for i, m in enumerate(words.modalities)},
    }
    present = {"type": "mask", "format": "bool", "num_channels": slots, "spatial_shape": [], "dtype": "bool"}
    probabilities = {
        "type": "probabilities",
        "format": "classification",
        "num_channels": len(words.abnormalities),
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(i): c for i, c in enumerate(words.abnormalities)},
    }
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by medmap-server export"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "python_version": platform.python_version(),
        "required_packages_version": {name: version(name) for name in needed},
        "name": f"medmap-{info['model']['name']}",
        "task": f"Abnormality detection in MRI of the {', '.join(info['organs'])}",
        "description": f"MedMAP trained across {info['sites']} sites; see {_DOCS}",
        "intended_use": "Research only. Not a medical device.",
        "authors": "the federation that trained it",
        "copyright": "see the federation",
        "data_type": info["data"],
        "network_data_format": {
            "inputs": {"image": image, "present": present},
            "outputs": {"pred": probabilities},
        },
        "medmap": info,
    }


def _inference(organ: str) -> dict[str, Any]:
    """`studies` is what `medmap-client predict` takes: folders, manifests, or MODALITY=FILE."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": ".",
        "studies": ["@dataset_dir"],
        "organ": organ,
        "output": None,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "medmap_model.detector.blank_detector",
            "about": "@_meta_#medmap",
            "organ": "@organ",
        },
        "network": "$@network_def.to(@device)",
        "weights": "$torch.load(@bundle_root + '/models/model.pt', map_location=@device, weights_only=True)",
        "dataset": {
            "_target_": "client.exams.read_exams",
            "arguments": "@studies",
            "vocabulary": "$@network_def.model.vocabulary",
        },
        "inferer": {"_target_": "monai.inferers.SimpleInferer"},
        "evaluator": {
            "_target_": "client.bundle.Evaluator",
            "network": "@network",
            "inferer": "@inferer",
            "exams": "@dataset",
            "output": "@output",
        },
        # Not under `initialize`: monai.bundle.load runs that from any folder, and reads the weights itself.
        "run": ["$@network.load_state_dict(@weights)", "$@evaluator.run()"],
    }
