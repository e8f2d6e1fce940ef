"""The ledger: charged before anything is computed, whoever dies when; never reset, never overspent, never edited."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client.privacy.ledger import BudgetExceeded, Key, Ledger, LedgerError
from medmap_model.accounting import Cost, noise_multiplier, spent

STEP = Cost(steps=3, noise_multiplier=4.0, sample_rate=0.25)  # epsilon 0.47 alone, 1.4 ten times
BUDGET = 1.2


def key(number: int, *, run: str = "a", message: str | None = None) -> Key:
    return Key(run, "finetune", number, message or f"m{number}")


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "ledger.db", epsilon=BUDGET, delta=1e-5)


def test_rounds_are_accepted_until_the_budget_and_a_refusal_writes_nothing(ledger):
    number, refused = 0, None
    while number < 60 and refused is None:
        try:
            ledger.reserve(key(number), "training", STEP)
            number += 1
        except BudgetExceeded as error:
            refused = str(error)
    assert re.search(r"round \d+: epsilon would reach 1\.[2-4]\d+ of 1\.2", refused or "")
    assert 3 < number < 60
    assert len(ledger.charges()) == number and ledger.verify() == number
    assert 1.0 < ledger.spent() <= BUDGET
    assert ledger.spent() == pytest.approx(spent([Cost(3 * number, 4.0, 0.25)], delta=1e-5))
    ledger.reserve(key(99, run="b"), "a cheaper one", Cost(1, 90.0, 0.1))  # what fits still fits


def test_a_repeated_message_is_charged_once_until_its_reply_has_left(ledger):
    first = ledger.reserve(key(1), "training", STEP)
    assert ledger.reserve(key(1), "training", STEP) == first
    assert len(ledger.charges()) == 1
    ledger.release(key(1))
    ledger.reserve(key(1), "training", STEP)  # its reply left: another one carries other noise
    assert len(ledger.charges()) == 2
    ledger.reserve(key(1, run="b"), "training", STEP)
    ledger.reserve(key(1, message="other"), "training", STEP)
    assert len(ledger.charges()) == 4


def test_a_repeated_message_with_another_cost_is_charged(ledger):
    ledger.reserve(key(1), "training", STEP)
    ledger.reserve(key(1), "training", Cost(4, STEP.noise_multiplier, STEP.sample_rate))
    assert len(ledger.charges()) == 2


def test_nothing_leaves_that_was_not_charged(ledger):
    with pytest.raises(LedgerError, match="nothing may leave"):
        ledger.release(key(1))
    ledger.reserve(key(1), "training", STEP)
    ledger.release(key(1))
    with pytest.raises(LedgerError, match="nothing may leave"):
        ledger.release(key(1))


def test_it_survives_and_keeps_its_budget(ledger):
    ledger.reserve(key(1), "training", STEP)
    again = Ledger(ledger.path, epsilon=BUDGET, delta=1e-5)
    assert again.id == ledger.id and again.spent() == ledger.spent() > 0
    with pytest.raises(LedgerError, match=r"keeps a budget of epsilon 1\.2, delta 1e-05, not 8"):
        Ledger(ledger.path, epsilon=8.0, delta=1e-5)


@pytest.mark.parametrize("sql", ["UPDATE entries SET body = '{}'", "DELETE FROM entries WHERE seq = 2"])
def test_rows_stay_and_a_forced_edit_is_noticed(ledger, sql):
    for i in range(3):
        ledger.reserve(key(i), "training", STEP)
    db = sqlite3.connect(ledger.path)
    with pytest.raises(sqlite3.DatabaseError, match="append only"):
        db.execute(sql)
    db.executescript(f"DROP TRIGGER entries_stay; DROP TRIGGER entries_remain; {sql};")
    db.commit()
    db.close()
    with pytest.raises(LedgerError, match=r"entry \d was changed or is missing"):
        ledger.verify()
    with pytest.raises(LedgerError, match="changed or is missing"):
        Ledger(ledger.path, epsilon=BUDGET, delta=1e-5)


def test_a_restored_copy_is_noticed_by_the_servers_receipt(ledger, tmp_path):
    early = ledger.reserve(key(1), "training", STEP)
    shutil.copytree(tmp_path, tmp_path.with_name("backup"))
    late = ledger.reserve(key(2), "training", STEP)
    ledger.check_receipt(early)
    ledger.check_receipt(late)
    old = Ledger(tmp_path.with_name("backup") / "ledger.db", epsilon=BUDGET, delta=1e-5)
    old.check_receipt(early)
    with pytest.raises(LedgerError, match="older copy: it lacks entry 2"):
        old.check_receipt(late)
    old.reserve(key(3), "training", STEP)  # as many entries, but others
    with pytest.raises(LedgerError, match="older copy"):
        old.check_receipt(late)
    other = Ledger(tmp_path / "other.db", epsilon=BUDGET, delta=1e-5)
    with pytest.raises(LedgerError, match="not the ledger"):
        other.check_receipt(late)


def test_threads_cannot_overspend(ledger):
    def one(i: int) -> bool:
        try:
            Ledger(ledger.path, epsilon=BUDGET, delta=1e-5).reserve(key(i), "training", Cost(3, 3.0, 0.25))
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = sum(pool.map(one, range(16)))
    assert 0 < accepted < 16
    assert len(ledger.charges()) == accepted and ledger.spent() <= BUDGET


CHILD = """
    import os, signal, sys
    from pathlib import Path
    from client.privacy import ledger as module
    from medmap_model.accounting import Cost
    from client.privacy.ledger import Key, Ledger
    where = sys.argv[2]
    def die(*_): os.kill(os.getpid(), signal.SIGKILL)
    original = Ledger._append
    def append(self, *args):
        if where == "before insert": die()
        found = original(self, *args)
        if where == "before commit": die()
        return found
    l = Ledger(Path(sys.argv[1]), epsilon=1.2, delta=1e-5)
    Ledger._append = append
    l.reserve(Key("a", "finetune", 1, "m1"), "training", Cost(3, 4.0, 0.25))
    print("patients touched", flush=True)
    Ledger._append = original
    if where == "while computing": die()
    if where == "before release":
        Ledger._append = lambda *a: die()
    l.release(Key("a", "finetune", 1, "m1"))
    print("reply left", flush=True)
    die()
