"""A site's own record of spent privacy: an SQLite file, charged before anything private is computed.

One row per charge, hash-chained, never changed or deleted. Life of a charge, by its key (run, stage, round, message):

    reserve -> the row is on disk, then and only then patients may be touched
    release -> marked just before the reply leaves

A message that comes again after a crash (reserved, never released) is not charged again: nothing had left. One that comes
again after its reply has left is: another reply would carry other noise. So the ledger never counts too little, whatever
process dies at whatever point; it may count a reply that was never sent.

A copy of the file restored from a backup would have forgotten charges: the server keeps a `Receipt` of every reply and
hands the newest one back with its next task; a ledger that is behind it refuses (`check_receipt`). So does one that has
lost an entry since this process last looked.

What was released once and is used again (the noisy size of the cohort) is kept beside its charge (`remember`).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medmap_model.accounting import Cost, spent
from medmap_model.contract import STAGES

VERSION = 1
_GENESIS = "0" * 64
_SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, prev TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE
);
CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS entries_remain BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


class LedgerError(RuntimeError):
    """A ledger that cannot be used: damaged, of another site, or older than what the server has seen."""


class BudgetExceeded(RuntimeError):
    """A charge that would exceed the budget; nothing was charged and no patient touched."""


@dataclass(frozen=True)
class Key:
    """What a charge is for. message: the server's id of the request, so that a repeated request is known as one."""

    run: str
    stage: str
    round: int
    message: str


@dataclass(frozen=True)
class Receipt:
    """How far a ledger had come: its id, the number of its last entry and that entry's hash."""

    ledger: str
    seq: int
    hash: str


@dataclass(frozen=True)
class Charge:
    """A row of the ledger, and whether its reply has left."""

    seq: int
    time: float
    key: Key
    purpose: str
    cost: Cost
    released: bool


