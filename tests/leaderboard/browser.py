"""The markup of a page as a reader finds it, and a real browser where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import page, rank
from siegebench.leaderboard.board import Board

from siegebench.cells import Result
from tests import rows as make

ROOT = Path(__file__).resolve().parent.parent.parent
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
Built = tuple[str, list[Board], list[Result]]


class Page(HTMLParser):
    """What a reader of the page's markup finds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[str, str]] = []  # (table, text of the first cell of each line of a board)
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self._open.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        for name in ("href", "data-go"):
            if name in found:
                self.links.append(str(found[name]))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif not self._open or self._open[-1] != "style":
            self.words.append(data)

    def classes(self, tag: str) -> list[str]:
        return [str(a.get("class", "")) for t, a in self.tags if t == tag]


def built(results: list[Result] | None = None) -> tuple[str, list[Board], list[Result]]:
    results = make.everything() if results is None else results
    with make.controls(*make.PLANTED):
        boards = rank.boards(results)
    return page.render(boards, results), boards, results


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason="no axe-core here: `make axe` installs it, which needs npm")

Browse = Callable[..., tuple[str, str]]


def driven(text: str, steps: str) -> str:
    """The page with a second script that acts like a reader and leaves what it saw in the title."""
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    return without.replace("</body>", f"<script>{{ {steps} }}</script></body>")


def title(dom: str) -> Any:
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.S).group(1)))  # type: ignore[union-attr]