"""


@pytest.mark.parametrize(
    "where", ["before insert", "before commit", "while computing", "before release", "after the reply"]
)
def test_a_kill_at_any_step_never_counts_too_little(ledger, where):
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(ledger.path), where],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    touched, left = "patients touched" in child.stdout, "reply left" in child.stdout
    charges = ledger.charges()
    assert ledger.verify() >= len(charges)
    assert len(charges) == touched  # computed on only after the charge was on disk
    assert sum(c.released for c in charges) >= left
    ledger.reserve(key(1), "training", STEP)  # the same message comes again
    expected = 2 if left else 1
    assert len(ledger.charges()) == expected


def test_a_file_that_is_no_ledger_is_one_sentence(tmp_path):
    (tmp_path / "x.db").write_bytes(b"no database" * 400)
    with pytest.raises(LedgerError, match=r"x\.db is not a readable ledger"):
        Ledger(tmp_path / "x.db", epsilon=1.0, delta=1e-5)


def test_noise_is_solved_on_top_of_what_is_spent():
    before = [Cost(20, 4.0, 0.25)]
    sigma = noise_multiplier(before, epsilon=3.0, delta=1e-5, sample_rate=0.5, steps=10)
    assert 2.8 < spent([*before, Cost(10, sigma, 0.5)], delta=1e-5) <= 3.0
    fresh = noise_multiplier([], epsilon=3.0, delta=1e-5, sample_rate=0.5, steps=10)
    assert fresh < sigma
    with pytest.raises(ValueError, match=r"epsilon 1\.\d+ of 1 is spent"):
        noise_multiplier(before, epsilon=1.0, delta=1e-5, sample_rate=0.5, steps=10)
    assert spent([Cost(2, epsilon=0.5), Cost(1, epsilon=1.0)], delta=1e-5) == 2.0
    for wrong in (
        {"steps": 0, "noise_multiplier": 1.0},
        {"steps": 1},
        {"steps": 1, "noise_multiplier": 1.0, "epsilon": 1.0},
    ):
        with pytest.raises(ValueError, match="give a noise multiplier"):
            Cost(**wrong)


def test_what_other_processes_write_is_read_and_what_is_lost_meanwhile_is_noticed(ledger, tmp_path):
    ledger.reserve(key(1), "training", STEP)
    shutil.copy(ledger.path, tmp_path / "early.db")
    other = Ledger(ledger.path, epsilon=BUDGET, delta=1e-5)
    other.reserve(key(2), "training", STEP)
    assert len(ledger.charges()) == 2 and ledger.receipt() == other.receipt()
    for suffix in ("-wal", "-shm"):
        ledger.path.with_name(ledger.path.name + suffix).unlink(missing_ok=True)
    shutil.copy(tmp_path / "early.db", ledger.path)
    with pytest.raises(LedgerError, match="has lost entries since it was last read"):
        ledger.reserve(key(3), "training", STEP)


def test_a_released_value_is_kept_once(ledger):
    assert ledger.recall("cohort") is None
    ledger.remember("cohort", {"splits": {"train": 93}})
    again = Ledger(ledger.path, epsilon=BUDGET, delta=1e-5)
    assert again.recall("cohort") == {"splits": {"train": 93}} and again.spent() == 0
    with pytest.raises(LedgerError, match="released once and stays"):
        again.remember("cohort", {"splits": {"train": 7}})
    assert ledger.verify() == 1


GREEDY = """
    import sys
    from pathlib import Path
    from medmap_model.accounting import Cost
    from client.privacy.ledger import BudgetExceeded, Key, Ledger
    l = Ledger(Path(sys.argv[1]), epsilon=1.2, delta=1e-5)
    sys.stdin.readline()
    taken = 0
    for i in range(8):
        try:
            l.reserve(Key("a", "finetune", i, sys.argv[2] + str(i)), "training", Cost(3, 3.0, 0.25))
            taken += 1
        except BudgetExceeded:
            pass
    print(taken)
