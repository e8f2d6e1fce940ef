"""What the phantom can simulate: the kinds of patient of each organ, and the abnormality that each kind counts as."""

from __future__ import annotations

from configs.setting import ConfigError

# organ -> kind -> abnormality of the vocabulary
KINDS: dict[str, dict[str, str]] = {
    "brain": {
        "normal": "no_tumour",
        "glioblastoma": "tumour",
        "low_grade_glioma": "tumour",
        "metastasis": "tumour",
        "meningioma": "tumour",
    },
    "liver": {k: k for k in ("hemangioma", "icc", "abscess", "metastasis", "cyst", "fnh", "hcc")},
}


class PhantomError(ConfigError):
    """A phantom that cannot be made as asked; one line: what, where and what to do."""


def balanced(organ: str, count: int) -> list[str]:
    """Kinds of `count` patients, every abnormality equally often and every kind of it in turn."""
    groups: dict[str, list[str]] = {}
    for kind, abnormality in KINDS[organ].items():
        groups.setdefault(abnormality, []).append(kind)
    lists = list(groups.values())
    return [lists[i % len(lists)][(i // len(lists)) % len(lists[i % len(lists)])] for i in range(count)]
