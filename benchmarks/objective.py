"""The objective alone at sizes far beyond the published ones: seconds and memory of a step, with the queue's logits in blocks.

`vicc bench objective`: each contender is a process of its own, whose peak is that of its step.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import Bar, Outcome

# In a process of its own; its memory before the step is what torch and the state take.
_STEP = """
import json, resource, sys, time
import torch
from vicc_ray import distributed
from vicc_ray.objective import swapped
from vicc_ray.objective.prototypes import Prototypes

case = json.loads(sys.argv[1])
torch.set_num_threads(2)
swapped.BLOCK_BYTES = case["block_bytes"]
settings = swapped.SwappedPredictionSettings(queue=case["queue"])
objective = swapped.SwappedPrediction(settings, views=case["views"], dim=case["dim"], global_batch=case["rows"], stage="bench")
prototypes = Prototypes(case["dim"], [case["prototypes"]], torch.Generator().manual_seed(1))
generator = torch.Generator().manual_seed(2)

def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

slots, first = torch.arange(case["rows"]), True
for step in range(-(-case["queue"] // case["rows"])):  # fill the queue
    objective.queue.push(unit(case["views"], case["rows"], case["dim"]), slots)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
z = unit(case["views"], case["rows"], case["dim"])
distributed.traffic.reset()
began = time.perf_counter()
learned = [view.requires_grad_() for view in z[:2]] + list(z[2:])
outcome = objective(learned, prototypes, slots=slots, use_queue=True, step=0)
outcome.loss.backward()
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
sums = {"loss": float(outcome.loss), "gradient of z": sum(float(one.grad.double().abs().sum()) for one in learned[:2])}
weights = [one.grad for one in prototypes.parameters() if one.grad is not None]
if weights:
    sums["gradient of prototypes"] = sum(float(one.double().abs().sum()) for one in weights)
print(json.dumps({"s": seconds, "MiB more at the peak": peak / 1024, **sums}))
"""


@dataclass(frozen=True)
class Case:
    """Rows of the batch and of the queue are those of one worker."""

    rows: int
    queue: int
    prototypes: int
    views: int = 4
    dim: int = 256
    block_bytes: int = 256 << 20

    def message_bytes(self) -> int:
        """Bytes of a message of Sinkhorn-Knopp, of which a step has four: one number a prototype and assigned view."""
        return 4 * self.views * self.prototypes


WHOLE = 1 << 50
CASES = {
    "K 3,000, queue 8,192, at once": Case(64, 8192, 3000, block_bytes=WHOLE),
    "K 3,000, queue 8,192, in blocks": Case(64, 8192, 3000, block_bytes=32 << 20),
    "K 30,000, one of 512 workers: 8 rows, 128 of a queue of 65,536": Case(8, 128, 30_000),
    "K 30,000, one of 64 workers: 8 rows, 1,024 of the same, at once": Case(8, 1024, 30_000, block_bytes=WHOLE),
    "K 30,000, one of 64 workers: 8 rows, 1,024 of the same, in blocks": Case(8, 1024, 30_000, block_bytes=32 << 20),
    "K 30,000, queue 8,192 on one worker, in blocks": Case(64, 8192, 30_000),
}
AT_ONCE, IN_BLOCKS, ONE_OF_MANY, MANY_AT_ONCE, MANY_IN_BLOCKS, LARGE = CASES
SUMS = ("loss", "gradient of z", "gradient of prototypes")  # that say whether two ways give the same numbers


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Seconds of a step, forward and backward."""
    figures: dict[str, list[float]] = {}
    details: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        found = [_step(case) for _ in range(rounds)]
        figures[name] = [facts["s"] for facts in found]
        peak = max(facts["MiB more at the peak"] for facts in found)
        sums = {key: found[0][key] for key in SUMS if key in found[0]}
        details[name] = {"MiB more at the peak": peak, "KiB a message": case.message_bytes() / 1024, **sums}
    outcome = Outcome("s", figures, details=details)
    scores = 4 * CASES[LARGE].views * CASES[LARGE].queue * CASES[LARGE].prototypes / 2**20
    outcome.bars = [
        *(_same(details, *pair) for pair in ((AT_ONCE, IN_BLOCKS), (MANY_AT_ONCE, MANY_IN_BLOCKS))),
        Bar("MiB of the large queue in blocks", details[LARGE]["MiB more at the peak"], 2048, at_least=False),
    ]
    outcome.facts = {"MiB of the large queue's scores at once": round(scores)}
    return outcome


def _same(details: dict[str, dict[str, float]], plain: str, other: str) -> Bar:
    """The largest relative difference of two cases' loss and gradients."""
    worst = max(abs(details[other][key] / details[plain][key] - 1) for key in SUMS if key in details[plain])
    return Bar(f"relative difference of loss and gradients: {other}", worst, 1e-5, at_least=False)


def _step(case: Case) -> dict[str, Any]:
    command = [sys.executable, "-c", _STEP, json.dumps(asdict(case))]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found
