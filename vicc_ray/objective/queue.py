"""The queue: past embeddings that join the batch when assignments are computed.

One global first-in-first-out list per assigned view, newest first, spread over the workers. Every row carries its
place in the global list, so that the list can be put together again and split for another number of workers.

Shapes: A assigned views, M rows of this worker, R rows of all workers, D embedding width, B global batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vicc_ray import distributed
from vicc_ray.errors import UserError


class Queue:
    """This worker's part of the global queue.

    Args:
        asked: rows per assigned view in the settings.
        global_batch: B. ``length``, the rows in use, is ``asked`` rounded down to a multiple of it.
        views: A.
        dim: D.
    """

    def __init__(self, configured: int, *, global_batch: int, views: int, dim: int) -> None:
        if configured < global_batch:
            raise UserError(
                f"queue: {configured} rows are fewer than one global batch of {global_batch}; "
                f"set a multiple of {global_batch}, or 0 for no queue"
            )
        self.configured = configured
        self.length = configured // global_batch * global_batch
        self.global_batch = global_batch
        self._pushed = 0
        # Places stay in host memory: then the number of rows that leave is known without waiting for the device.
        self._positions = torch.empty(0, dtype=torch.int64)
        self._rows = torch.empty(views, 0, dim)
        self.copy = QueueCopy(self.length // global_batch, views, global_batch, dim)

    @property
    def rows(self) -> Tensor:
        """This worker's embeddings [A, M, D], newest first."""
        return self._rows

    @property
    def positions(self) -> Tensor:
        """Place of every row of this worker in the global queue, int64 [M] in host memory, ascending (0 = newest)."""
        return self._positions

    @property
    def full(self) -> bool:
        """Whether enough global batches have come to fill it; the same on every worker.

        A sample that was refused leaves a gap, not a longer wait: a full queue may hold a few rows less than
        ``length``.
        """
        return self._pushed >= self.length

    def rounding_note(self) -> str | None:
        """One line for the log where ``length`` is not the configured one."""
        if self.length == self.configured:
            return None
        return (
            f"queue: {self.configured} rows configured, {self.length} used: "
            f"the length is rounded down to a multiple of the global batch of {self.global_batch}"
        )

    def push(self, embeddings: Tensor, slots: Tensor) -> None:
        """Put this step's embeddings in front and let the oldest global batch go; every worker calls it every step.

        Args:
            embeddings: [A, n, D], without gradient; n may be 0 and may differ between workers.
            slots: integers [n], best in host memory: place of every row in the global batch, 0 <= slot < B. No two
                rows of the global batch have the same one.
        """
        views, _, dim = self._rows.shape
        order = slots.detach().cpu().to(torch.int64)
        if embeddings.shape != (views, len(order), dim):
            raise ValueError(
                f"queue: embeddings {tuple(embeddings.shape)} for {len(order)} slots, expected "
                f"[{views}, {len(order)}, {dim}]"
            )
        ascending, permutation = order.sort()
        if len(order) and (ascending[0] < 0 or ascending[-1] >= self.global_batch or (ascending.diff() == 0).any()):
            raise ValueError(f"queue: slots must be distinct and in 0..{self.global_batch - 1}, got {order.tolist()}")
        moved = self._positions + self.global_batch
        stay = int(torch.searchsorted(moved, self.length))
        newest = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32))
        if not torch.equal(ascending, order):
            newest = newest[:, permutation.to(newest.device)]
        self._positions = torch.cat([ascending, moved[:stay]])
        self._rows = torch.cat([newest, self._rows[:, :stay].to(newest)], dim=1)
        self._pushed = min(self._pushed + self.global_batch, self.length)

    def state_dict(self) -> dict[str, Any]:
        """The whole queue, the same on every worker, which all have to call this.

        Keys: ``rows`` [A, R, D] and ``positions`` int64 [R] in global order, in host memory; ``pushed`` and
        ``length`` in rows.
        """
        positions = torch.cat(distributed.gather_rows(self._positions))
        rows = torch.cat(distributed.gather_rows(self._rows.transpose(0, 1).contiguous())).cpu()  # [R, A, D]
        ascending, order = positions.sort()
        return {
            "rows": rows[order].transpose(0, 1).contiguous(),
            "positions": ascending,
            "pushed": self._pushed,
            "length": self.length,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take this worker's contiguous share of a whole queue, saved by any number of workers.

        A queue saved with another length is cut, or waits until it is full again.

        Raises:
            UserError: the saved rows have another number of views or another width, or are not finite.
        """
        rows, positions = state["rows"], state["positions"]
        views, _, dim = self._rows.shape
        if rows.ndim != 3 or (rows.shape[0], rows.shape[2]) != (views, dim) or rows.shape[1] != len(positions):
            raise UserError(
                f"queue of the checkpoint: rows {tuple(rows.shape)} with {len(positions)} positions, this run needs "
                f"{views} assigned views of width {dim}; restore with the settings that the checkpoint was made with"
            )
        if not bool(torch.isfinite(rows).all()):
            raise UserError("queue of the checkpoint: holds NaN or infinity; go back to an earlier checkpoint")
        used = int(torch.searchsorted(positions, self.length))
        workers, worker = distributed.world_size(), distributed.rank()
        share = slice(used * worker // workers, used * (worker + 1) // workers)
        self._positions = positions[share].cpu().clone()
        self._rows = rows[:, share].to(self._rows.device, copy=True)
        self._pushed = min(int(state["pushed"]), int(state["length"]), self.length)
        self.copy.load(rows[:, :used], positions[:used], self._pushed)


class QueueCopy:
    """The whole queue as of the last finished step, on every worker, for the restart after another worker's death.

    A worker has only its part of the queue to work with. The rows of each step travel with its gradients, in the same message,
    so that one worker that is left has the rows of those that are gone. Neighbours of embeddings are looked up in it too.

    Args:
        batches: global batches in the queue.
        views, rows, dim: of each of them: A assigned views of B rows of width D.
    """

    def __init__(self, batches: int, views: int, rows: int, dim: int) -> None:
        self.batches, self.shape = batches, (views, rows, dim)
        self._ring: Tensor | None = None  # [batches, A, B, D + 1]; the last column is 1 where there is a row
        self._newest = 0
        self._pushed = 0
        self._underway: Tensor | None = None

    def message(self, embeddings: Tensor, slots: Tensor) -> Tensor:
        """This worker's rows [A, n, D] of a step at their slots [n], 0 elsewhere: [A, B, D + 1], to be summed over the workers."""
        views, rows, dim = self.shape
        message = embeddings.new_zeros(views, rows, dim + 1, dtype=torch.float32)
        places = slots.to(embeddings.device)
        message[:, places, :dim] = embeddings.detach().float()
        message[:, places, dim] = 1.0
        self._underway = message
        return message

    def take(self) -> None:
        """The step's message, summed meanwhile, is the newest batch: the step is done."""
        if self._underway is None:
            return
        if self._ring is None:
            self._ring = self._underway.new_zeros(self.batches, *self._underway.shape)
        self._newest = (self._newest - 1) % self.batches
        self._ring[self._newest] = self._underway
        self._pushed = min(self._pushed + self.shape[1], self.batches * self.shape[1])
        self._underway = None

    def rows(self) -> Tensor | None:
        """The embeddings [A, M, D] of the last finished steps' samples, in no special order; None where there are none."""
        if self._ring is None:
            return None
        batches, views, rows, width = self._ring.shape
        flat = self._ring.transpose(0, 1).reshape(views, batches * rows, width)
        there = flat[0, :, -1] > 0
        return flat[:, there, :-1] if bool(there.any()) else None

    def state_dict(self) -> dict[str, Any]:
        """As `Queue.state_dict`, from this worker alone."""
        views, rows, dim = self.shape
        length = self.batches * rows
        if self._ring is None:
            empty = torch.empty(views, 0, dim)
            return {"rows": empty, "positions": torch.empty(0, dtype=torch.int64), "pushed": 0, "length": length}
        ordered = torch.roll(self._ring, -self._newest, 0).transpose(0, 1).reshape(views, length, dim + 1).cpu()
        positions = ordered[0, :, dim].nonzero().flatten()
        return {"rows": ordered[:, positions, :dim], "positions": positions, "pushed": self._pushed, "length": length}

    def load(self, rows: Tensor, positions: Tensor, pushed: int) -> None:
        """Take a whole queue: rows [A, R, D] at positions int64 [R] in global order."""
        views, batch, dim = self.shape
        ordered = torch.zeros(views, self.batches * batch, dim + 1)
        ordered[:, positions, :dim] = rows.cpu().float()
        ordered[:, positions, dim] = 1.0
        self._ring = ordered.view(views, self.batches, batch, dim + 1).transpose(0, 1).contiguous().to(rows.device)
        self._newest, self._pushed, self._underway = 0, pushed, None
