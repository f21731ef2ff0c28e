"""A watch over the loss: at ln(K) every prototype is predicted alike, nothing is being learned."""

from __future__ import annotations


class CollapseWatch:
    """Warns once when the loss has stayed at ln(K) for long; is armed again when the loss leaves ln(K).

    Args:
        steps: optimiser steps for which the loss has to stay.
        tolerance: how near counts as "at ln(K)", as a share of ln(K).
    """

    def __init__(self, steps: int, tolerance: float = 0.01) -> None:
        self.steps = steps
        self.tolerance = tolerance
        self._since: int | None = None
        self._warned = False

    def observe(self, step: int, loss: float, ln_k: float) -> str | None:
        """Take one log record (steps ascending, any distance apart); the warning where one is due, else None."""
        if abs(loss - ln_k) > self.tolerance * ln_k:
            self._since, self._warned = None, False
            return None
        if self._since is None:
            self._since = step
        if self._warned or step - self._since < self.steps:
            return None
        self._warned = True
        return (
            f"the loss has been within {self.tolerance:.0%} of ln(K) = {ln_k:.3f} for {step - self._since} steps "
            f"(since step {self._since}): the predictions are uniform, nothing is being learned. Try a lower "
            "epsilon, a later queue start, prototypes frozen for the first epochs, a larger global batch or "
            "a lower learning rate"
        )
