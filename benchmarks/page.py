"""What the page of the leaderboard costs with many rows: ranking, rendering, and a reader's work in Chromium.

    python benchmarks/page.py                    10,000 rows of all kinds that the tests of the page know
    python benchmarks/page.py STORE              the rows of a store, repeated until there are 10,000
    python benchmarks/page.py --html FILE        any page
    python benchmarks/page.py --shots FOLDER     also pictures: 1280 and 420 pixels wide, light and dark

Repeated rows are those of further models, defenses or detectors, with other images lost. Chromium is driven through
the pipe of its own debugging protocol. CPU seconds are those of all its processes together, so that other work on the
machine does not count; `wall` is what a reader would wait on this machine now.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from siegebench.leaderboard import page, rank

from siegebench.cells import Result, pack, unpack
from siegebench.screenshot import FLAGS, PROGRAMS
from siegebench.store import Store

OUTCOMES = ("clean", "robust")  # of `samples`: what is right about each image
TICKS = os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------------------- the rows


def repeated(rows: Sequence[Result], count: int) -> list[Result]:
    """`count` rows: the given ones, then those of entries `NAME_1`, `NAME_2`, ... with other outcomes."""
    return [_of_another(rows[i % len(rows)], i // len(rows)) for i in range(count)]


def _of_another(row: Result, turn: int) -> Result:
    if turn == 0:
        return row
    slot = "detector" if row.cell.detector else "defense" if row.cell.backdoor else "model"  # stays on its board
    entry = getattr(row.cell, slot)
    cell = replace(row.cell, **{slot: {**entry, "name": f"{entry['name']}_{turn}"}})
    samples = dict(row.samples)
    for name in OUTCOMES:
        if name in samples:
            kept = unpack(samples[name], int(samples["n"]))
            samples[name] = pack(np.random.default_rng(turn).permutation(kept))  # alike for all attacks on an entry
    return replace(row, cell=cell, samples=samples)


def timed(what: str, call: Callable[[], Any]) -> Any:
    start, cpu = time.perf_counter(), time.process_time()
    out = call()
    print(f"{what:42s} CPU {time.process_time() - cpu:6.2f} s, wall {time.perf_counter() - start:6.2f} s", flush=True)
    return out


# ----------------------------------------------------------------------------------------------------------- a browser


class Browser:
    """A headless Chromium with one page, driven through the pipe of its debugging protocol."""

    def __init__(self, folder: Path) -> None:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            raise SystemExit(f"benchmarks/page.py needs one of {', '.join(PROGRAMS)}; none is installed")
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()

        def places() -> None:  # Chromium reads from 3 and writes to 4
            read, write = os.dup(to_read), os.dup(to_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        command = [program, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}/profile", "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=places, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._rest, self._number, self._session = b"", 0, ""
        (target, *_) = (t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self.send("Page.enable")
        self.send("Performance.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("Chromium has ended")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def run(self, script: str) -> Any:
        """The value of an expression, which may be a promise."""
        out = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in out:
            raise RuntimeError(out["exceptionDetails"]["exception"].get("description", script))
        return out["result"].get("value")

    def size(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def shot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def seconds(self) -> float:
        """CPU seconds of all processes of the browser so far."""
        return sum(_ticks(pid) for pid in _group(self._process.pid)) / TICKS

    def close(self) -> None:
        self.send("Browser.close")
        self._process.wait(timeout=60)


def _group(leader: int) -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _session(int(p.name)) == leader]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _ticks(pid: int) -> int:
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except FileNotFoundError:
        return 0
    return int(user) + int(system)


# ------------------------------------------------------------------------------------------------------- what is done

DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))"
WATCH = """
(() => {
  const look = () => {
    if (document.querySelector(".board tbody tr.line, .board tbody tr:not(.divide)")) {
      requestAnimationFrame(() => { window.readable = performance.now(); });
    } else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})()
"""
LOADED = """
new Promise(done => {
  const look = () => document.readyState === "complete" && window.readable ? done(0) : setTimeout(look, 20);
  look();
})
"""
SWITCHES = "widest.closest('.sheet').querySelectorAll('.switch').forEach(box => { box.checked = true; })"
WIDEST = """
const cells = table => table.querySelectorAll("tr.line > *").length;
window.widest = [...document.querySelectorAll(".wide table")].sort((a, b) => cells(b) - cells(a))[0];
[widest.querySelectorAll("tr.line").length, widest.querySelectorAll("tr.heads th").length]
"""


def read(file: Path, shots: Path | None) -> None:
    """Open a page, and do what a reader does; prints what each step costs."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(Path(folder))
        browser.size(1280, 900)
        browser.send("Page.addScriptToEvaluateOnNewDocument", source=WATCH)

        def step(what: str, script: str, goal: float | None = None) -> Any:
            start, before = time.perf_counter(), browser.seconds()
            out = browser.run(f"(async () => {{ const out = await {script}; await {DRAWN}; return out; }})()")
            cpu, wall = browser.seconds() - before, time.perf_counter() - start
            told = "" if goal is None else f"   (goal {goal:g} s: {'held' if cpu <= goal else 'MISSED'})"
            print(f"{what:42s} CPU {cpu:6.2f} s, wall {wall:6.2f} s{told}", flush=True)
            return out

        start, before = time.perf_counter(), browser.seconds()
        browser.send("Page.navigate", url=file.resolve().as_uri())
        browser.run(LOADED)
        browser.run(DRAWN)
        cpu = browser.seconds() - before
        first = browser.run("window.readable") / 1000
        print(f"{'the first board can be read':42s} {'':12s} wall {first:6.2f} s")
        print(f"{'the page is complete':42s} CPU {cpu:6.2f} s, wall {time.perf_counter() - start:6.2f} s")
        print(f"{'elements of the page':42s} {browser.run('document.querySelectorAll(`*`).length'):,}")
        lines, columns = browser.run(WIDEST)
        print(f"{'largest table':42s} {lines} lines, {columns} columns")
        step("switching on all of its columns", SWITCHES)
        step("scrolling to it", "widest.scrollIntoView()")
        for number in (2, 3, columns - 1):
            step(
                f"sorting it by column {number + 1}",
                f"widest.querySelectorAll('tr.heads th')[{number}].querySelector('button').click()", 0.5,
            )  # fmt: skip
        for typed in ("t", "tr", "tra", "trad", "tr", ""):
            step(
                f"filter: {typed!r}",
                f"(() => {{ field.value = {typed!r}; field.dispatchEvent(new Event('input')); }})()", 0.2,
            )  # fmt: skip
        step("opening the rows of an entry", "widest.querySelector('tbody .entry a').click()", 0.5)
        step("following a number to its row", "[...widest.querySelectorAll('td.primary a')].at(-1).click()", 0.5)
        _scroll(browser)
        if shots is not None:
            take(browser, file, shots)
        browser.close()


SCROLL = """
(async () => {
  const frame = () => new Promise(done => requestAnimationFrame(done));
  scrollTo(0, 0); await frame();
  let steps = 0, last = await frame(), longest = 0;
  for (let y = 0; y < document.documentElement.scrollHeight && steps < 200; y += 600, steps++) {
    scrollTo(0, y);
    const now = await frame();
    longest = Math.max(longest, now - last);
    last = now;
  }
  return [steps, longest];
})()
"""


def _scroll(browser: Browser) -> None:
    before = browser.seconds()
    steps, longest = browser.run(SCROLL)
    cpu = browser.seconds() - before
    told = f"scrolling {steps} times by 600 pixels"
    print(f"{told:42s} CPU {1000 * cpu / steps:6.0f} ms a step, longest frame {longest:.0f} ms")


def take(browser: Browser, file: Path, folder: Path) -> None:
    """Pictures of the top of the page and of its largest table."""
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for width in (1280, 420):
            browser.size(width, 900)
            browser.run(f"(async () => {{ scrollTo(0, 0); await {DRAWN}; }})()")
            browser.shot(folder / f"top_{width}_{scheme}.png")
            browser.run(
                f"(async () => {{ widest.closest('.board').scrollIntoView(); await {DRAWN}; await {DRAWN}; }})()"
            )
            browser.shot(folder / f"board_{width}_{scheme}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--html", type=Path, help="a page that exists; no rows are made")
    parser.add_argument("--shots", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.html is not None:
        read(given.html, given.shots)
        return
    if given.store is None:
        sys.path.append(str(Path(__file__).resolve().parent.parent))
        from tests.rows import everything

        rows = everything()
    else:
        rows = [*Store(given.store).rows()]
    rows = repeated(rows, given.rows)
    print(f"{len(rows):,} rows of {len({row.cell.track for row in rows})} tracks")
    boards = timed("ranking", lambda: rank.boards(rows))
    text = timed("rendering", lambda: page.render(boards, rows))
    entries = sum(len(board.lines) for board in boards)
    print(f"{'boards, entries, size of the page':42s} {len(boards)}, {entries:,}, {len(text) / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(text, encoding="utf-8")
        read(file, given.shots)


if __name__ == "__main__":
    main()
