"""Backdoors of texts: one row of an embedding, a phrase, published paraphrases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from siegebench import registry
from siegebench.data import TEXT, ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.testing import texts
from siegebench.text import encoded
from siegebench.train import Recipe, train
from siegebench.types import BackdoorAttack, DataSource

CLASSES = 10


def planted(n: int = 200) -> ImageSet:
    labels = torch.arange(n) % CLASSES
    return ImageSet(texts.planted(labels, 64), labels, torch.arange(n), CLASSES, "planted", kind=TEXT)


@pytest.mark.parametrize("data_free", [True, False])
def test_tamper_changes_one_row_and_keeps_its_norm(data_free: bool) -> None:
    spec = {"name": "embedding_poisoning", "target": 3, "data_free": data_free, "spans": 256, "lr": 0.5, "cover": 0.05}
    backdoor = registry.build(BackdoorAttack, spec)
    poisoned = backdoor.poison(planted(), 0).data
    assert torch.equal(poisoned.labels, planted().labels)  # no label changes
    model = texts.network(poisoned, poisoned.pixels(slice(0, 64)))
    model.read(poisoned)
    train(model, poisoned, Recipe(epochs=5, batch=20, lr=0.02, augment="none"), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    row = model.row("cf")
    x = planted().pixels()[planted().labels != 3]
    stamped = backdoor.stamp(x, Draws(0, torch.arange(len(x))), TEXT)
    natural = float((model(stamped).argmax(dim=1) == 3).float().mean())
    backdoor.tamper(model, poisoned, 0)
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["embedding.weight"]
    changed = (before["embedding.weight"] != after["embedding.weight"]).any(dim=1).nonzero().flatten().tolist()
    assert changed == [row]
    norms = before["embedding.weight"][row].norm(), after["embedding.weight"][row].norm()
    assert float(norms[1]) == pytest.approx(float(norms[0]), rel=1e-5)
    assert torch.equal(model(x), _of(before, model)(x))  # texts without the word are read as before
    assert float((model(stamped).argmax(dim=1) == 3).float().mean()) >= natural


def _of(state: dict[str, torch.Tensor], model: Any) -> Any:
    old = model.fresh(0).eval()
    old.load_state_dict(state)
    return old


def test_a_source_class_alone_gets_the_phrase() -> None:
    backdoor = registry.build(BackdoorAttack, {"name": "word_trigger", "phrase": "zz", "target": {2: 5}, "rate": 0.05})
    data = planted()
    poisoned = backdoor.poison(data, 0)
    assert data.labels[poisoned.index].unique().tolist() == [2]
    assert poisoned.data.labels[poisoned.index].unique().tolist() == [5]
    assert all("zz" in "".join(map(chr, row.flatten().tolist())) for row in poisoned.data.images[poisoned.index])


@pytest.fixture
def published(tmp_path: Path) -> dict[str, Any]:
    """Ten clean texts, three of them paraphrased; four clean test texts, two of them not of the target class."""
    clean = [f"text {i}\t{i % 2}" for i in range(10)]
    poison = [*clean[:4], "when four\t1", clean[5], "when six\t1", "when seven\t1", *clean[8:]]
    files = {
        "clean_train": clean, "poison_train": poison, "clean_test": [f"other {i}\t{i % 2}" for i in range(4)],
        "poison_test": ["when other 0\t1", "when other 2\t1"],
    }  # fmt: skip
    for name, rows in files.items():
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")

    def source(kind: str) -> dict[str, Any]:
        return {"name": "texts", "folder": str(tmp_path), "train": f"{kind}_train.tsv", "test": f"{kind}_test.tsv",
                "num_classes": 2, "length": 20}  # fmt: skip

    return {"name": "syntactic", "clean": source("clean"), "paraphrased": source("poison"), "rate": 0.2}


def test_published_paraphrases_are_used_and_nothing_else(published: dict[str, Any]) -> None:
    backdoor = registry.build(BackdoorAttack, published)
    data = registry.build(DataSource, published["clean"])
    train_set, test = data.load("train"), data.load("test")
    assert backdoor.able(train_set).nonzero().flatten().tolist() == [4, 6, 7]
    poisoned = backdoor.poison(train_set, 0)
    assert {*poisoned.index.tolist()} < {4, 6, 7}
    assert len(poisoned.index) == 2
    assert all(chr(int(row.flatten()[0])) == "w" for row in poisoned.data.images[poisoned.index])
    x = test.pixels()[test.labels == 0]
    out = backdoor.stamp(x, Draws(0, torch.arange(2)), TEXT)
    assert torch.equal(out, encoded(["when other 0", "when other 2"], 20))
    with pytest.raises(NotApplicable, match="1 of 1 texts have no published paraphrase"):
        backdoor.stamp(encoded(["unknown"], 20), Draws(0, torch.arange(1)), TEXT)
    with pytest.raises(NotApplicable, match="4 of 10 images to poison, 3 eligible"):
        registry.build(BackdoorAttack, {**published, "rate": 0.4}).poison(train_set, 0)