"""


def test_two_processes_cannot_overspend(ledger):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(GREEDY), str(ledger.path), name], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, cwd=Path(__file__).parents[3], env={**os.environ, "PYTHONPATH": "."},
        )
        for name in ("one", "two")
    ]  # fmt: skip
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    taken = [int(child.communicate(timeout=120)[0]) for child in children]
    assert len(ledger.charges()) == sum(taken) < 16
    assert ledger.spent() <= BUDGET < ledger.spent(Cost(3, 3.0, 0.25))


@pytest.mark.parametrize("bad", [float("nan"), -1e6, float("inf")])
def test_a_cost_that_is_no_number_is_none_and_not_a_number_is_no_permission(ledger, monkeypatch, bad):
    for made in (
        lambda: Cost(1, noise_multiplier=5.0, epsilon=bad),
        lambda: Cost(1, noise_multiplier=bad, epsilon=1.0),
    ):
        with pytest.raises(ValueError, match="finite and not negative"):
            made()
    monkeypatch.setattr("client.privacy.ledger.spent", lambda *a, **k: float("nan"))
    with pytest.raises(BudgetExceeded):
        ledger.reserve(key(1), "training", STEP)
    assert ledger.verify() == 0


def test_a_runs_schedule_is_fixed_before_its_first_round(ledger):
    ledger.reserve(key(1), "training", STEP)
    with pytest.raises(LedgerError, match="fixed before its first round"):
        ledger.reserve(key(2), "training", Cost(3, STEP.noise_multiplier * 2, STEP.sample_rate))
    ledger.reserve(Key("a", "validation", 0, "v"), "validation", Cost(1, epsilon=0.01))
    ledger.reserve(Key("another", "finetune", 0, "x"), "training", Cost(3, 9.0, 0.1))
    assert len(ledger.charges()) == 3
