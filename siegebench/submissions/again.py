"""Computes stored cells again, in a store of their own, and compares. Runs the entries that are registered here."""

from __future__ import annotations

import _thread
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

from siegebench.bundled import bundled_suites
from siegebench.cells import Cell, Result, canonical, digest, untrained
from siegebench.errors import ConfigError, DataError
from siegebench.submissions import plausible
from siegebench.submissions.form import Agreement

if TYPE_CHECKING:
    from siegebench.config import Suite
    from siegebench.executors import Report
    from siegebench.plan import Plan
    from siegebench.settings import Settings

OVERHEAD = 3.0  # seconds that a cell costs beyond its own time: its network is loaded and checked again
PLANNING = 5.0  # seconds that the first cell of a suite costs beyond that


@dataclass
class Again:
    """Rows that were computed again.

    Attributes:
        agreed: by key: `equal` if every outcome is the same, `within` if all rates lie in the intervals of the row.
        why: by key, what contradicts the row, for those that differ.
        stopped: by key, the cell that was not finished when the time was over, in words.
        missing: suites whose data or files are not here, with the reason; none of their rows is computed.
        unknown: number of rows that are never drawn, because no row says how long their networks take to train.
        left: number of rows that were not drawn, or not reached in the time.
        seconds: that all of it took.
    """

    agreed: dict[str, Agreement] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unknown: int = 0
    left: int = 0
    seconds: float = 0.0


def compared(row: Result, again: Result) -> tuple[Agreement, str]:
    """Whether a row that was computed again agrees with the stored one, and what contradicts it."""
    if why := plausible.disagreement(row, again):
        return "differs", why
    return "equal" if plausible.outcome_digest(row) == plausible.outcome_digest(again) else "within", ""


def planned(origin: Mapping[str, Any], file: Path | None = None) -> tuple[Suite, Plan]:
    """The suite that made a row, planned; `file` if it is not a bundled one.

    Raises:
        ConfigError, DataError, ModelError: when it cannot be planned here.
    """
    from siegebench.config import load_suite
    from siegebench.plan import plan

    suite = load_suite(str(file or origin["name"]), list(origin.get("set", ())))
    return suite, plan(suite)


def compute(suite: Suite, plan: Plan, keys: Iterable[str], settings: Settings, **how: Any) -> dict[str, Result]:
    """Compute some cells of a planned suite; `how` goes to `siegebench.run`. Rows by key."""
    from siegebench import api

    wanted = set(keys)
    plan = replace(plan, cells=[cell for cell in plan.cells if cell.key in wanted])
    return {row.cell.key: row for row in api.run(suite, settings, planned=plan, **how).results}


def costs(rows: Sequence[Result]) -> dict[str, float]:
    """Seconds that it takes to compute each row from nothing, by key.

    A row counts the training of a network only if it was the first to need it. So what each of its networks took is
    added: the longest training that a row was credited with, whatever the seed. Where no row says it because the
    weights lay in the store already, it is the median of what was trained on the same images; infinite without any.
    """
    credited, needed, usual = dict[str, float](), dict[str, float](), dict[str, list[float]]()
    for row in rows:
        if took := _training(row):
            names = _trained(row.cell)
            credited[names[-1]] = max(credited.get(names[-1], 0.0), took)
            for name in names:
                needed[name] = max(needed.get(name, 0.0), took)
            usual.setdefault(_images(row.cell), []).append(took)

    def training(cell: Cell) -> float:
        names = _trained(cell)
        known = [credited.get(name, needed.get(name, 0.0)) for name in names]
        if (
            names[0] not in needed and "train_digest" in cell.data and "sha256" not in cell.model
        ):  # of published weights
            known.append(median(usual.get(_images(cell), [inf])))
        return sum(known)

    return {
        row.cell.key: max(0.0, float(row.timing.get("seconds") or 0.0) - _training(row)) + training(row.cell) + OVERHEAD
        for row in rows
    }


def _training(row: Result) -> float:
    return float(row.timing.get("training") or 0.0)


def _images(cell: Cell) -> str:
    return str(cell.data.get("train_digest"))


def _trained(cell: Cell) -> list[str]:
    """Names of what may have to be trained for a cell: surrogates after the victim, and last what is built on it."""
    networks = [(cell.model, cell.backdoor), *((surrogate, None) for surrogate in cell.surrogates or ())]
    names = [canonical([_images(cell), untrained(model), backdoor]) for model, backdoor in networks]
    on_it = {slot: found for slot in ("defense", "detector", "theft") if (found := getattr(cell, slot)) is not None}
    if on_it.get("defense", {}).get("name") == "none":
        del on_it["defense"]
    return [*names, *(canonical([names[0], slot, found]) for slot, found in on_it.items())]


