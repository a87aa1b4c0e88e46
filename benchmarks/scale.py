"""What the harness costs beside the cells, and how a cluster would help.

    python benchmarks/scale.py plan              10,000 cells: from a suite to a plan, and what is left to compute
    python benchmarks/scale.py workers           cells per second with one and two workers, and the cost of a cell
    python benchmarks/scale.py simulate STORE    the wall time of the rows of a store on 1 to 1,000 workers
    python benchmarks/scale.py memory            the largest memory while a cell of 10,000 images is computed

`simulate` computes nothing: it schedules the measured seconds of the rows as the executors do (cells of one model with
one worker, idle workers take the longest cell of the queue that has most left to do). Trained networks are counted
once, with the cell that trained them, as on a shared file system. Starting a worker costs START seconds. It is a
simulation, not a measurement.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from siegebench.cells import Cell, Result
from siegebench.executors.slots import _Queues, longest_first
from siegebench.memory import kept
from siegebench.store import Store

START = 6.0  # seconds until a worker has imported torch and timm
TURNS = 3  # of measuring one worker, then two
DIGITS = {"set": "digits", "count": 50}
MODEL = {"name": "byobnet_tiny", "recipe": {"epochs": 2}}


def suite(folder: Path, **board: Any) -> Path:
    whole = {"suite": "scale", "data": DIGITS, "models": [MODEL], "boards": [{"track": "white_box", **board}]}
    file = folder / "scale.yaml"
    file.write_text(yaml.safe_dump(whole))
    return file


def timed(what: str, call: Callable[[], Any]) -> Any:
    start, cpu = time.perf_counter(), time.process_time()
    out = call()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{what:48s} {wall:7.2f} s, CPU {cpu:6.2f} s", flush=True)
    return out


def plans(count: int) -> None:
    """From a suite to a plan, and the comparison with a store that holds all of its rows."""
    from siegebench.config import load_suite
    from siegebench.heads import SETTLED
    from siegebench.plan import plan
    from siegebench.reuse import reason, reasons
    from siegebench.workspace import Settings

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        eps = [f"{k}/255" for k in range(1, 11)]
        file = suite(
            folder, attacks=["fgsm", "pgd", "apgd", "mifgsm", "deepfool"], search="none", measures=[],
            threats=[{"norm": "linf", "eps": e} for e in eps], seeds=list(range(count // 50)),
        )  # fmt: skip
        plan(load_suite(str(file)))  # imports, and the digests of the data
        planned = timed(f"a suite to {count:,} cells", lambda: plan(load_suite(str(file))))
        store, settings = Store(folder / "store"), Settings(root=str(folder / "store"))
        cells: Sequence[Cell] = planned.cells
        timed("their comparison with an empty store", lambda: reasons(cells, store, settings))
        timed("writing their rows", lambda: [store.put(_row(cell)) for cell in cells])
        time.sleep(SETTLED)
        timed("with a full store, each row read", lambda: [reason(cell, store, settings) for cell in cells])
        timed("the same, and the heads of the rows written", lambda: reasons(cells, store, settings))
        for _ in range(3):
            left = timed("with a full store whose heads are known", lambda: reasons(cells, store, settings))
            assert not any(left.values())


def _row(cell: Cell) -> Result:
    from siegebench import sources
    from siegebench.cells import pack, rate

    outcome = pack([True] * 50)
    rows = Result(
        cell=cell, metrics={"clean_acc": rate(50, 50), "robust_acc": rate(20, 50)},
        samples={"n": 50, "clean": outcome, "robust": outcome}, timing={"seconds": 1.0},
    )  # fmt: skip
    return replace(rows, sources=sources.of(cell))


def workers(count: int) -> None:
    """Cells per second with one and two workers of one thread, and what a cell costs beside its own work.

    The time is that from the start of the first cell to the end of the last, so that the imports of the workers are
    left out. Both are measured by turns, because other work on the machine slows one turn more than another.
    """
    from siegebench import api
    from siegebench.config import load_suite
    from siegebench.workspace import Settings

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        board = {"attacks": [{"name": "pgd", "steps": 40, "early_stop": False}], "search": "none", "measures": []}
        threats = [{"norm": "linf", "eps": "4/255"}]
        whole = load_suite(str(suite(folder, threats=threats, seeds=list(range(count)), **board)))
        settings = Settings(root=str(folder / "store"), threads=1)
        api.run(load_suite(str(suite(folder, threats=threats, seeds=[count], **board))), settings)  # trains the network
        rates: dict[int, list[float]] = {1: [], 2: []}
        for slots in (1, 2) * TURNS:
            rows = api.run(whole, settings, how="local", slots=slots, again=True).results
            ends = [datetime.fromisoformat(row.timing["ended"]) for row in rows]
            starts = [datetime.fromisoformat(row.timing["started"]) for row in rows]
            wall = (max(ends) - min(starts)).total_seconds()
            own = sum(float(row.timing["seconds"]) for row in rows)
            rates[slots].append(len(rows) / wall)
            cost = 1e3 * (wall * slots - own) / len(rows)
            print(f"{slots} workers: {rates[slots][-1]:6.2f} cells/s, {cost:6.1f} ms a cell beside its own {own:.1f} s")
        ratios = ", ".join(f"{two / one:.2f}" for one, two in zip(rates[1], rates[2], strict=True))
        print(f"two workers are {ratios} times as fast as one")


def memory(images: int, attack: str) -> None:
    """Memory of this process before a cell of so many images, and the largest while it is computed."""
    from siegebench.config import load_suite
    from siegebench.evaluation import evaluate
    from siegebench.plan import plan
    from siegebench.workspace import Settings, Workspace

    def gigabytes(line: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{line}:")[1].split()[0]) / 2**20

    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), {"set": "cifar10_jpeg", "count": images}
        board = {"attacks": [attack], "search": "none", "measures": [], "threats": [{"norm": "linf", "eps": "8/255"}]}
        whole = load_suite(str(suite(folder, **board)), [f"data={json.dumps(data)}", "models=[cifar_resnet20]"])
        planned = plan(whole)
        (cell,) = (c for c in planned.cells if c.doing["name"] == attack)
        ws = Workspace(Settings(root=str(folder / "store"), threads=1, device="cpu", specs=planned.specs))
        before = gigabytes("VmRSS")
        with kept():  # as `run_cell` does
            row = timed(f"{attack} on {images:,} images", lambda: evaluate(cell, ws))
        print(f"{row.status}: {before:.2f} GiB before, at most {gigabytes('VmHWM'):.2f} GiB")


def simulated(cells: Sequence[tuple[Cell, float]], count: int) -> float:
    """Seconds until the last of the workers has ended."""
    seconds = {cell.key: s for cell, s in cells}

    def of(cell: Cell) -> float:
        return seconds[cell.key]

    queues = _Queues(longest_first([cell for cell, _ in cells], of), count, of)
    free = [(START, slot) for slot in range(count)]
    end = 0.0
    while free:
        now, slot = heapq.heappop(free)
        cell = queues.next(slot)
        if cell is not None:
            heapq.heappush(free, (now + seconds[cell.key], slot))
            end = max(end, now + seconds[cell.key])
    return end


def simulate(store: Path) -> None:
    rows = [row for row in Store(store).rows() if row.timing.get("seconds") is not None]
    cells = [(row.cell, float(row.timing["seconds"])) for row in rows]
    total, longest = sum(s for _, s in cells), max(s for _, s in cells)
    print(f"{len(cells)} cells, {total:.0f} s in all, the longest {longest:.0f} s (a simulation)")
    print("workers    wall s   speed-up   busy %   worker hours")
    for count in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000):
        wall = simulated(cells, count)
        used = min(count, len(cells))
        print(
            f"{count:7d} {wall:9.0f} {total / wall:10.1f} {100 * total / (wall * used):8.0f} {wall * used / 3600:14.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plan", "workers", "simulate", "memory"])
    parser.add_argument("store", nargs="?", type=Path)
    parser.add_argument("--cells", type=int, help="default: 10,000 for plan, 200 for workers")
    parser.add_argument("--images", type=int, default=10_000, help="for memory")
    parser.add_argument("--attack", default="pgd", help="for memory")
    given = parser.parse_args()
    if given.what == "memory":
        memory(given.images, given.attack)
    elif given.what == "plan":
        plans(given.cells or 10_000)
    elif given.what == "workers":
        workers(given.cells or 200)
    elif given.store is None:
        parser.error("simulate: expected the folder of a store")
    else:
        simulate(given.store)


if __name__ == "__main__":
    main()
