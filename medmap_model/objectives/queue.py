"""Past records of a round as further candidates, per organ: what small batches of 3D volumes lack."""

from __future__ import annotations


class Queue:
    """To be written."""
