"""Swapped prediction: recorded steps of the published implementation, a slow twin, and any number of workers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from processes import run_processes
from torch import Tensor

from vicc_ray import distributed
from vicc_ray.errors import UserError
from vicc_ray.objective import CollapseWatch, NonFiniteError, Prototypes, SwappedPrediction, SwappedPredictionSettings
from vicc_ray.objective.prototypes import evenly_spread

PARITY = Path(__file__).parent / "data" / "parity"


def unit_rows(*shape: int, generator: torch.Generator) -> Tensor:
    """Random embeddings of length 1, float64."""
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


# --- recorded steps -------------------------------------------------------------------------------------------------


def published_places(length: int, global_batch: int, workers: int) -> NDArray[Any]:
    """Place in our global queue of every row of the published one.

    There each of W ranks keeps its own queue of length / W rows, B / W of them per step, newest first; the record
    puts the ranks' queues one behind the other. Row i of rank r is thus of the (i // (B / W))-th newest step and was
    slot r * B / W + i % (B / W) of its global batch. Ours is sorted by step, then by slot.
    """
    share, per_step = length // workers, global_batch // workers
    rank, i = np.divmod(np.arange(length), max(share, 1))
    return np.asarray(i // per_step * global_batch + rank * per_step + i % per_step)


def _recorded_step(path: str) -> dict[str, Any]:
    """The step on this worker's contiguous slice, exactly as recorded.

    The recorded gradients of the embeddings stand at right angles to them: they were taken before the L2 norm, whose
    input was already of unit length. So they are here.
    """
    record = np.load(path)
    meta = json.loads(str(record["meta"]))
    assert meta["world_size"] == distributed.world_size()
    batch, length, dim, views = meta["batch"], meta["queue_size"], meta["dim"], len(record["view_embeddings"])
    settings = SwappedPredictionSettings(
        temperature=meta["temperature"],
        epsilon=meta["epsilon"],
        iterations=meta["sinkhorn_iterations"],
        queue=length,
        views_for_assignment=tuple(meta["views_for_assignment"]),
    )
    objective = SwappedPrediction(settings, views=views, dim=dim, global_batch=batch, stage=meta["stage"])
    if objective.queue is not None:
        places = published_places(length, batch, meta["world_size"])
        rows = torch.from_numpy(record["queue_in"][:, np.argsort(places)])
        whole = {"rows": rows, "positions": torch.arange(length), "pushed": length, "length": length}
        objective.load_state_dict(whole)
    prototypes = Prototypes(dim, [meta["num_prototypes"]])
    with torch.no_grad():
        prototypes.weights[0].copy_(torch.from_numpy(record["prototypes"]))
    share = batch // meta["world_size"]
    slots = torch.arange(share) + share * distributed.rank()
    before_norm = [torch.from_numpy(view)[slots].requires_grad_() for view in record["view_embeddings"][:2]]
    z = [torch.nn.functional.normalize(learned, dim=-1) for learned in before_norm]
    z += [torch.from_numpy(view)[slots] for view in record["view_embeddings"][2:]]
    outcome = objective(z, prototypes, slots=slots, use_queue=True, step=0)
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    return {
        "loss": float(outcome.loss.detach()),
        "assignments": outcome.assignments.numpy(),
        "gradients": [learned.grad.numpy() for learned in before_norm if learned.grad is not None],
        "prototypes": prototypes.weights[0].grad.numpy(),
        "queue": objective.state_dict(),
    }


@pytest.mark.parametrize("case", ["single_w1", "cross_w1", "single_queue_w2", "cross_queue_w2", "cross_queue_w4"])
def test_recorded_steps_of_the_published_implementation(case: str) -> None:
    path = PARITY / f"{case}.npz"
    record = np.load(path)
    meta = json.loads(str(record["meta"]))
    results = run_processes(_recorded_step, meta["world_size"], str(path))
    q = np.concatenate([result["assignments"] for result in results], axis=1)
    np.testing.assert_allclose(q, record["assignments"], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose([result["loss"] for result in results], record["loss_per_rank"], rtol=1e-5)
    for view in range(2):
        close_for_its_size(np.concatenate([r["gradients"][view] for r in results]), record[f"grad_view{view}"])
    for result, expected in zip(results, record["grad_prototypes_per_rank"], strict=True):
        close_for_its_size(result["prototypes"], expected)
    if meta["queue_size"]:
        places = published_places(meta["queue_size"], meta["batch"], meta["world_size"])
        for result in results:
            assert result["queue"]["positions"].tolist() == list(range(meta["queue_size"]))
            close_for_its_size(result["queue"]["rows"].numpy()[:, places], record["queue_out"])


def close_for_its_size(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """1e-5 relative; a gradient's entry is a sum of terms up to the largest entry, and is known as well as that."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))