def drawn(rows: Sequence[Result], seconds: float, salt: str) -> Iterator[Result]:
    """Rows in a random order that depends on the salt, as many as are expected to take no longer than `seconds`."""
    cost, spent, suites = costs(rows), 0.0, set[str]()
    for row in sorted(rows, key=lambda row: digest([salt, row.cell.key])):
        suite = canonical(row.given["suite"])
        more = cost[row.cell.key] + (0 if suite in suites else PLANNING)
        if spent + more <= seconds:
            spent += more
            suites.add(suite)
            yield row


@contextmanager
def stopped_after(seconds: float) -> Iterator[threading.Event]:
    """Stop the body as Ctrl-C does when it takes longer; then what is yielded is set. For the main thread."""
    over = threading.Event()

    def stop() -> None:
        over.set()
        _thread.interrupt_main()

    timer = threading.Timer(max(0.0, seconds), stop)
    timer.daemon = True
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where Ctrl-C is ignored, nothing would arrive
    timer.start()
    try:
        try:
            yield over
        finally:
            timer.cancel()
            timer.join()  # an interrupt that is on its way arrives here
    except KeyboardInterrupt:
        if not over.is_set():
            raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def recheck(
    rows: Sequence[Result],
    *,
    seconds: float,
    salt: str = "",
    files: Sequence[Path] = (),
    threads: int | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
    report: Report | None = None,
) -> Again:
    """Compute a random sample of stored rows again, each from scratch, and compare. For the main thread.

    Args:
        rows: of a store; errors are left out.
        seconds: how long it may take. A row is started only if it is expected to end in time. It may take longer than
            expected, for example on a slower machine: when the time is over, it is stopped.
        salt: another one draws other rows.
        files: suites that made some of the rows and are not bundled.

    Raises:
        ConfigError: when a row is of no cell of its suite, before anything is computed.
    """
    from siegebench.settings import Settings

    start, out = monotonic(), Again()
    usable = [row for row in rows if row.status != "error" and row.given.get("suite")]
    plans: dict[str, tuple[Suite, Plan]] = {}
    bundled, own_files = {path.stem for path in bundled_suites()}, {path.name: path for path in files}
    chosen = list(drawn(usable, seconds, salt))

    def late() -> bool:  # half of the time is for computing
        return bool(plans) and monotonic() - start > seconds / 2

    while new := {made: row.given["suite"] for row in chosen if (made := canonical(row.given["suite"])) not in plans}:
        for made, origin in new.items():
            if late():
                break
            say(f"planning {origin['name']}")
            name = str(origin["name"])
            if name not in bundled and name not in own_files:
                out.missing[made] = f"{name}: this suite is not bundled; add --file PATH/{name}"
                continue
            try:
                plans[made] = planned(origin, own_files.get(name))
            except DataError as error:
                out.missing[made] = f"{name}: {error}"
        here = [row for row in usable if canonical(row.given["suite"]) not in out.missing]
        chosen = list(drawn(here, seconds, salt))  # rows whose data are missing take no time from the others
        if late():
            chosen = [row for row in chosen if canonical(row.given["suite"]) in plans]
    for row in chosen:
        known = {cell.key for cell in plans[canonical(row.given["suite"])][1].cells}
        if row.cell.key not in known:
            raise ConfigError(
                f"rows/{row.cell.file}: key: found {row.cell.key[:16]}, none of the {len(known)} cells of the suite "
                f"{row.given['suite']['name']} now: another budget, parameter or data; run the suite again"
            )
    cost = costs(usable)
    out.unknown = sum(cost[row.cell.key] == inf for row in usable)
    with tempfile.TemporaryDirectory() as store:
        settings = Settings(root=store, threads=threads, device=device)
        for row in chosen:
            key, begun = row.cell.key, monotonic()
            left = seconds - (begun - start)
            if cost[key] > left:
                continue
            found: dict[str, Result] = {}
            with stopped_after(left) as over:
                found = compute(*plans[canonical(row.given["suite"])], [key], settings, report=report)
            if key in found:
                out.agreed[key], why = compared(row, found[key])
                if why:
                    out.why[key] = why
            elif over.is_set():
                out.stopped[key] = (
                    f"stopped after {monotonic() - begun:.0f} s, when the time was over; about {cost[key]:.0f} s were "
                    "expected"
                )
                break
    out.left, out.seconds = len(usable) - len(out.agreed), monotonic() - start
    return out
