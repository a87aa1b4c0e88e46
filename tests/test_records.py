"""The records of suites: which cells each has, and under which id and links others show it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from siegebench import records
from siegebench.errors import ConfigError
from siegebench.store import Store


def test_a_record_keeps_its_id_and_its_links(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = records.keep(store, "mine", [], ["a", "b"])
    records.link(store, first, "there", "V1")
    file = tmp_path / "suites" / "mine.json"
    when = file.stat().st_mtime_ns
    assert records.keep(store, "mine", [], ["a", "b"]).links == {"there": "V1"}
    assert file.stat().st_mtime_ns == when, "nothing has changed, so nothing is written"
    assert records.keep(store, "mine", [], ["a"]).id == first.id
    other = records.keep(store, "mine", ["defense=jpeg"], ["c"])
    assert other.id != first.id
    assert other.title == "mine defense=jpeg"
    assert other.name != first.name
    assert records.find(store, "mine")[0].id == first.id
    assert records.find(store, other.name)[0] == records.find(store, other.title)[0] == other
    third = records.keep(store, "other", ["defense=jpeg"], ["c"])
    assert records.find(store, "other")[0] == third, "there is only one"
    records.keep(store, "other", ["defense=nab"], ["d"])
    with pytest.raises(ConfigError, match=f"several suites are named 'other'.*{third.name}"):
        records.find(store, "other")
    file.write_text('{"suite": 3}')
    with pytest.raises(ConfigError, match=r"mine\.json: suite: .*remove the file"):
        records.keep(store, "mine", [], ["a"])
    assert os.listdir(tmp_path / "suites")