# --- the slow twin --------------------------------------------------------------------------------------------------


def twin_assignments(
    rows: Tensor, prototypes: Tensor, settings: SwappedPredictionSettings, prior: Tensor | None = None
) -> Tensor:
    """Sinkhorn-Knopp of one view's queue rows and batch as it is told, [N, K]; `prior`: assignments [N, K]."""
    m = torch.exp(rows @ prototypes.T / settings.epsilon)
    if prior is not None:
        m = m ** (1 - settings.guidance) * prior**settings.guidance
    m = m / m.sum()
    for _ in range(settings.iterations):
        m = m / m.sum(dim=0, keepdim=True) / m.shape[1]
        m = m / m.sum(dim=1, keepdim=True) / m.shape[0]
    return m / m.sum(dim=1, keepdim=True)


def twin_targets(
    z: list[Tensor], past: list[Tensor] | None, prototypes: Tensor, settings: SwappedPredictionSettings
) -> list[Tensor]:
    """The targets [B, K] of each assigned view, with guidance and neighbours where the settings have them."""
    assigned = settings.views_for_assignment or tuple(range(len(z)))
    old = past if past is not None else [z[i][:0] for i in assigned]
    rows = [torch.cat([old[place], z[i]]) for place, i in enumerate(assigned)]
    plain = [twin_assignments(one, prototypes, settings) for one in rows]
    found = [one[len(before) :] for one, before in zip(plain, old, strict=True)]
    if settings.guidance and len(z) == 4:
        # f(x1) is guided by g(m1), f(x2) by g(m2): views 0 to 3 are f(x1), f(x2), g(m2), g(m1).
        for own, prior in ((assigned.index(0), assigned.index(3)), (assigned.index(1), assigned.index(2))):
            found[own] = twin_assignments(rows[own], prototypes, settings, plain[prior])[len(old[own]) :]
    if settings.neighbours and past is not None:
        for place, i in enumerate(assigned):
            for b in range(len(z[i])):
                cosines = [float(row @ z[i][b]) for row in past[place]]
                theirs = plain[place][cosines.index(max(cosines))]
                found[place][b] = (1 - settings.neighbours) * found[place][b] + settings.neighbours * theirs
    return found


def twin_loss(
    z: list[Tensor], past: list[Tensor] | None, heads: list[Tensor], settings: SwappedPredictionSettings, views: int
) -> tuple[Tensor, Tensor]:
    """Mean loss of the whole batch and assignments [A, B, S]; one number at a time, as in the formula. Short views come last."""
    assigned = settings.views_for_assignment or tuple(range(views))
    total = torch.zeros((), dtype=torch.float64)
    targets = [twin_targets([view.detach() for view in z[:views]], past, head.detach(), settings) for head in heads]
    for place, i in enumerate(assigned):
        for prototypes, of_head in zip(heads, targets, strict=True):
            q = of_head[place]
            for j in range(len(z)):
                if j == i:
                    continue
                for b in range(len(z[j])):
                    s = z[j][b] @ prototypes.T / settings.temperature
                    cross_entropy = -(q[b] * (s - s.exp().sum().log())).sum()
                    total = total + cross_entropy / len(z[j]) / (len(z) - 1) / len(assigned) / len(heads)
    return total, torch.stack([torch.cat([of_head[place] for of_head in targets], 1) for place in range(len(assigned))])


