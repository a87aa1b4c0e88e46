"""LTD: whose labels the student learns, and at which temperature."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from siegebench.train import Recipe, train

from .two_features import EPS, ONE, RECIPE, SHORT, against_the_other_class, build, granted, model, two_features


def test_the_labels_are_those_of_the_given_model_at_its_temperature() -> None:
    T, beta, data = 5.0, 3.0, two_features(32)
    given, student = model(), model()
    this = build("ltd", temperature=T, beta=beta).problem(student, granted(data), 0)
    student.load_state_dict(student.fresh(9).state_dict())  # the teacher is a copy
    x, y = data.pixels(), data.labels
    x_adv = (x + 0.1).clamp(0, 1)
    q = F.softmax(given(x) / T, dim=1)
    soft = -(q * student(x).log_softmax(dim=1)).sum(dim=1).mean()
    robust = F.kl_div(student(x_adv).log_softmax(dim=1), student(x).softmax(dim=1), reduction="batchmean")
    assert torch.allclose(this.outer(student, x, y, x_adv, student(x_adv)), soft + beta * robust, atol=1e-6)
    assert torch.allclose(this.outer(student, x, 1 - y, x_adv, student(x_adv)), soft + beta * robust, atol=1e-6)


def test_the_student_is_robust_and_the_teacher_is_not() -> None:
    data, teacher = two_features(256), model()
    train(teacher, data, Recipe(**RECIPE), 0)  # type: ignore[arg-type]
    assert against_the_other_class(teacher, data, EPS) < 0.2
    entry = build("ltd", temperature=2, eps=EPS, step=EPS, steps=2, recipe=SHORT)
    student = entry.apply(teacher, granted(data), ONE)
    assert against_the_other_class(student, data, EPS) > 0.85
