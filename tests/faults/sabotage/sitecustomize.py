"""A site that answers wrongly, for tests: Python loads this file at the start of each process whose PYTHONPATH names its folder.

The file $SABOTAGE says what is done to the next updates: `nan`, `shape`, `scale`, `wait` (until the file says
something else); anything else: nothing.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def _spoil(message, how: str) -> None:
    import io

    import numpy as np
    from flwr.app import Array

    arrays = message.content.array_records["arrays"]
    group = sorted(arrays)[0]
    vector = np.load(io.BytesIO(arrays[group].data)).copy()
    if how == "nan":
        vector[0] = np.nan
    elif how == "shape":
        vector = vector[:-1]
    elif how == "scale":
        vector = vector * np.float32(1000)
    stream = io.BytesIO()
    np.save(stream, vector)
    arrays[group] = Array("float32", vector.shape, "numpy.ndarray", stream.getvalue())


def _how() -> str:
    path = Path(os.environ["SABOTAGE"])
    return path.read_text().strip() if path.exists() else ""


if os.environ.get("SABOTAGE") and any("flwr-clientapp" in a for a in sys.orig_argv):
    from flwr.supernode.runtime import run_clientapp

    _push = run_clientapp.push_message

    def push_message(client, message, context) -> None:
        if message.metadata.message_type == "train" and not message.has_error():
            while (how := _how()) == "wait":
                time.sleep(0.2)
            if how and "arrays" in message.content.array_records:
                _spoil(message, how)
        _push(client, message, context)

    run_clientapp.push_message = push_message
