"""Oracle: an attack's only access to the model. It restricts the access and counts every pass.

Attacks get gradients, scores or labels only as the threat model allows. Every image in a pass is counted for its
sample: forward passes, backward passes, queries. Views (`oracle[index]`, `repeat`, `averaged`, `backward_model`) share
one ledger.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import BudgetExhausted, ContractError, NotApplicable
from siegebench.inputs import blamed
from siegebench.ledger import CountBackward, Ledger, Nearest, SeeGradient
from siegebench.prepare import at_once, slices
from siegebench.threat import ThreatModel

Loss = Callable[[Tensor], Tensor]  # logits [n, classes] to one number a sample, [n], or several, [n, k]


class Oracle(nn.Module):
    """The model as an attack sees it.

    Args:
        model: the deployed (defended) classifier, in eval mode.
        threat: the access and the number of queries granted.
        draws: streams of the samples of this batch; a randomised model draws its noise from them, anew in each pass.
        watch: `(x, y)` to keep the best feasible point so far, for foreign attacks that may be interrupted.
        goal: target class of each sample, int64 [n]; None for an untargeted threat.
        start: points from which the attack is to start [n, ...]; None to leave that to the attack.
        most: largest number of images that the model gets at once, up to a quarter more; None: what `at_once` says.
    """

    def __init__(
        self,
        model: Classifier,
        threat: ThreatModel,
        draws: Draws,
        watch: tuple[Tensor, Tensor] | None = None,
        goal: Tensor | None = None,
        start: Tensor | None = None,
        most: int | None = None,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # not a submodule, so that attacks cannot reach its parameters
        self.model: Classifier
        self.threat, self.num_classes, self.kind = threat, model.num_classes, model.kind
        self.draws, self.ledger = draws.child("model"), Ledger(len(draws), draws.ids.device)
        self.rows = torch.arange(len(draws), device=draws.ids.device)
        self.goals, self.starts, self.most = goal, start, most
        self.noise: Draws | None = None  # of a part of a pass
        self.copies = self.mean_of = 1
        self.through_backward_model = self.same_noise = False
        self.before: tuple[Callable[[Tensor, Draws], Tensor], ...] = ()
        self.after: tuple[Callable[[Tensor], Tensor], ...] = ()
        self.tap: Callable[[Tensor], Tensor] | None = None
        self.watch: Nearest | None = Nearest(*watch, threat, self.kind) if watch else None
        parameter = next(model.parameters(), None)
        # of the images: float32 also for a network in half precision
        self.dtype = torch.float64 if parameter is not None and parameter.dtype == torch.float64 else torch.float32

    # ------------------------------------------------------------------------------------------------------- views

    def _view(self, **changes: Any) -> Oracle:
        view = copy.copy(self)
        view.__dict__.update(changes)
        return view

    def __getitem__(self, index: Tensor | slice) -> Oracle:
        """A view of some of the samples. With a limit of queries, `repeat` is the way to ask a sample several times.

        Raises:
            ContractError: when there is a limit and the index names a sample twice, which would ask it twice for one.
        """
        rows = self.rows[index]
        if self.threat.queries is not None and len(rows) and int(rows.bincount().max()) > self.copies:
            raise ContractError("an index of this oracle names a sample twice; use repeat(k), which books k queries")
        return self._view(rows=rows)

    def repeat(self, k: int) -> Oracle:
        """A view for k images per sample, sample-major (s0 s0 s0 s1 s1 s1), each counted for its sample."""
        return self._view(rows=self.rows.repeat_interleave(k), copies=self.copies * k)

    def averaged(self, k: int) -> Oracle:
        """Every result is the mean over k forward passes, counted as k (expectation over transformation)."""
        return self._view(mean_of=self.mean_of * k)

    def backward_model(self) -> Oracle:
        """Gradients pass through the backward model of the defense (BPDA); values and scoring stay exact."""
        return self._view(through_backward_model=True)

    def frozen(self) -> Oracle:
        """A view in which every pass of a randomised model has the same noise: for checks, not for attacks."""
        return self._view(same_noise=True)

    def of(self, model: Classifier) -> Oracle:
        """A view on another classifier, such as a part of the model; its passes are counted as passes of the model."""
        if self.threat.access != "gradient":
            raise ContractError(
                f"the threat model grants {self.threat.access} access; this attack asked for the inside"
            )
        return self._view(model=model)

    def as_attacked(self, k: int) -> Oracle:
        """The view for an adaptive attack: `backward_model`, with means over k passes if the model is randomised."""
        through = self.backward_model()
        return through.averaged(k) if self.model.randomized else through

    def tapped(self, tap: Callable[[Tensor], Tensor]) -> Oracle:
        """The output [n, C, H, W] of the last convolution (or batch norm) passes through `tap`, which may read it,
        replace it, or edit its gradient. In a model without convolutions, the images pass through `tap`.

        A pass through a tap counts as any other pass of the model.
        """
        if self.threat.access != "gradient":
            raise ContractError(f"the threat model grants {self.threat.access} access; this attack asked for features")
        return self._view(tap=tap)

    def seen_through(self, change: Callable[[Tensor, Draws], Tensor]) -> Oracle:
        """Gradients (with their logits and losses) are those of `change(x, draws)`, with fresh draws in each pass."""
        return self._view(before=(*self.before, change))

    def filtered(self, change: Callable[[Tensor], Tensor]) -> Oracle:
        """Gradients are returned as `change(gradient)`."""
        return self._view(after=(change, *self.after))

    def watching(self, x: Tensor, y: Tensor) -> Oracle:
        """A view that keeps the nearest misclassified image passed to `forward`, for these images and labels."""
        n = len(self.ledger.queries)  # the watch is indexed like the ledger, not like this view
        images, labels = x.new_zeros(n, *x.shape[1:]), y.new_zeros(n)
        images[self.rows], labels[self.rows] = x, y
        return self._view(watch=Nearest(images, labels, self.threat, self.kind))

    def best(self) -> tuple[Tensor, Tensor]:
        """(nearest misclassified images seen while watching, their distances, infinite if there is none)."""
        if self.watch is None:
            raise ContractError("this oracle does not watch; take best() of oracle.watching(x, y)")
        return self.watch.point[self.rows], self.watch.distance[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def goal(self) -> Tensor | None:
        """Target class of each row, int64 [n]; None for an untargeted threat."""
        return None if self.goals is None else self.goals[self.rows]

    @property
    def start(self) -> Tensor | None:
        """Point from which each row is to start, [n, ...], not yet within eps; None to leave that to the attack."""
        return None if self.starts is None else self.starts[self.rows]

    # ----------------------------------------------------------------------------------------------------- queries

    def logits(self, x: Tensor) -> Tensor:
        """Logits [n, classes] without gradient."""
        if self.threat.access == "label":
            raise ContractError("the threat model grants labels only; this attack asked for logits")
        with torch.no_grad():
            return self._mean(lambda: self._pass(x)[0])

    def labels(self, x: Tensor) -> Tensor:
        """Top-1 labels, int64 [n]."""
        with torch.no_grad():
            return self._mean(lambda: self._pass(x)[0]).argmax(dim=1)

    def gradient(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """(gradient of the loss with respect to x, logits, loss [n]), all detached; means over passes when averaged."""
        g, z, value = self.gradients(x, lambda z: loss(z)[:, None])
        return g[:, 0], z, value[:, 0]

    def gradients(self, x: Tensor, losses: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """As `gradient` for k losses per sample, [n, k], in one forward pass: (gradients [n, k, ...], logits, losses).
        Counted as one forward and k backward passes. NaN and infinity in a gradient become zero and are counted.
        """
        if self.threat.access != "gradient":
            raise ContractError(
                f"the threat model grants {self.threat.access} access; this attack asked for a gradient"
            )
        # integer inputs, such as texts, have no gradient: it is that of their embeddings
        x = x if x.is_floating_point() else self.model.embedded(x)
        total: tuple[Tensor, Tensor, Tensor] | None = None
        for _ in range(self.mean_of):
            part = self._slopes(x, losses)
            total = part if total is None else (total[0] + part[0], total[1] + part[1], total[2] + part[2])
        assert total is not None
        k = self.mean_of
        g, z, values = (total[0] / k, total[1] / k, total[2] / k) if k > 1 else total
        for filter_ in self.after:
            g = filter_(g.flatten(0, 1)).unflatten(0, g.shape[:2])
        return g, z, values

    def _slopes(self, x: Tensor, losses: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """(gradients [n, k, ...], logits, losses) of one pass, which the model gets in parts.

        `losses` expects the logits of all images: beside those of a part it gets copies, whose losses are not used.
        """
        parts = self._parts(x)
        if len(parts) == 1 or self.tap is not None or len(x) != len(self.rows):  # a tap may edit all images together
            return self._slope(x, losses)
        noise, found = self._pass_draws(), []
        for at in parts:

            def own(z: Tensor, at: slice = at) -> Tensor:
                beside = z.detach()[torch.arange(len(x), device=z.device) % len(z)]
                return losses(torch.cat([beside[: at.start], z, beside[at.stop :]]))[at]

            found.append(self._view(rows=self.rows[at], noise=noise[at])._slope(x[at], own))
        g, z, values = map(torch.cat, zip(*found, strict=True))
        return g, z, values

    def _slope(self, x: Tensor, losses: Loss) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            image = leaf
            for change in self.before:
                image = change(image, self._pass_draws())
            z, rows = self._pass(image)
            values = losses(z)
            with blamed(self.model, x):
                g = self._backwards(values, leaf)
        self.ledger.backwards.index_add_(0, rows, torch.full_like(rows, g.shape[1]))
        return self._seen(g, rows), z.detach(), values.detach()

    @staticmethod
    def _backwards(values: Tensor, leaf: Tensor) -> Tensor:
        """Gradients of each column of values [n, k], zero if the defense is not differentiable: [n, k, ...]."""
        out = []
        for j in range(values.shape[1]):
            got: Tensor | None = None
            if values.requires_grad:
                # the sum keeps samples independent and does not underflow with the batch size
                (got,) = torch.autograd.grad(
                    values[:, j].sum(), leaf, allow_unused=True, retain_graph=j + 1 < values.shape[1]
                )
            out.append(torch.zeros_like(leaf) if got is None else got.contiguous())
        return out[0][:, None] if len(out) == 1 else torch.stack(out, dim=1)

    def _seen(self, g: Tensor, rows: Tensor, passes: int = 1) -> Tensor:
        """Gradients [n, k, ...] with zeros for NaN and infinity; those that had such, or are all zero, are counted."""
        largest = g.flatten(2).abs().amax(dim=2)  # NaN if any is
        undefined = ~torch.isfinite(largest)
        if bool(undefined.any()):
            self.ledger.undefined.index_add_(0, rows, passes * undefined.sum(dim=1))
            g = g.nan_to_num(0.0, 0.0, 0.0)
            largest = g.flatten(2).abs().amax(dim=2)
        self.ledger.blind.index_add_(0, rows, passes * (largest == 0).sum(dim=1))
        return g

    def stuck(self, g: Tensor) -> Tensor:
        """Samples whose gradient is exactly zero and will stay zero, bool [n]; none for a randomised model."""
        if self.model.randomized:
            return torch.zeros(len(g), dtype=torch.bool, device=g.device)
        return ops.size(g, "linf") == 0

    def left(self) -> Tensor | None:
        """Calls left per row, int64 [n]; a call costs one query per averaged pass. None without a limit."""
        if self.threat.queries is None:
            return None
        return (self.threat.queries - self.ledger.queries[self.rows]) // self.mean_of

    def forward(self, x: Tensor) -> Tensor:
        """For foreign attacks: logits as far as the threat model grants them; with label access, a one-hot row.

        Raises:
            ContractError: when the rows cannot be assigned to samples.
            BudgetExhausted: when a sample has no queries left.
        """
        x = x.to(self.dtype)
        wants_gradient = self.threat.access == "gradient" and torch.is_grad_enabled()
        with torch.set_grad_enabled(wants_gradient):
            if wants_gradient:
                seen: list[Tensor] = []  # the rows, known after the pass
                x = SeeGradient.apply(x, lambda g: self._seen(g[:, None], seen[0], self.mean_of)[:, 0])
            z, rows = self._pass(x)
            for _ in range(self.mean_of - 1):
                z = z + self._pass(x)[0]
            z = z / self.mean_of if self.mean_of > 1 else z
            if self.watch is not None:
                self.watch.update(x.detach(), z.detach(), rows)
            if self.threat.access == "label":
                return nn.functional.one_hot(z.argmax(dim=1), self.num_classes).to(z.dtype)
            if wants_gradient and x.requires_grad:
                seen.append(rows)
                # a model that cuts the gradient gives zeros, not an error
                z = z if z.requires_grad else z + 0 * x.flatten(1).sum(dim=1, keepdim=True)
                passes = torch.full_like(rows, self.mean_of)
                z = CountBackward.apply(z, lambda _: self.ledger.backwards.index_add_(0, rows, passes))
        return z

    # -------------------------------------------------------------------------------------------------------- inner

    def _mean(self, once: Callable[[], Tensor]) -> Tensor:
        total = once()
        for _ in range(self.mean_of - 1):
            total = total + once()
        return total / self.mean_of if self.mean_of > 1 else total

    def _pass(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.threat.access == "none":
            raise ContractError("the threat model grants no access; this attack asked the model")
        rows, copies = self.rows, self.copies
        if len(x) != len(rows):
            if len(rows) != 1:
                raise ContractError(
                    f"{len(x)} images for {len(rows)} samples cannot be booked; use oracle[index] or repeat(k), "
                    "or run the foreign attack one sample at a time"
                )
            rows, copies = rows.expand(len(x)), len(x)
        ledger, limit = self.ledger, self.threat.queries
        if limit is not None and ledger.spent + copies > limit:
            ledger.spent = int(ledger.queries.max())  # over all samples: another view may have spent more than this one
            spent = int(ledger.queries[rows].max()) if len(rows) else 0
            if spent + copies > limit:
                raise BudgetExhausted(f"{limit} queries granted, {spent} spent, {copies} more requested")
        if self.most and torch.is_grad_enabled() and len(x) > 1.25 * self.most and len(self.rows) > self.copies:
            # this pass cannot be made in parts: the harness runs the attack on fewer images
            raise torch.OutOfMemoryError(f"a pass of {len(x)} images, at most {self.most} at once")
        one = torch.ones_like(rows)
        draws = self._pass_draws(rows, copies) if self.model.randomized else None
        call = self.model.backward_model if self.through_backward_model else self.model
        with blamed(self.model, x):
            z = self._in_parts(call, x, draws) if self.tap is None else self._through(self.tap, call, x, draws)
        ledger.forwards.index_add_(0, rows, one)
        ledger.queries.index_add_(0, rows, one)
        ledger.spent += copies
        return z, rows

    def _in_parts(self, call: Callable[..., Tensor], x: Tensor, draws: Draws | None) -> Tensor:
        """Split the batch for speed; in one pass if a gradient is needed."""
        parts = self._parts(x)
        if torch.is_grad_enabled() or len(parts) == 1:
            return call(x, draws)
        return torch.cat([call(x[at], None if draws is None else draws[at]) for at in parts])

    def _parts(self, x: Tensor) -> list[slice]:
        """The parts in which the model gets the images of a pass, each with all copies of a sample."""
        most = at_once(x, x.device)
        return slices(len(x), most if self.most is None else min(most, self.most), self.copies)

    def _pass_draws(self, rows: Tensor | None = None, copies: int | None = None) -> Draws:
        """Streams for the next pass of each image."""
        if self.noise is not None:
            return self.noise
        rows, copies = self.rows if rows is None else rows, copies or self.copies
        number = self.ledger.forwards[rows] * (not self.same_noise)
        if copies > 1:
            number = number + torch.arange(copies, device=rows.device).repeat(len(rows) // copies)
        return Draws(self.draws.seed, self.draws.ids[rows]).at(number)

    def _through(
        self, tap: Callable[[Tensor], Tensor], call: Callable[..., Tensor], x: Tensor, draws: Draws | None
    ) -> Tensor:
        maps = [m for m in self.model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
        if not maps:
            return call(tap(x), draws)
        calls = 0

        def hook(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > 1 or len(out) != len(x):
                raise NotApplicable("the last convolution runs more than once an image: its maps cannot be told apart")
            return tap(out)

        handle = maps[-1].register_forward_hook(hook)
        try:
            z = call(x, draws)
        finally:
            handle.remove()
        if calls == 0:
            raise NotApplicable("the last convolution takes no part in the answer: it has no feature maps")
        return z
