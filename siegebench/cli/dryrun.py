"""`siegebench run --dry-run` and `--only`: the cells of a suite, counted by board, and the time that they will take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from siegebench.errors import ConfigError
from siegebench.heads import heads
from siegebench.progress import Estimate, about, earlier
from siegebench.reuse import reasons, stale
from siegebench.store import Store

if TYPE_CHECKING:
    from siegebench.plan import Plan
    from siegebench.workspace import Settings


def limit(planned: Plan, key: str | None) -> None:
    """Keep only the cells whose key begins with `key`.

    Raises:
        ConfigError: when the suite has none.
    """
    if key is None:
        return
    cells = [cell for cell in planned.cells if cell.key.startswith(key)]
    if not key or not cells:
        raise ConfigError(
            f"--only {key}: none of the {len(planned.cells)} cells has such a key; entries, data or weights may have "
            "changed. --dry-run lists the keys"
        )
    planned.cells = cells
    planned.boards = [[k for k in board if k.startswith(key)] for board in planned.boards]


def show(
    planned: Plan,
    tracks: Sequence[str],
    titles: Mapping[str, str],
    settings: Settings,
    slots: int,
    again: bool,
    as_json: bool,
    times: bool = True,
) -> None:
    """Print the cells, with the time that they will take if `times`; compute nothing."""
    store = Store(settings.root)
    estimate = Estimate(planned.cells, slots, earlier(store))
    changed = stale(planned.cells, store)
    found = heads(planned.cells, store)
    stored = {key for key, head in found.items() if head.status != "error"}
    words = {
        cell.key: "stale" if cell.key in changed else "stored" if cell.key in stored else "to do"
        for cell in planned.cells
    }
    compute = {key: again or bool(why) for key, why in reasons(planned.cells, store, settings).items()}
    seconds = {cell.key: estimate.of(cell) for cell in planned.cells}
    board_of = {key: i for i, keys in reversed([*enumerate(planned.boards)]) for key in keys}
    if as_json:
        rows = [
            {
                "key": cell.key,
                "stored": words[cell.key] != "to do",
                "changed": changed.get(cell.key, []),
                "compute": compute[cell.key],
                "title": titles[cell.key],
                "board": board_of.get(cell.key),
                "seconds": seconds[cell.key],
                "cell": cell.as_dict(),
            }
            for cell in planned.cells
        ]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for cell in planned.cells:
        print(f"{cell.key[:16]}  {words[cell.key]:6}  {titles[cell.key]}")
    todo = [key for key, due in compute.items() if due]
    for i, track in enumerate(tracks):
        own = [key for key, board in board_of.items() if board == i]
        left = [key for key in todo if board_of.get(key) == i]
        if own:
            told = f", {_time([seconds[key] for key in left], slots)}" if times else ""
            print(f"board {i}: {track}: {len(own)} cells, {len(left)} to compute{told}")
    if times:
        print(_time([seconds[key] for key in todo], slots, training=True))
    told = f", {len(changed)} stored rows are stale" if changed else ""
    print(f"{len(compute)} cells, {len(todo)} to compute{told}")


def _time(seconds: Sequence[float | None], slots: int, training: bool = False) -> str:
    """`about 3 min`; unknown where no stored row is like one of the cells."""
    if not seconds:
        return "no time" if not training else "nothing to compute"
    known = [s for s in seconds if s is not None]
    if training and not known:
        return "time: unknown (no stored row of such cells; the estimate comes with the first results)"
    told = about(sum(known) / min(slots, len(seconds))) if known else ""
    missing = len(seconds) - len(known)
    told = (
        f"about {told}" + (f" and an unknown time for {missing} cells" if missing else "") if known else "time unknown"
    )
    return f"time: {told} with {slots} at a time, without training" if training else told
