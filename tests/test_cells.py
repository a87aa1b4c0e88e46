"""Intervals, packed outcomes and keys of cells."""

from __future__ import annotations

import json
import math
import random
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from siegebench.cells import Cell, canonical, pack, rate, unpack

from .properties import quick


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 100_000), share=st.floats(0, 1))
def test_rate_is_the_wilson_interval(n: int, share: float) -> None:
    k = round(share * n)
    found = rate(k, n)
    interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert found["value"] == pytest.approx(k / n, abs=1e-6)
    assert found["low"] == pytest.approx(interval.low, abs=1e-6)
    assert found["high"] == pytest.approx(interval.high, abs=1e-6)
    assert found["n"] == n
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


def test_rate_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="at least one"):
        rate(0, 0)


@quick
@given(bits=st.lists(st.booleans(), max_size=70))
def test_packed_outcomes_come_back(bits: list[bool]) -> None:
    text = pack(bits)
    assert unpack(text, len(bits)).tolist() == bits
    assert json.loads(json.dumps(text)) == text
    assert pack(torch.tensor(bits, dtype=torch.bool)) == text
    assert len(text) == 4 * math.ceil(math.ceil(len(bits) / 8) / 3)


CELL: dict[str, Any] = {
    "track": "white_box",
    "data": {"name": "digits", "split": "test", "digest": "d" * 64, "classes": 10},
    "model": {"name": "net", "version": 1, "width": 8},
    "defense": {"name": "none", "version": 1},
    "attack": {"name": "eot", "version": 1, "looks": 20, "attack": {"name": "pgd", "version": 1, "steps": 20}},
    "threat": {"norm": "linf", "eps": 8 / 255, "access": "gradient", "queries": None},
    "seed": 0,
}


CHANGES: dict[str, Any] = {
    "track": "query",
    "data": {**CELL["data"], "digest": "e" * 64},
    "model": {**CELL["model"], "width": 9},
    "defense": None,
    "attack": {**CELL["attack"], "attack": {"name": "pgd", "version": 1, "steps": 21}},
    "measure": {"name": "masking", "version": 1},
    "backdoor": {"name": "badnets", "version": 1},
    "detector": {"name": "strip", "version": 1},
    "corruption": {"name": "fog", "version": 1},
    "camouflage": {"name": "flat", "version": 1},
    "certifier": {"name": "ibp", "version": 1},
    "leak": {"name": "dlg", "version": 1},
    "sharing": {"name": "noise", "version": 1},
    "client": {"batch": 2, "state": "initial", "smoothing": 0.0, "mixup": False, "gallery": 500},
    "study": {"name": "fsba", "version": 1},
    "radii": [0.25, 0.5],
    "theft": {"name": "knockoff", "version": 1},
    "pool": CELL["data"],
    "copy": CELL["model"],
    "stage": {"scenes": 64, "ss": 4},
    "severities": [1, 2, 3],
    "inputs": {"kind": "ood", "data": CELL["data"]},
    "threat": {**CELL["threat"], "eps": 8.000001 / 255},
    "surrogates": [CELL["model"]],
    "adaptive": True,
    "seed": 1,
}


def shuffled(value: Any, order: random.Random) -> Any:
    if not isinstance(value, dict):
        return value
    items = [(k, shuffled(v, order)) for k, v in value.items()]
    order.shuffle(items)
    return dict(items)


@quick
@given(st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_the_order_of_its_parts(order: random.Random) -> None:
    assert Cell(**shuffled(CELL, order)).key == Cell(**CELL).key
    # a row survives JSON: floats keep every digit
    assert Cell.from_dict(json.loads(json.dumps(Cell(**CELL).as_dict()))).key == Cell(**CELL).key


def test_every_part_of_a_cell_changes_its_key() -> None:
    assert set(CHANGES) == {f.name for f in fields(Cell)}, "a new field of Cell needs a line in CHANGES"
    keys = {name: Cell(**{**CELL, name: value}).key for name, value in CHANGES.items()}
    assert len({Cell(**CELL).key, *keys.values()}) == len(CHANGES) + 1


def test_canonical_json_refuses_what_json_cannot_say() -> None:
    assert canonical({"b": 1, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))
