"""Texts as a kind of data: code points, tokens, embeddings, budgets; nothing shows a text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from siegebench import api, ops, registry
from siegebench.config import load_suite
from siegebench.data import TEXT, split_clean
from siegebench.draws import Draws
from siegebench.errors import ConfigError, DataError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.plan import plan
from siegebench.testing import texts
from siegebench.text import UNKNOWN, content_groups, encoded, inserted, name_of, tokens
from siegebench.threat import ThreatModel
from siegebench.types import DataSource, ModelSource
from siegebench.workspace import Settings
from tests import runs

SECRET = "kumquat"  # stands in every text of the files below


def read(row: torch.Tensor) -> str:
    return "".join(chr(c) for c in row.flatten().tolist() if c)


def files(folder: Path, label: str = "0") -> None:
    """Ten texts of two classes, and five others."""
    for split, first, count in (("train", 0, 40), ("test", 40, 10)):
        rows = [f"{('cold', 'warm')[i % 2]} {SECRET} word{i}\t{i % 2}" for i in range(first, first + count)]
        rows[0] = f"cold {SECRET} word{first}\t{label}"
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")


def spec(folder: Path) -> dict[str, object]:
    return {
        "name": "texts", "folder": str(folder), "train": "train.tsv", "test": "test.tsv", "num_classes": 2,
        "length": 40,
    }  # fmt: skip


def test_words_have_one_name_wherever_they_stand() -> None:
    x = encoded(["Cold rain, cold wind", "cold", "übung-12 ü", ""], 24)
    found = tokens(x, "word")
    assert (found != 0).sum(dim=1).tolist() == [4, 1, 3, 0]
    assert int(found[0, 0]) == int(found[0, 2]) == int(found[1, 0]) == name_of("COLD")
    assert len({int(n) for n in found.flatten() if n}) == 6
    assert name_of("dloc") != name_of("cold")
    assert torch.equal(tokens(x[:1], "char"), x[:1].flatten(1).where(x[:1].flatten(1) != ord("C"), ord("c")))
    with pytest.raises(ConfigError, match="has 2 word tokens; expected one word"):
        name_of("two words")


def test_one_changed_character_is_one_of_the_length_of_the_text() -> None:
    x = encoded(["ten chars!", "four"], 16)
    z = x.clone()
    z[:, 0, 0, 1] += 1
    threat = ThreatModel(norm="l0", eps=0.5, access="none")
    assert threat.size(z, x).tolist() == pytest.approx([1 / 10, 1 / 4])
    assert threat.size(x, x).tolist() == [0, 0]


def test_the_gradient_of_a_text_is_that_of_its_embeddings() -> None:
    x, y = texts.texts(3, 64), torch.tensor([0, 1, 2])
    labels = torch.arange(20) % 10
    planted = split_of(texts.planted(labels, 64), labels)
    model = texts.network(planted, x).double()
    oracle = Oracle(model, ThreatModel(), Draws(0, torch.arange(3)))
    g, z, _ = oracle.gradient(x, lambda z: ops.cross_entropy(z, y))
    e = model.requires_grad_(False).embedded(x)
    assert g.shape == e.shape
    assert torch.allclose(z, model(x))
    assert oracle.ledger.backwards.tolist() == [1, 1, 1]
    step = torch.zeros_like(e)
    step[1, 2, 3] = 1e-6
    ahead, behind = (ops.cross_entropy(model(e + s), y)[1] for s in (step, -step))
    assert float((ahead - behind) / 2e-6) == pytest.approx(float(g[1, 2, 3]), rel=1e-5)


def split_of(x: torch.Tensor, labels: torch.Tensor):  # type: ignore[no-untyped-def]
    from siegebench.data import ImageSet

    return ImageSet(x, labels, torch.arange(len(x)), 10, "planted", kind=TEXT)


def test_a_vocabulary_is_that_of_the_training_texts_and_of_the_weights(tmp_path: Path) -> None:
    files(tmp_path)
    data = registry.build(DataSource, spec(tmp_path)).load("train")
    source = registry.build(ModelSource, {"name": "text_cnn", "size": 8, "dims": 4})
    model = source.build_for(data)
    assert (model.ids(data.pixels()) > UNKNOWN).sum() == 0  # type: ignore[operator]
    model.read(data)  # type: ignore[operator]
    ids = model.ids(data.pixels())  # type: ignore[operator]
    assert model.row(SECRET) in ids[0].tolist()  # type: ignore[operator]
    assert ids[:, 1].unique().tolist() == [model.row(SECRET)]  # type: ignore[operator]
    again = model.fresh(1).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(data.pixels()), model(data.pixels()))
    with pytest.raises(NotApplicable, match="'absent' is not in the vocabulary of text_cnn, 8 tokens"):
        model.row("absent")  # type: ignore[operator]


def test_a_phrase_is_put_before_a_word_or_behind_the_last() -> None:
    x = encoded(["one two three"] * 60, 20)
    made = {read(row) for row in inserted(x, "cf", Draws(0, torch.arange(60)))}
    assert made == {"cf one two three", "one cf two three", "one two cf three", "one two three cf"}
    cut = inserted(encoded(["abcdef ghij"] * 30, 11), "cf", Draws(0, torch.arange(30)))
    assert {read(row) for row in cut} <= {"cf abcdef g", "abcdef cf g", "abcdef g cf", "abcdef gh cf"[:11]}
    assert all("cf" in read(row) for row in cut)


def test_equal_texts_are_one_group_and_never_divided(tmp_path: Path) -> None:
    assert content_groups(encoded(["a", "b", "a"], 4)).tolist() == [0, 1, 0]
    rows = [f"same {i % 12}\t{i % 2}" for i in range(60)]
    (tmp_path / "all.tsv").write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
    whole = {"name": "texts", "folder": str(tmp_path), "whole": "all.tsv", "num_classes": 2, "length": 12}
    source = registry.build(DataSource, whole)
    train, test = source.load("train"), source.load("test")
    assert len(train) + len(test) == 60
    assert not {read(r) for r in train.images} & {read(r) for r in test.images}
    fit, clean, val = split_clean(train, share=0.2)
    assert not {read(r) for r in fit.images} & {read(r) for part in (clean, val) for r in part.images}


def test_no_message_shows_a_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files(tmp_path, label="positive")
    with pytest.raises(DataError, match=r"train.tsv: column 'label' has labels that are no integers") as caught:
        registry.build(DataSource, spec(tmp_path)).load("train")
    assert SECRET not in str(caught.value)
    files(tmp_path)
    data = registry.build(DataSource, spec(tmp_path)).load("train")
    assert SECRET not in repr(data.name) + data.digest
    outcome = api.run(str(small(tmp_path)), Settings(root=str(tmp_path / "store"), device="cpu", threads=1))
    assert [r.error for r in outcome.results if r.status != "ok"] == []
    told = capfd.readouterr()
    stored = [p.read_text() for p in (tmp_path / "store").rglob("*.json")]
    assert stored
    assert SECRET not in told.out + told.err + "".join(stored)


def small(folder: Path, attack: str = "viper") -> Path:
    return runs.suite(
        folder / "suite.yaml",
        {"track": "transfer", "surrogates": [], "attacks": [attack], "threats": [{"norm": "l0", "eps": 0.5}],
         "defenses": ["none", "unicode_nfkd"]},
        data={"set": spec(folder), "count": 10},
        models=[{"name": "text_cnn", "size": 20, "dims": 4, "recipe": {"epochs": 3, "batch": 8, "augment": "none"}}],
    )  # fmt: skip


def test_texts_go_through_the_same_evaluator(tmp_path: Path) -> None:
    files(tmp_path)
    outcome = api.run(str(small(tmp_path)), Settings(root=str(tmp_path / "store"), device="cpu", threads=1))
    rows = {str((r.cell.defense or {})["name"]): r for r in outcome.results}
    assert rows.keys() == {"none", "unicode_nfkd"}
    for row in rows.values():
        assert row.cell.data["kind"] == "text"
        assert "robust_acc_8bit" not in row.metrics
        assert row.counts["queries"] == 0
    assert rows["none"].metrics["clean_acc"]["value"] == 1.0
    assert rows["none"].metrics["robust_acc"]["value"] < 1.0


def test_an_attack_on_images_is_refused_for_texts_with_its_line(tmp_path: Path) -> None:
    files(tmp_path)
    path = small(tmp_path, "uniform_noise")
    path.write_text(path.read_text().replace("norm: l0", "norm: linf"))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "uniform_noise" in text)
    with pytest.raises(ConfigError, match=f"suite.yaml:{line}.*attack 'uniform_noise' takes .*, the data is text"):
        plan(load_suite(str(path)))


@pytest.mark.skipif("SIEGEBENCH_DATA" not in os.environ, reason="SIEGEBENCH_DATA names no folder with the texts")
@pytest.mark.parametrize(("name", "train", "test"), [("snips", 13778, 700), ("sentiment_sentences", 2422, 578)])
def test_the_published_sets_have_their_sizes(name: str, train: int, test: int) -> None:
    try:
        source = registry.build(DataSource, name)
        found = len(source.load("train")), len(source.load("test"))
    except DataError as error:
        pytest.skip(str(error))
    assert found == (train, test)