# --- any number of workers ------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "single": {"views": 2, "counts": [10], "settings": SwappedPredictionSettings()},
    "cross": {"views": 4, "counts": [10], "settings": SwappedPredictionSettings(queue=24)},
    "heads": {
        "views": 4,
        "counts": [6, 9, 4],
        "settings": SwappedPredictionSettings(queue=29, epsilon=0.03, iterations=4, views_for_assignment=(0, 3)),
    },
    "guided": {"views": 4, "counts": [6, 9], "settings": SwappedPredictionSettings(queue=24, guidance=0.4)},
    "short": {"views": 4, "short": 2, "counts": [10], "settings": SwappedPredictionSettings(queue=24)},
    "neighbours": {"views": 2, "counts": [10], "settings": SwappedPredictionSettings(queue=24, neighbours=0.3)},
    "both": {
        "views": 4,
        "counts": [10],
        "settings": SwappedPredictionSettings(
            queue=24, guidance=0.7, neighbours=0.5, views_for_assignment=(3, 0, 2, 1)
        ),
    },
}
BATCH, DIM, STEPS = 11, 8, 5  # 11 divides by none of 2, 3, 4
REFUSED = {2: [4], 4: [0, 10]}  # step -> slots that hold no sample
# Who has which share of the slots in a step; the numbers are places between slots. Some workers have none.
CUTS: dict[int, list[list[int]]] = {
    1: [[], [], [], [], []],
    2: [[5], [11], [0], [6], [3]],
    3: [[4, 8], [0, 6], [5, 5], [3, 11], [1, 2]],
    4: [[3, 6, 9], [0, 0, 11], [2, 2, 5], [11, 11, 11], [1, 5, 9]],
}


def step_embeddings(case: dict[str, Any], step: int, dtype: torch.dtype) -> Tensor:
    """[V, BATCH, DIM], the short views among them; the same on every worker."""
    return unit_rows(
        case["views"] + case.get("short", 0), BATCH, DIM, generator=torch.Generator().manual_seed(100 + step)
    ).to(dtype)


def learnt(case: dict[str, Any], z: list[Tensor]) -> list[Tensor]:
    """The views of the learner, which have a gradient."""
    return [*z[:2], *z[case["views"] :]]


def my_slots(step: int) -> Tensor:
    cuts = [0, *CUTS[distributed.world_size()][step], BATCH]
    mine = range(cuts[distributed.rank()], cuts[distributed.rank() + 1])
    return torch.tensor([slot for slot in mine if slot not in REFUSED.get(step, [])], dtype=torch.int64)


def make_prototypes(case: dict[str, Any], dtype: torch.dtype) -> Prototypes:
    return Prototypes(DIM, case["counts"], torch.Generator().manual_seed(7)).to(dtype)