class Ledger:
    """The ledger at `path`, made at first use with the budget it is to keep.

    epsilon, delta: the budget over the ledger's whole life; once set they stay. Threads and processes may share the
    file. Raises LedgerError when the file is damaged or has another budget.
    """

    def __init__(self, path: Path, *, epsilon: float, delta: float) -> None:
        if not epsilon > 0 or not 0 < delta < 1:
            raise LedgerError(f"a budget of epsilon {epsilon} and delta {delta}: take epsilon > 0 and 0 < delta < 1")
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._charged: list[Charge] = []  # what the entries up to `_known` say; newer ones are read when needed
        self._notes: dict[str, Any] = {}
        self._known = (0, _GENESIS)
        with self._transaction() as db:
            for statement in _SCHEMA.split(";\n"):
                if statement.strip():
                    db.execute(statement)
            found = dict(db.execute("SELECT key, value FROM ledger"))
            if not found:
                found = {
                    "version": str(VERSION),
                    "id": uuid.uuid4().hex,
                    "epsilon": repr(epsilon),
                    "delta": repr(delta),
                }
                db.executemany("INSERT INTO ledger VALUES (?, ?)", found.items())
        self.id, self.epsilon, self.delta = found["id"], float(found["epsilon"]), float(found["delta"])
        if (self.epsilon, self.delta) != (epsilon, delta):
            raise LedgerError(
                f"{self.path} keeps a budget of epsilon {self.epsilon:g}, delta {self.delta:g}, not {epsilon:g}, {delta:g}: "
                "a budget stays for the ledger's life; set site.yaml back to it"
            )
        self.verify()

    def reserve(self, key: Key, purpose: str, cost: Cost) -> Receipt:
        """Charge before computing. Raises BudgetExceeded, in which case nothing was written.

        The same key again: not charged if its reply never left; charged as another release if it had.
        """
        body = {"key": asdict(key), "purpose": purpose, "cost": asdict(cost)}
        with self._transaction() as db:
            charges = self._charges(db)
            self._check_schedule(charges, key, cost)
            open_ones = [c for c in charges if c.key == key and not c.released]
            if open_ones and open_ones[-1].cost == cost:
                return self._head()
            after = spent([*(c.cost for c in charges), cost], delta=self.delta)
            if not after <= self.epsilon:  # what is not a number is no permission
                raise BudgetExceeded(
                    f"{purpose}, {key.stage} round {key.round}: epsilon would reach {after:.3f} of {self.epsilon:g}"
                )
            return self._append(db, "charge", body)

    def _check_schedule(self, charges: list[Charge], key: Key, cost: Cost) -> None:
        """The rounds of a run have one noise and one sampling rate: the accountant's bound is for what was fixed in advance."""
        mine = (cost.noise_multiplier, cost.sample_rate)
        for c in charges:
            theirs = (c.cost.noise_multiplier, c.cost.sample_rate)
            if c.key.run == key.run and {key.stage, c.key.stage} <= set(STAGES) and mine != theirs:
                raise LedgerError(
                    f"{key.stage} round {key.round}: noise {mine[0]:g} at rate {mine[1]:g}, but this run began with "
                    f"{theirs[0]:g} at {theirs[1]:g}; a schedule is fixed before its first round"
                )

    def release(self, key: Key) -> Receipt:
        """Mark that the reply to `key` is about to leave. Raises LedgerError for a key that was never charged."""
        with self._transaction() as db:
            if not any(c.key == key and not c.released for c in self._charges(db)):
                raise LedgerError(f"{key.stage} round {key.round}: nothing may leave that was not charged")
            return self._append(db, "release", {"key": asdict(key)})

    def remember(self, name: str, value: Any) -> Receipt:
        """Keep a released value (JSON) for good. Raises LedgerError when there is one of that name."""
        with self._transaction() as db:
            self._charges(db)
            if name in self._notes:
                raise LedgerError(f"{self.path} has a '{name}' already: it was released once and stays")
            return self._append(db, "note", {"name": name, "value": value})

    def recall(self, name: str) -> Any:
        """The value kept under that name; None when there is none."""
        with self._transaction() as db:
            self._charges(db)
        return self._notes.get(name)

    def charges(self) -> list[Charge]:
        """All charges, oldest first."""
        with self._transaction() as db:
            return list(self._charges(db))

    def spent(self, *more: Cost) -> float:
        """Epsilon spent over the ledger's life, with `more` on top."""
        return spent([*(c.cost for c in self.charges()), *more], delta=self.delta)

    def receipt(self) -> Receipt:
        """How far the ledger has come."""
        with self._transaction() as db:
            self._charges(db)
            return self._head()

    def check_receipt(self, receipt: Receipt) -> None:
        """Raises LedgerError when this file is another ledger, or an older copy, than the server has a receipt of."""
        if receipt.ledger != self.id:
            raise LedgerError(f"{self.path} is not the ledger that this federation knows: put the site's own file back")
        with self._transaction() as db:
            row = db.execute("SELECT hash FROM entries WHERE seq = ?", (receipt.seq,)).fetchone()
        if (row[0] if row else _GENESIS) != receipt.hash or (row is None and receipt.seq > 0):
            raise LedgerError(
                f"{self.path} is an older copy: it lacks entry {receipt.seq}, which the server has a receipt of; "
                "put the newest file back"
            )

    def verify(self) -> int:
        """Check the whole hash chain; the number of entries. Raises LedgerError naming the first entry that does not fit."""
        self._charged, self._notes, self._known = [], {}, (0, _GENESIS)
        with self._transaction() as db:
            self._charges(db)
        return self._known[0]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One writer at a time; on disk (fsync) when it ends, or nothing of it."""
        try:
            db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path} cannot be opened ({error}): check the path and its permissions") from None
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self.path} is not a readable ledger ({error}): restore the newest good copy") from None
        finally:
            db.close()

    def _charges(self, db: sqlite3.Connection) -> list[Charge]:
        """All charges; entries that this object has not seen yet are checked against the chain on the way."""
        seq, previous = self._known
        rows = iter(
            db.execute("SELECT seq, time, kind, body, prev, hash FROM entries WHERE seq >= ? ORDER BY seq", (seq,))
        )
        if seq:
            last = next(rows, None)
            if last is None or last[5] != previous:
                raise LedgerError(f"{self.path} has lost entries since it was last read; put the newest file back")
        for number, (at_seq, at, kind, body, prev, digest) in enumerate(rows, seq + 1):
            if at_seq != number or prev != previous or digest != _hash(at_seq, at, kind, body, prev):
                raise LedgerError(
                    f"{self.path}: entry {number} was changed or is missing; restore the newest good copy"
                )
            self._take(at_seq, at, kind, json.loads(body))
            previous = digest
            self._known = (number, previous)
        return self._charged

    def _take(self, seq: int, at: float, kind: str, body: dict[str, Any]) -> None:
        if kind == "note":
            self._notes[body["name"]] = body["value"]
            return
        key = Key(**body["key"])
        if kind == "charge":
            self._charged.append(Charge(seq, at, key, body["purpose"], Cost(**body["cost"]), released=False))
            return
        index = max(i for i, c in enumerate(self._charged) if c.key == key and not c.released)
        self._charged[index] = replace(self._charged[index], released=True)

    def _append(self, db: sqlite3.Connection, kind: str, body: dict[str, Any]) -> Receipt:
        """One entry more. The caller has read all there are; this one is taken in when it is on disk."""
        at, text = time.time(), json.dumps(body, sort_keys=True)
        seq, prev = self._known[0] + 1, self._known[1]
        digest = _hash(seq, at, kind, text, prev)
        db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", (seq, at, kind, text, prev, digest))
        return Receipt(self.id, seq, digest)

    def _head(self) -> Receipt:
        return Receipt(self.id, *self._known)


def _hash(seq: int, at: float, kind: str, body: str, prev: str) -> str:
    return hashlib.sha256(json.dumps([seq, at, kind, body, prev]).encode()).hexdigest()
