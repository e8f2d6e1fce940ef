"""The gate of a site: what may come in and what may leave, decided by the hospital's own installed code, never by a run's."""


class GateError(RuntimeError):
    """Something of the gate that cannot be used; the message is one sentence: what, where, what to do."""