def _steps(name: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """STEPS steps of one case on this worker; the queue fills up on the way (from step 2 on) and is used."""
    case = CASES[name]
    objective = SwappedPrediction(
        case["settings"], views=case["views"], dim=DIM, global_batch=BATCH, stage=name, short=case.get("short", 0)
    )
    prototypes = make_prototypes(case, dtype)
    records = []
    for step in range(STEPS):
        slots = my_slots(step)
        z = list(step_embeddings(case, step, dtype)[:, slots])
        for learned in learnt(case, z):
            learned.requires_grad_()
        prototypes.zero_grad()
        distributed.traffic.reset()
        # Step 3: the caller says that the start epoch has not come.
        outcome = objective(z, prototypes, slots=slots, use_queue=step != 3, step=step)
        messages, elements = distributed.traffic.messages, distributed.traffic.elements
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        gradients = [weight.grad for weight in prototypes.weights]
        metrics_before = distributed.traffic.messages
        metrics = outcome.metrics()
        metrics_messages = distributed.traffic.messages - metrics_before
        queue = objective.state_dict()
        distributed.all_reduce_sum_(*objective.shared)  # as training does, with the gradients
        objective.finish_step()
        distributed.all_reduce_sum_(*[gradient for gradient in gradients if gradient is not None])
        records.append(
            {
                "slots": slots,
                "assignments": outcome.assignments,
                # Averaged over workers like DDP's: a row's own gradient is then a W-th of what its worker has.
                "z": [row.grad / distributed.world_size() for row in learnt(case, z) if row.grad is not None],
                "prototypes": [gradient / distributed.world_size() for gradient in gradients if gradient is not None],
                "metrics": metrics,
                "traffic": (messages, elements, metrics_messages),
                "queue": queue,
            }
        )
    return records


def _all_cases() -> dict[tuple[str, torch.dtype], list[dict[str, Any]]]:
    return {(name, dtype): _steps(name, dtype) for name in CASES for dtype in (torch.float32, torch.float64)}


def merged(workers: list[list[dict[str, Any]]], step: int) -> dict[str, Any]:
    """One step of all workers as if one had done it: rows sorted by slot."""
    records = [worker[step] for worker in workers]
    order = torch.cat([record["slots"] for record in records]).argsort()
    for other in records[1:]:
        assert other["metrics"] == records[0]["metrics"]
        assert all(map(torch.equal, other["prototypes"], records[0]["prototypes"]))
    return {
        "slots": torch.cat([record["slots"] for record in records])[order],
        "assignments": torch.cat([record["assignments"] for record in records], dim=1)[:, order],
        "z": [torch.cat(parts)[order] for parts in zip(*(record["z"] for record in records), strict=True)],
        "prototypes": records[0]["prototypes"],
        "metrics": records[0]["metrics"],
        "queue": records[0]["queue"],
    }


@pytest.fixture(scope="module")
def runs() -> dict[int, list[dict[tuple[str, torch.dtype], list[dict[str, Any]]]]]:
    return {1: [_all_cases()], **{workers: run_processes(_all_cases, workers) for workers in (2, 3, 4)}}


TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    torch.float64: {"rtol": 1e-6, "atol": 1e-12},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_any_number_of_workers_equals_one(workers: int, name: str, dtype: torch.dtype, runs: Any) -> None:
    for step in range(STEPS):
        many = merged([run[name, dtype] for run in runs[workers]], step)
        one = merged([run[name, dtype] for run in runs[1]], step)
        torch.testing.assert_close(many, one, **TOLERANCE[dtype])
        assert many["assignments"].dtype == dtype


def _all_cases_in_blocks() -> dict[tuple[str, torch.dtype], list[dict[str, Any]]]:
    """Of one row each, which the queue's logits are otherwise too few for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vicc_ray.objective.swapped.BLOCK_BYTES", 1)
        return _all_cases()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_queue_in_blocks_is_the_whole_queue(workers: int, runs: Any) -> None:
    blocks = [_all_cases_in_blocks()] if workers == 1 else run_processes(_all_cases_in_blocks, workers)
    for (name, dtype), _ in runs[1][0].items():
        for step in range(STEPS):
            many, one = (merged([run[name, dtype] for run in some], step) for some in (blocks, runs[1]))
            torch.testing.assert_close(many, one, **TOLERANCE[dtype])
            assert blocks[0][name, dtype][step]["traffic"] == runs[max(workers, 1)][0][name, dtype][step]["traffic"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(CASES))
def test_one_worker_equals_the_twin(name: str, dtype: torch.dtype, runs: Any) -> None:
    case, tolerance = CASES[name], TOLERANCE[dtype]
    settings: SwappedPredictionSettings = case["settings"]
    if settings.neighbours:
        tolerance = TOLERANCE[torch.float32]  # the queue's copy travels with the gradients, as float32
    assigned = settings.views_for_assignment or tuple(range(case["views"]))
    length = settings.queue // BATCH * BATCH
    past = [torch.empty(0, DIM, dtype=torch.float64) for _ in assigned]
    places: list[int] = []
    for step in range(STEPS):
        one = merged([run[name, dtype] for run in runs[1]], step)
        slots = one["slots"]
        z = list(step_embeddings(case, step, dtype)[:, slots].double())
        heads = [weight.detach().double().requires_grad_() for weight in make_prototypes(case, dtype).weights]
        for learned in learnt(case, z):
            learned.requires_grad_()
        use_queue = length > 0 and step * BATCH >= length and step != 3
        loss, q = twin_loss(z, past if use_queue else None, heads, settings, case["views"])
        loss.backward()  # type: ignore[no-untyped-call]
        expected = {
            "assignments": q,
            "z": [row.grad for row in learnt(case, z)],
            "prototypes": [head.grad for head in heads],
        }
        actual = {key: one[key] for key in expected}
        torch.testing.assert_close(actual, expected, check_dtype=False, **tolerance)
        check_metrics(one["metrics"], loss.item(), q, [z[0].detach(), z[1].detach()], case["counts"], tolerance)
        places = [place for place in [*slots.tolist(), *[place + BATCH for place in places]] if place < length]
        past = [torch.cat([z[i].detach(), old])[: len(places)] for i, old in zip(assigned, past, strict=True)]
        if length:
            assert one["queue"]["positions"].tolist() == places
            torch.testing.assert_close(one["queue"]["rows"], torch.stack(past), check_dtype=False, **tolerance)


def check_metrics(
    metrics: dict[str, float], loss: float, q: Tensor, learned: list[Tensor], counts: list[int], tolerance: Any
) -> None:
    rows = q.shape[1]
    entropies, shares = [], []
    for part in torch.split(q, counts, dim=-1):
        entropies += [-(p * p.clamp_min(1e-300).log()).sum().item() for view in part for p in view]
        winners = {int(p.argmax()) for view in part for p in view}
        shares.append(len(winners) / min(part.shape[-1], rows * len(q)))
    cosines = [float(z[a] @ z[b]) for z in learned for a in range(rows) for b in range(rows) if a != b]
    expected = {
        "loss": loss,
        "ln_k": float(np.mean([math.log(count) for count in counts])),
        "entropy": float(np.mean(entropies)),
        "prototypes_used": float(np.mean(shares)),
        "cosine": float(np.mean(cosines)),
        "rows": float(rows),
    }
    torch.testing.assert_close(metrics, expected, **{**tolerance, "atol": 10 * tolerance["atol"]})


@pytest.mark.parametrize("name", list(CASES))
def test_few_messages_of_constant_size(name: str, runs: Any) -> None:
    """iterations + 1 for the assignments, as many for guided ones, one for the metrics; never more numbers with more workers."""
    case = CASES[name]
    iterations = case["settings"].iterations
    assigned = len(case["settings"].views_for_assignment or range(case["views"]))
    width = sum(case["counts"])
    passes = [assigned, *([2] if case["settings"].guidance else [])]  # views of each Sinkhorn-Knopp
    riders = (
        2 * (case["views"] + case.get("short", 0) + 1) + 1
    )  # alarms with the maximum, the number of rows with the first sum
    for workers in (2, 3, 4):
        for run in runs[workers]:
            for record in run[name, torch.float32]:
                messages, elements, metrics = record["traffic"]
                assert messages == (iterations + 1) * len(passes)
                assert elements == (iterations + 1) * sum(passes) * width + riders
                assert metrics == 1


# --- alarms ---------------------------------------------------------------------------------------------------------


def _alarming(what: str) -> tuple[str, str, bool]:
    """Type and text of the error, and whether the queue stayed as it was."""
    generator = torch.Generator().manual_seed(3)
    z = list(unit_rows(4, 2, DIM, generator=generator).float())
    objective = SwappedPrediction(SwappedPredictionSettings(queue=6), views=4, dim=DIM, global_batch=6, stage="rgb-2")
    prototypes = Prototypes(DIM, [5])
    slots = torch.arange(2) + 2 * distributed.rank()
    if distributed.rank() == 1:
        if what == "prototypes":
            prototypes.weights[0].data[2, 2] = torch.nan
        else:
            z[2][1, 3] = {"nan": torch.nan, "inf": -torch.inf, "length": 3.0}[what]
    try:
        objective(z, prototypes, slots=slots, use_queue=True, step=41)
    except (NonFiniteError, ValueError) as error:
        assert objective.queue is not None
        return type(error).__name__, str(error), len(objective.queue.positions) == 0
    return "nothing", "", False


def _alarms() -> dict[str, tuple[str, str, bool]]:
    return {what: _alarming(what) for what in ("nan", "inf", "length", "prototypes")}


def test_every_worker_learns_of_a_broken_embedding() -> None:
    results = run_processes(_alarms, 3)
    assert results[0] == results[1] == results[2]
    for what in ("nan", "inf"):
        kind, text, untouched = results[0][what]
        assert kind == "NonFiniteError" and untouched
        assert "stage rgb-2, step 41, worker 1, view 2 (of 4): NaN or infinity" in text and "\n" not in text
    assert results[0]["length"][0] == "ValueError" and "not of unit length" in results[0]["length"][1]
    assert results[0]["prototypes"][0] == "NonFiniteError" and "worker 1, the prototypes" in results[0]["prototypes"][1]


# --- the rest -------------------------------------------------------------------------------------------------------


def test_no_rows_on_any_worker_gives_a_connected_zero() -> None:
    objective = SwappedPrediction(SwappedPredictionSettings(), views=2, dim=DIM, global_batch=4, stage="rgb-1")
    prototypes = Prototypes(DIM, [5])
    z = [torch.empty(0, DIM, requires_grad=True) for _ in range(2)]
    outcome = objective(z, prototypes, slots=torch.empty(0), use_queue=False, step=0)
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    assert outcome.loss.item() == 0
    assert prototypes.weights[0].grad is not None and not prototypes.weights[0].grad.any()
    assert outcome.metrics() == {
        "loss": 0, "ln_k": math.log(5), "entropy": 0, "prototypes_used": 0, "cosine": 0, "rows": 0
    }  # fmt: skip


def test_collapsed_embeddings_show_in_the_metrics() -> None:
    """All embeddings alike: uniform assignments, cosine 1; with equal scores the loss is ln(K)."""
    z = [torch.nn.functional.normalize(torch.ones(6, DIM), dim=-1) for _ in range(2)]
    prototypes = Prototypes(DIM, [12])
    with torch.no_grad():
        prototypes.weights[0].copy_(prototypes.weights[0][:1].expand(12, DIM))
    objective = SwappedPrediction(SwappedPredictionSettings(), views=2, dim=DIM, global_batch=6, stage="rgb-1")
    metrics = objective(z, prototypes, slots=torch.arange(6), use_queue=False, step=0).metrics()
    expected = {"loss": math.log(12), "ln_k": math.log(12), "entropy": math.log(12), "cosine": 1.0, "rows": 6.0}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    assert metrics["prototypes_used"] <= 2 / 12


def test_scores_stay_float32_under_autocast() -> None:
    z = unit_rows(2, 6, DIM, generator=torch.Generator().manual_seed(0)).float()
    objective = SwappedPrediction(SwappedPredictionSettings(), views=2, dim=DIM, global_batch=6, stage="rgb-1")
    prototypes = Prototypes(DIM, [12])
    plain = objective(list(z), prototypes, slots=torch.arange(6), use_queue=False, step=0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = objective(list(z), prototypes, slots=torch.arange(6), use_queue=False, step=0)
    assert torch.equal(plain.assignments, cast.assignments) and torch.equal(plain.loss, cast.loss)
    halves = objective(list(z.bfloat16()), prototypes, slots=torch.arange(6), use_queue=False, step=0)
    assert halves.loss.dtype == halves.assignments.dtype == torch.float32


def test_the_second_view_may_carry_no_gradient() -> None:
    z = list(unit_rows(2, 6, DIM, generator=torch.Generator().manual_seed(0)).float())
    z[0].requires_grad_()
    objective = SwappedPrediction(SwappedPredictionSettings(), views=2, dim=DIM, global_batch=6, stage="rgb-1")
    outcome = objective(z, Prototypes(DIM, [12]), slots=torch.arange(6), use_queue=False, step=0)
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    assert z[0].grad is not None and z[1].grad is None and not outcome.assignments.requires_grad


def test_prototypes_are_unit_rows_from_a_generator() -> None:
    prototypes = Prototypes(DIM, [5, 7], torch.Generator().manual_seed(1))
    again = Prototypes(DIM, [5, 7], torch.Generator().manual_seed(1))
    other = Prototypes(DIM, [5, 7], torch.Generator().manual_seed(2))
    for weight, same, different in zip(prototypes.weights, again.weights, other.weights, strict=True):
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(len(weight)))
        assert torch.equal(weight, same) and not torch.equal(weight, different)
    before = prototypes.weights[1].detach().clone()
    with torch.no_grad():
        prototypes.weights[1].mul_(3)
    prototypes.normalise_()
    torch.testing.assert_close(prototypes.weights[1].detach(), before)
    z = torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))
    for scores, weight in zip(prototypes(z), prototypes.weights, strict=True):
        torch.testing.assert_close(scores, (z[:, None] * weight[None]).sum(-1))
    assert list(prototypes.state_dict()) == ["weights.0", "weights.1"]


def test_collapse_watch_warns_once_until_the_loss_leaves() -> None:
    watch = CollapseWatch(steps=100)
    ln_k = math.log(300)
    assert watch.observe(0, ln_k * 1.009, ln_k) is None
    assert watch.observe(90, ln_k * 0.991, ln_k) is None
    text = watch.observe(100, ln_k, ln_k)
    assert text is not None and "epsilon" in text and "100 steps" in text and "\n" not in text
    assert watch.observe(110, ln_k, ln_k) is None
    assert watch.observe(120, ln_k * 0.98, ln_k) is None
    assert watch.observe(130, ln_k, ln_k) is None
    assert watch.observe(229, ln_k, ln_k) is None
    assert watch.observe(230, ln_k, ln_k) is not None


@pytest.mark.parametrize(
    ("change", "name"),
    [({"temperature": 0.0}, "temperature"), ({"epsilon": -1.0}, "epsilon"), ({"iterations": 0}, "iterations"),
     ({"queue": -1}, "queue"), ({"guidance": 1.0}, "guidance"), ({"neighbours": 1.5}, "neighbours")],
)  # fmt: skip
def test_impossible_settings_are_named(change: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=name):
        SwappedPredictionSettings(**change)


def test_guidance_needs_the_views_that_guide() -> None:
    settings = SwappedPredictionSettings(guidance=0.5, views_for_assignment=(0, 1))
    with pytest.raises(UserError, match="guidance: needs the assignments of all views"):
        SwappedPrediction(settings, views=4, dim=DIM, global_batch=4, stage="rgb-2")
    SwappedPrediction(settings, views=2, dim=DIM, global_batch=4, stage="rgb-1")  # nothing guides a stream alone


def test_even_prototypes_are_as_far_apart_as_can_be() -> None:
    """Rankin's bounds where they are known; further apart than drawn ones, and locally best, where they are not."""

    def nearest(points: Tensor) -> Tensor:
        cosines = points.double() @ points.double().T
        return cosines.fill_diagonal_(-2).amax(dim=1)

    for count, dim, bound in ((2, 5, -1.0), (5, 8, -0.25), (9, 8, -1 / 8), (10, 8, 0.0), (16, 8, 0.0)):
        points = evenly_spread(count, dim, torch.Generator().manual_seed(4))
        torch.testing.assert_close(points.norm(dim=1), torch.ones(count))
        assert float(nearest(points).max()) == pytest.approx(bound, abs=1e-6), (count, dim)
    drawn = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(4)), dim=1)
    spread = evenly_spread(60, 8, torch.Generator().manual_seed(4))
    assert nearest(spread).mean() < nearest(drawn).mean() - 0.15
    assert nearest(spread).max() - nearest(spread).min() < 0.1, "nobody has a much nearer neighbour"
    assert torch.equal(spread, evenly_spread(60, 8, torch.Generator().manual_seed(4)))
    assert not torch.equal(spread, evenly_spread(60, 8, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("seed", range(8))
def test_even_prototypes_do_not_lie_on_each_other(seed: int) -> None:
    """Six on a circle stand at the corners of a hexagon, whatever they are drawn as; the descent alone puts two on one place."""
    points = evenly_spread(6, 2, torch.Generator().manual_seed(seed)).double()
    nearest = (points @ points.T).fill_diagonal_(-2).amax(dim=1)
    assert nearest.tolist() == pytest.approx([0.5] * 6, abs=0.02)


def test_even_prototypes_take_no_gradient() -> None:
    prototypes = Prototypes(DIM, [5, 20], torch.Generator().manual_seed(1), even=True)
    z = [row.requires_grad_() for row in unit_rows(2, 6, DIM, generator=torch.Generator().manual_seed(0)).float()]
    objective = SwappedPrediction(SwappedPredictionSettings(), views=2, dim=DIM, global_batch=6, stage="rgb-1")
    outcome = objective(z, prototypes, slots=torch.arange(6), use_queue=False, step=0)
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is None for weight in prototypes.weights)
    assert all(row.grad is not None and row.grad.any() for row in z)


@pytest.mark.parametrize("views", [(), (0, 0), (0, 2), (-1,)])
def test_impossible_views_are_named(views: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="views_for_assignment"):
        SwappedPrediction(
            SwappedPredictionSettings(views_for_assignment=views), views=2, dim=DIM, global_batch=4, stage="rgb-1"
        )


def test_wrong_shapes_are_told() -> None:
    objective = SwappedPrediction(SwappedPredictionSettings(), views=2, dim=DIM, global_batch=4, stage="rgb-1")
    with pytest.raises(ValueError, match="expected 2 embeddings"):
        objective([torch.zeros(3, DIM)] * 3, Prototypes(DIM, [5]), slots=torch.arange(3), use_queue=False, step=0)
