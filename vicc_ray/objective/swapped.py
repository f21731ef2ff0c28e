"""Swapped prediction: the assignment of one view is predicted from the other views' embeddings.

Shapes: V views (2 single-stream, 4 cross-stream), A assigned views, n rows of this worker, R rows of all workers,
D embedding width, K_h prototypes of head h, S = sum of K_h, H heads, W workers.

    q_i  = Sinkhorn-Knopp of [queue_i ; z_i] C^T / epsilon, the batch's rows             (no gradient)
    loss = 1/A sum_{i in A} 1/(V-1) sum_{j != i} mean_b( - sum_k q_i[b,k] log softmax(z_j C^T / T)[b,k] )

(ViCC, Toering et al., WACV 2022, after SwAV, Caron et al., NeurIPS 2020.) With several heads, the mean over heads.

Two options change q, none by default:

    guidance w:    a view of the learner is assigned by Sinkhorn-Knopp on exp(z C^T / epsilon)^(1 - w) p^w, where p are the
                   assignments (by plain Sinkhorn-Knopp) of the other stream's view of the same clip
    neighbours v:  q becomes (1 - v) q + v q', where q' is the assignment of the queue's embedding that is nearest to z

Guidance is entropic transport whose regulariser is the distance (KL) to a prior beside the entropy: with -S the cost and p the
prior, epsilon' H(Q) - lambda KL(Q | p) is largest at Q = exp((S + lambda log p) / (epsilon' + lambda)) up to the scalings, and w =
lambda / (epsilon' + lambda), epsilon = epsilon' (Peyre and Cuturi, "Computational Optimal Transport", 2019, section 4; guided by
another modality: Coskun et al., "GOCA", ECCV 2022). Neighbours as targets: Dwibedi et al., "With a Little Help from My
Friends", ICCV 2021; here by their assignments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vicc_ray import distributed
from vicc_ray.errors import UserError
from vicc_ray.objective.contract import NonFiniteError
from vicc_ray.objective.prototypes import Prototypes
from vicc_ray.objective.queue import Queue
from vicc_ray.objective.sinkhorn import LogitsBlock, per_head_log_softmax, per_head_softmax, prototype_potentials

# In a cross-stream stage f(x1) and g(m1), f(x2) and g(m2) show the same clip; views are f(x1), f(x2), g(m2), g(m1).
_PARTNERS = {0: 3, 1: 2}
# How far |z|^2 may be from 1: bfloat16 embeddings are, by rounding, a few thousandths off.
UNIT_TOLERANCE = 0.02
# Of the queue's logits in memory at a time; where there are more, they are computed again in each pass of Sinkhorn-Knopp.
BLOCK_BYTES = 256 << 20


@dataclass(frozen=True)
class SwappedPredictionSettings:
    """The published values are the defaults, except for the queue (published: 1920)."""

    temperature: float = 0.1
    """T, divides the scores of the prediction."""
    epsilon: float = 0.05
    """Divides the scores of the assignment; smaller is sharper."""
    iterations: int = 3
    """Sinkhorn-Knopp iterations."""
    queue: int = 0
    """Rows of the global queue per assigned view; 0 for none."""
    views_for_assignment: tuple[int, ...] | None = None
    """Views whose assignments are predicted; None for all."""
    guidance: float = 0.0
    """w, how much the other stream's assignments count as a prior of the learner's, in a cross-stream stage."""
    neighbours: float = 0.0
    """v, the share of a target that is the assignment of the nearest embedding of the queue."""

    def __post_init__(self) -> None:
        for name, allowed, good in (
            ("temperature", "> 0", self.temperature > 0),
            ("epsilon", "> 0", self.epsilon > 0),
            ("iterations", "at least 1", self.iterations >= 1),
            ("queue", "0 or more", self.queue >= 0),
            ("guidance", "0 up to below 1", 0 <= self.guidance < 1),
            ("neighbours", "0 to 1", 0 <= self.neighbours <= 1),
        ):
            if not good:
                raise UserError(f"{name}: got {getattr(self, name)}, allowed is {allowed}")


@dataclass(frozen=True)
class Outcome:
    """What one step of the objective gives."""

    loss: Tensor
    """Scalar for backward: averaging its gradients over workers gives those of the global mean loss."""
    assignments: Tensor
    """[A, n, S] of this worker's rows, heads side by side, without gradient."""
    embeddings: Tensor
    """[2, n, D] the learner's views, without gradient."""
    loss_sum: Tensor
    """Scalar: loss summed over this worker's rows, without gradient."""
    counts: tuple[int, ...]
    """K_h."""

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Numbers for the log, over the global batch; one message, which every worker has to join.

        ``loss``; ``ln_k`` (its value when nothing is predicted, mean over heads); ``entropy`` of the assignments in
        nats (mean over rows, views, heads; 0 is one-hot, ln_k uniform); ``prototypes_used``, the share of prototypes
        that are the largest of at least one assignment, of the min(K, A * R) that could be; ``cosine``, the mean over
        pairs of different rows of one view (collapsed embeddings: 1; 0 with fewer than two rows); ``rows``.
        """
        views, rows, _ = self.assignments.shape
        heads = torch.split(self.assignments, list(self.counts), dim=-1)
        used = [self.assignments.new_zeros(count) for count in self.counts]
        for head, seen in zip(heads, used, strict=True):
            seen[head.argmax(dim=-1).flatten()] = 1
        entropy = torch.special.entr(self.assignments).sum() / (views * len(heads))
        scalars = torch.stack([self.assignments.new_tensor(float(rows)), self.loss_sum, entropy])
        directions = self.embeddings.sum(dim=1)  # [2, D]: |sum z|^2 holds the cosines of all pairs
        lengths = self.embeddings.square().sum(dim=(1, 2))  # [2]: of which these are each row's with itself
        distributed.all_reduce_sum_(scalars, *used, directions, lengths)

        total, loss, nats = scalars.tolist()
        pairs = total * (total - 1)
        cosine = float((directions.square().sum(dim=1) - lengths).mean()) / pairs if pairs > 0 else 0.0
        possible = [max(1.0, min(float(count), views * total)) for count in self.counts]
        shares = [float((seen > 0).sum()) / most for seen, most in zip(used, possible, strict=True)]
        return {
            "loss": loss / max(total, 1.0),
            "ln_k": sum(map(math.log, self.counts)) / len(self.counts),
            "entropy": nats / max(total, 1.0),
            "prototypes_used": sum(shares) / len(shares),
            "cosine": cosine,
            "rows": total,
        }


class SwappedPrediction:
    """The loss of one stage, with its queue.

    Args:
        settings: temperature, epsilon, iterations, queue, views for assignment.
        views: V.
        dim: D.
        global_batch: rows that all workers together are planned to have per step.
        stage: name for error messages.
        short: views after the V that predict all assignments and have none (temporal multi-crop); V counts them in the formula.
    """

    def __init__(
        self,
        settings: SwappedPredictionSettings,
        *,
        views: int,
        dim: int,
        global_batch: int,
        stage: str,
        short: int = 0,
    ) -> None:
        assigned = tuple(range(views)) if settings.views_for_assignment is None else settings.views_for_assignment
        if views < 2 or not assigned or len(set(assigned)) < len(assigned) or not set(assigned) <= set(range(views)):
            raise UserError(
                f"views_for_assignment: got {list(assigned)} in stage {stage}, allowed are different views of "
                f"{list(range(views))}, at least one"
            )
        self.settings = settings
        self.views = views + short
        self.assigned = assigned
        self.dim = dim
        self.stage = stage
        # Places among the assigned views: of each view of the learner and of its prior, the other stream's view of that clip.
        self.guided: tuple[tuple[int, int], ...] = ()
        if settings.guidance and views == len(_PARTNERS) * 2:
            if set(assigned) != set(range(views)):
                raise UserError(f"guidance: needs the assignments of all views in stage {stage}, got {list(assigned)}")
            self.guided = tuple((assigned.index(view), assigned.index(other)) for view, other in _PARTNERS.items())
        self.queue: Queue | None = None
        self.shared: list[Tensor] = []
        if settings.queue:
            self.queue = Queue(settings.queue, global_batch=global_batch, views=len(assigned), dim=dim)

    def __call__(
        self, embeddings: Sequence[Tensor], prototypes: nn.Module, *, slots: Tensor, use_queue: bool, step: int
    ) -> Outcome:
        """Loss and assignments of one step; ``iterations + 1`` messages, twice that with guidance; every worker has to call it.

        Args:
            embeddings: V tensors [n, D] of unit length, then those of short views. n may differ between workers and may be 0:
                the loss is then 0, with zero gradients, still connected to its inputs.
            prototypes: ``Prototypes``, or one wrapped by ``wrap_ddp``, already normalised; called once with
                gradient, for all views together.
            slots: integers [n], place of every row in the global batch, for the queue.
            use_queue: whether the start epoch has come; the queue is used only when it is also full.
            step: number for error messages.

        Raises:
            NonFiniteError: on every worker alike when any worker has a non-finite embedding or prototype; the queue
                has not taken the step then.
            ValueError: on every worker alike when an embedding is not of unit length.
        """
        if len(embeddings) != self.views or any(z.shape != (len(slots), self.dim) for z in embeddings):
            raise ValueError(
                f"stage {self.stage}: expected {self.views} embeddings [{len(slots)}, {self.dim}], "
                f"got {[tuple(z.shape) for z in embeddings]}"
            )
        with torch.autocast(embeddings[0].device.type, enabled=False):
            z = torch.stack([_at_least_float32(z) for z in embeddings])  # [V, n, D]
            inner = distributed.unwrap(prototypes)
            assert isinstance(inner, Prototypes)
            scores = _scores(prototypes, z, inner.counts)
            q, rows = self._assign(z.detach(), scores.detach(), inner, use_queue=use_queue, step=step)
            if self.queue is not None:
                newest = z.detach()[list(self.assigned)]
                self.queue.push(newest, slots)
                self.shared = [self.queue.copy.message(newest, slots)]
            loss_sum = self._loss_sum(q, scores, inner.counts)
        # Workers may hold shares of different size: the mean over the global batch, times W against DDP's average.
        loss = loss_sum * (distributed.world_size() / rows.clamp_min(1))
        return Outcome(loss, q, z.detach()[:2], loss_sum.detach(), inner.counts)

    def finish_step(self) -> None:
        """What this step shared has been summed over the workers, and its gradients are about to be applied."""
        if self.queue is not None:
            self.queue.copy.take()
        self.shared = []

    def own_state(self) -> dict[str, Any]:
        """``state_dict`` as of the last finished step, from this worker alone."""
        return {} if self.queue is None else self.queue.copy.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """State that a restart needs: the whole queue (a message that every worker has to join), or nothing."""
        return {} if self.queue is None else self.queue.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take ``state_dict`` of any number of workers; an empty one leaves the queue empty."""
        if self.queue is not None and state:
            self.queue.load_state_dict(state)

    @torch.no_grad()
    def _assign(
        self, z: Tensor, scores: Tensor, prototypes: Prototypes, *, use_queue: bool, step: int
    ) -> tuple[Tensor, Tensor]:
        """Assignments [A, n, S] of the batch's rows, and R as a tensor []."""
        logits = scores[list(self.assigned)] / self.settings.epsilon
        everything: Tensor | list[LogitsBlock] = logits
        if self.queue is not None and use_queue and self.queue.full:
            everything = self._with_queue(self.queue.rows.to(z), prototypes, logits)
        alarms = _alarms(z, prototypes).to(scores)
        rows = scores.new_tensor(float(scores.shape[1]))
        f = prototype_potentials(
            everything, prototypes.counts, self.settings.iterations, maxima=alarms, totals=rows
        )  # [A, S]
        # Reading the alarms waits for the device, so it comes when all of the above has been queued on it.
        self._raise_alarm(alarms.tolist(), step)
        q = per_head_softmax(logits + f.unsqueeze(1), prototypes.counts)
        if self.guided:
            q[[own for own, _ in self.guided]] = self._guided(everything, logits, f, prototypes.counts)
        in_use = self.settings.neighbours and self.queue is not None and use_queue and self.queue.full
        past = self.queue.copy.rows() if self.queue is not None and in_use else None
        if past is not None:
            near = _nearest(z[list(self.assigned)], past.to(z))
            theirs = per_head_softmax(self._logits_of(near, prototypes) + f.unsqueeze(1), prototypes.counts)
            q = torch.lerp(q, theirs, self.settings.neighbours)
        return q, rows

    def _guided(
        self, everything: Tensor | list[LogitsBlock], logits: Tensor, f: Tensor, counts: tuple[int, ...]
    ) -> Tensor:
        """Assignments [G, n, S] of the G guided views, from the logits of queue and batch and the potentials f [A, S] of all."""
        own, prior = (list(places) for places in zip(*self.guided, strict=True))
        weight = self.settings.guidance

        def mixed(block: Tensor) -> Tensor:
            known = per_head_log_softmax(block[prior] + f[prior].unsqueeze(1), counts)
            return torch.lerp(block[own], known, weight)

        blocks: Tensor | list[LogitsBlock]
        if isinstance(everything, Tensor):
            blocks = mixed(everything)
        else:
            blocks = [partial(lambda block: mixed(block()), block) for block in everything]
        potentials = prototype_potentials(blocks, counts, self.settings.iterations)
        return per_head_softmax(mixed(logits) + potentials.unsqueeze(1), counts)

    def _logits_of(self, rows: Tensor, prototypes: Prototypes) -> Tensor:
        """[A, N, S] of embeddings [A, N, D]."""
        return _scores(prototypes, rows, prototypes.counts) / self.settings.epsilon

    def _with_queue(self, past: Tensor, prototypes: Prototypes, logits: Tensor) -> Tensor | list[LogitsBlock]:
        """The logits of the queue's rows ``past`` [A, M, D] and of the batch's: in one tensor, or in blocks where that is large."""
        of = partial(self._logits_of, prototypes=prototypes)
        views, _, width = logits.shape
        block = max(BLOCK_BYTES // (views * width * logits.element_size()), 1)
        if past.shape[1] <= block:
            return torch.cat([of(past), logits], dim=1)
        return [*(partial(of, rows) for rows in torch.split(past, block, dim=1)), lambda: logits]

    def _loss_sum(self, q: Tensor, scores: Tensor, counts: tuple[int, ...]) -> Tensor:
        """The loss summed over this worker's rows, from q [A, n, S] and scores [V, n, S]."""
        prediction = per_head_log_softmax(scores / self.settings.temperature, counts)
        # Every view predicts the assignments of all the others, so these can be summed before.
        target = torch.zeros_like(prediction)
        for i, assignment in zip(self.assigned, q, strict=True):
            others = [j for j in range(self.views) if j != i]
            target[others] += assignment
        return -(target * prediction).sum() / (len(self.assigned) * (self.views - 1) * len(counts))

    def _raise_alarm(self, alarms: list[list[float]], step: int) -> None:
        """Raise what the workers' alarms [2][V + 1] say; all workers have the same ones."""
        what = [f"view {view} (of {self.views})" for view in range(self.views)] + ["the prototypes"]
        for kind, row in enumerate(alarms):
            for name, worker in zip(what, row, strict=True):
                if worker == 0:
                    continue
                where = f"stage {self.stage}, step {step}, worker {int(worker) - 1}, {name}"
                if kind == 0:
                    raise NonFiniteError(
                        f"{where}: NaN or infinity; restart from the last checkpoint with a lower learning rate, "
                        "gradient clipping or float32 encoders"
                    )
                raise ValueError(f"{where}: not of unit length; L2-normalise before the objective")


def _scores(prototypes: nn.Module, z: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Scores [V, N, S], heads side by side, of embeddings [V, N, D]; N may be 0."""
    views, rows, _ = z.shape
    return torch.cat(prototypes(z.flatten(0, 1)), dim=-1).view(views, rows, sum(counts))


def _nearest(z: Tensor, past: Tensor) -> Tensor:
    """For each row of z [A, n, D] the row of past [A, M, D] of the same view with the largest cosine: [A, n, D]."""
    if not z.shape[1]:
        return z
    place = torch.bmm(z, past.transpose(1, 2)).argmax(dim=2)  # [A, n]
    return past.gather(1, place.unsqueeze(2).expand(-1, -1, past.shape[2]))


def _at_least_float32(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


def _alarms(z: Tensor, prototypes: Prototypes) -> Tensor:
    """rank + 1 where something is wrong on this worker, else 0: [2, V + 1].

    First row: non-finite; second: not of unit length. Columns: the views of ``z`` [V, n, D], then the prototypes.
    """
    weights = list(prototypes.weights)
    broken = torch.stack([_broken(view) for view in z] + [torch.stack([_broken(w) for w in weights]).any()])
    scaled = torch.stack([_not_unit(view) for view in z] + [torch.stack([_not_unit(w) for w in weights]).any()])
    return torch.stack([broken, scaled]) * (distributed.rank() + 1)


def _broken(rows: Tensor) -> Tensor:
    return ~torch.isfinite(rows).all()


def _not_unit(rows: Tensor) -> Tensor:
    return ((rows.square().sum(dim=-1) - 1).abs() > UNIT_TOLERANCE).any()
