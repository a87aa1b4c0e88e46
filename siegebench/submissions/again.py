"""Computes stored cells again, in a store of their own, and compares. Runs the entries that are registered here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from siegebench.bundled import bundled_suites
from siegebench.cells import Result, canonical, digest
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
        missing: suites whose data or files are not here, with the reason; none of their rows is computed.
        left: number of rows that were not drawn, or not reached in the time.
        seconds: that all of it took.
    """

    agreed: dict[str, Agreement] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
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
    plan.cells = [cell for cell in plan.cells if cell.key in wanted]
    return {row.cell.key: row for row in api.run(suite, settings, planned=plan, **how).results}


def costs(rows: Sequence[Result]) -> dict[str, float]:
    """Seconds that it takes to compute each row from nothing, by key.

    A row counts training only if it was the first to need the network, so the longest training of the rows with the
    same network, and of those with the same defense on it, is added to each.
    """

    def trained(row: Result, *slots: str) -> str:
        return canonical([row.cell.data, row.cell.seed, *(getattr(row.cell, slot) for slot in slots)])

    longest: dict[str, float] = {}
    for row in rows:
        bare = (row.cell.defense or {}).get("name") == "none"
        name = trained(row, "model") if bare else trained(row, "model", "defense")
        longest[name] = max(longest.get(name, 0.0), float(row.timing.get("training") or 0.0))
    return {
        row.cell.key: float(row.timing.get("seconds") or 0.0)
        + sum(longest.get(name, 0.0) for name in {trained(row, "model"), trained(row, "model", "defense")})
        + OVERHEAD
        for row in rows
    }


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
    """Compute a random sample of stored rows again, each from scratch, and compare.

    Args:
        rows: of a store; errors are left out.
        seconds: how long it may take. A row that was measured on a slower or faster machine takes less or more than
            expected: when the time is over, what is left is not computed.
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
    by_suite: dict[str, list[Result]] = {}

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
        made = canonical(row.given["suite"])
        known = {cell.key for cell in plans[made][1].cells}
        if row.cell.key not in known:
            raise ConfigError(
                f"rows/{row.cell.file}: key: found {row.cell.key[:16]}, none of the {len(known)} cells of the suite "
                f"{row.given['suite']['name']} now: another budget, parameter or data; run the suite again"
            )
        by_suite.setdefault(made, []).append(row)
    with tempfile.TemporaryDirectory() as store:
        settings = Settings(root=store, threads=threads, device=device)
        for made, own in by_suite.items():
            if monotonic() - start > seconds:
                break
            found = compute(*plans[made], [row.cell.key for row in own], settings, report=report)
            for row in own:
                key = row.cell.key
                out.agreed[key], why = compared(row, found[key])
                if why:
                    out.why[key] = why
    out.left, out.seconds = len(usable) - len(out.agreed), monotonic() - start
    return out
