"""The page: complete, linked, deterministic, harmless, and alive in a real browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import export, page

from siegebench.cells import Result
from tests import rows as make
from tests.rows import attacked, flag

from .browser import Browse, Built, Page, built, driven, needs_browser, title

EVIL = "<img src=x onerror=\"document.title='owned'\">"


def test_every_entry_and_every_row_is_there_in_order(everything: Built) -> None:
    text, boards, results = everything
    found = Page(text)
    assert len([c for c in found.classes("tr") if c.startswith("line ")]) == sum(len(b.lines) for b in boards)
    assert {f"row-{r.cell.key[:16]}" for r in results} <= set(found.ids)
    places = re.findall(r'<span class="place[^>]*>([^<]*)<', text)
    assert places == [line.place.replace("-", "–") for b in boards for line in b.ranked]
    assert len([c for c in found.classes("table") if "small" not in c]) == len(boards)
    assert text.count('role="img"') == len(boards)  # every board has its figure
    assert all(a.get("scope") for t, a in found.tags if t == "th")
    words = " ".join(found.words)
    for row in results:
        assert f"siegebench show {row.cell.key[:16]}" in words
        assert all(f["evidence"] in words for f in row.flags)
    assert "out of memory while compiling" in words
    assert "secret-host" not in text


def test_every_number_leads_to_a_row_or_to_its_entry(everything: Built) -> None:
    text, boards, _ = everything
    found = Page(text)
    assert len(found.ids) == len(set(found.ids))
    assert {link[0] for link in found.links} == {"#"}
    assert {link[1:] for link in found.links} <= set(found.ids)
    for board in boards:
        for line in board.lines:
            for column in board.columns:
                number = line.number(column.id)
                assert number.value is None or number.keys, (board.id, line.title, column.id)
                assert set(number.keys) <= set(line.keys)


def test_nothing_is_fetched_from_anywhere(everything: Built) -> None:
    found = Page(everything[0])
    assert not [t for t, _ in found.tags if t in ("link", "img", "iframe", "object", "embed", "base", "form")]
    assert not [a for _, a in found.tags if {"src", "srcset", "action", "background"} & a.keys()]
    assert not [name for _, a in found.tags for name in a if name.startswith("on")]
    outside = everything[0].replace("http-equiv", "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", outside)


def test_the_policy_allows_the_script_that_is_there_and_no_other(
    everything: Built,
) -> None:
    found = Page(everything[0])
    data, script = found.scripts
    policy = next(str(a["content"]) for t, a in found.tags if t == "meta" and "http-equiv" in a)
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert json.loads(data) == json.loads(export.as_json(everything[1]))


def test_the_same_rows_in_any_order_give_the_same_bytes(everything: Built) -> None:
    results = [Result.from_dict(json.loads(json.dumps(r.as_dict()))) for r in everything[2]]
    random.Random(5).shuffle(results)
    assert built([*results, results[0]])[0] == everything[0]


def hostile() -> list[Result]:
    """A row whose every word comes from an enemy."""
    words: dict[str, Any] = {"model": EVIL, "defense": EVIL + "</script><script>document.title='owned'</script>"}
    data = {**make.DATA, "name": EVIL}
    row = attacked("autoattack", 90, data=data, **words, flags=[flag(EVIL, "flag", EVIL)])
    row.flags.append(flag("x", EVIL, EVIL))  # this and the next two a store would refuse
    row.metrics[EVIL] = {"value": 0.5}
    row.counts[EVIL] = 3.0
    row.env["device"] = EVIL
    failed = make.broken(attacked(EVIL, 3, data=data, **words), EVIL)
    javascript = attacked("autoattack", 90, data=data, model="javascript:alert(1)", defense="'\" onmouseover='alert(1)")
    return [row, failed, javascript]


def test_nothing_of_a_row_becomes_markup() -> None:
    text = built(hostile())[0]
    found = Page(text)
    assert "owned" in text
    assert "<img" not in text
    assert len(found.scripts) == 2
    assert not [name for _, a in found.tags for name in a if name.startswith("on")]
    assert EVIL in " ".join(found.words)  # shown as it is
    assert {link[0] for link in found.links} == {"#"}
    json.loads(found.scripts[0])


def test_controls_and_unranked_entries_are_marked(everything: Built) -> None:
    text = everything[0]
    assert text.count("control, caught") == 2
    assert "<b>2/2</b><span>planted controls caught</span>" in text
    assert "required attack missing: autoattack" in text
    silent = [attacked("pgd", 150, defense="logit_scaling"), attacked("autoattack", 5, defense="logit_scaling")]
    loud = built(silent)[0]
    assert "control, NOT CAUGHT" in loud
    assert "no check fired on it" in loud


def test_an_empty_store_gives_a_page_too() -> None:
    assert "nothing to rank" in page.render([], [])


def test_a_board_without_any_number_has_no_figure() -> None:
    text = built([make.broken(attacked("autoattack", 0))])[0]
    assert 'role="img"' not in text
    assert "failed: autoattack" in text


# ---------------------------------------------------------------------------------------------------- a real browser


@needs_browser
def test_the_script_runs_under_its_own_policy_and_opens_the_row(browse: Browse, everything: Built) -> None:
    key = everything[1][0].lines[0].keys[0][:16]
    dom, console = browse(everything[0], hash=f"#row-{key}")
    assert console == ""
    assert re.search(rf'<details class="row ok" open="">(?:(?!<details).)*<div id="row-{key}"', dom, re.S)
    assert '<output id="count" aria-live="polite">31 entries</output>' in dom


@needs_browser
def test_an_enemy_in_the_rows_does_nothing(browse: Browse) -> None:
    text = built(hostile())[0]
    dom, console = browse(text)
    assert "<title>siegebench leaderboard</title>" in dom
    assert console == ""
    # the escaping alone holds too, without the policy
    assert title(browse(driven(text, "document.title = JSON.stringify(document.title)"))[0]) == "siegebench leaderboard"


@needs_browser
def test_sorting_and_filtering(browse: Browse, everything: Built) -> None:
    steps = """
    const board = document.querySelector(".board"), seen = {};
    const all = (where, read) => [...board.querySelectorAll(where)].map(read);
    const names = () => all(".ranked .entry b", e => e.textContent);
    const heads = () => [...board.querySelectorAll("tr.heads th")].map(e => e.textContent.trim());
    const clean = () => all(".ranked .line", e => e.children[heads().indexOf("Clean %")].textContent.trim());
    const head = text => [...board.querySelectorAll("tr.heads th")].find(e => e.textContent.trim().startsWith(text));
    const click = text => { head(text).querySelector("button").click(); return head(text).getAttribute("aria-sort"); };
    seen.before = names();
    seen.down = click("Clean"); seen.cleanDown = clean();
    seen.up = click("Clean"); seen.cleanUp = clean();
    seen.missing = click("eot"); seen.last = all(".ranked .line", e => e.lastElementChild.textContent.trim());
    click("eot"); seen.lastUp = all(".ranked .line", e => e.lastElementChild.textContent.trim());
    seen.sorted = board.querySelectorAll("[aria-sort]").length;
    seen.unrankedLast = board.querySelector("tbody:last-of-type").className;
    seen.byRank = click("Rank"); seen.back = names();
    const field = document.getElementById("filter");
    field.value = "Trades white"; field.dispatchEvent(new Event("input"));
    seen.words = document.getElementById("count").textContent;
    field.value = "logit_inflation"; field.dispatchEvent(new Event("input"));
    seen.count = document.getElementById("count").textContent;
    seen.shown = all("tr.line:not([hidden]) .entry b", e => e.textContent);
    seen.hash = location.hash;
    seen.wide = document.documentElement.scrollWidth <= innerWidth;
    document.title = JSON.stringify(seen);
    """
    dom, console = browse(driven(everything[0], steps), "--window-size=390,800")
    assert console == ""
    seen, board = title(dom), everything[1][0]
    assert seen["before"] == [line.names["defense"] for line in board.ranked]
    values = sorted((100 * (line.value("clean_acc") or 0) for line in board.ranked), reverse=True)
    assert [float(v) for v in seen["cleanDown"]] == pytest.approx(values)
    assert [float(v) for v in seen["cleanUp"]] == pytest.approx(values[::-1])
    assert (seen["down"], seen["up"], seen["sorted"]) == ("descending", "ascending", 1)
    assert seen["last"][-2:] == seen["lastUp"][-2:] == ["–", "–"]  # what is missing is never on top
    assert seen["last"][0] == "49.0"
    assert seen["unrankedLast"] == "unranked"
    assert seen["back"] == seen["before"]
    assert seen["words"] == seen["count"] == "1 of 31 entries"
    assert seen["shown"] == ["logit_scaling"]
    assert seen["hash"] == "#q=logit_inflation"
    assert seen["wide"]  # a phone scrolls the table, never the page


@needs_browser
def test_a_filter_can_be_linked(browse: Browse, everything: Built) -> None:
    dom, _ = browse(everything[0], hash="#q=neural_cleanse")
    assert "1 of 31 entries" in dom


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_drawn_in_both_schemes(browse: Browse, tmp_path: Path, scheme: str, everything: Built) -> None:
    image = pytest.importorskip("PIL.Image")
    shot = tmp_path / "shot.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    browse(everything[0], "--window-size=1000,900", f"--screenshot={shot}", *dark)
    pixels = image.open(shot).convert("L")
    low, high = pixels.getextrema()
    assert high - low > 180  # text on a ground
    assert (pixels.getpixel((3, 3)) < 60) == (scheme == "dark")


def test_pictures_are_shown_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    _, boards, results = built()
    png = b"\x89PNG\r\n\x1a\n" + bytes(20)
    beside = {r.cell.key: [("7", png), ("8", b"<svg>"), ("9", png + bytes(page.PICTURE_BYTES))] for r in results}

    def text() -> str:
        return page.render(boards, results, lambda cell, most: beside[cell.key][:most])

    def shown() -> list[dict[str, str | None]]:
        """The pictures in the sections of rows; some of them are beside the table too."""
        return [a for t, a in Page(text()).tags if t == "img" and "data-image" in a]

    assert {a["src"] for a in shown()} == {"data:image/png;base64," + base64.b64encode(png).decode()}
    assert [a["data-image"] for a in shown()] == ["7"] * len(results)
    monkeypatch.setattr(page, "PAGE_BYTES", 3 * len(png))
    assert len(shown()) == 3
