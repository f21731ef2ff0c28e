"""Every fault that a run must survive, caused one after the other in one run; the table of what happened.

`FAULTS` is what the fault tests run too. Each fault is caused while training goes on, and must be over, without a hand but
the same command where the driver itself died, before the next one comes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import Bar, Outcome
from benchmarks.fault_run import NEWEST_BYTES, FaultRun, TooLate, make_videos
from benchmarks.nodes import command_line, descendants, local_cluster, send
from vicc_ray.console import console
from vicc_ray.runs.checkpoint import MARKER, STATE_FILE
from vicc_ray.runs.records import last_records

NOTICE_SECONDS = 15
BETWEEN = 13  # steps from the end of one fault to the next; more than from checkpoint to checkpoint
NODES = 3
CHECKPOINT_EVERY, MONITOR_EVERY = 10, 12  # steps

# Every process of the cluster runs this at its start: once there is a file, one worker's weights turn to NaN where they
# lie in its memory, as by a broken memory bank.
_POISON = """
import gc, os, sys, threading, time
from contextlib import suppress
def watch(file):
    convolutions = []
    while not convolutions:
        time.sleep(0.2)
        if os.path.exists(file) and "vicc_ray.training.step" in sys.modules:
            import torch
            convolutions = [thing for thing in gc.get_objects() if isinstance(thing, torch.nn.Conv3d)]
    with suppress(FileNotFoundError):
        os.unlink(file)  # of several workers one takes it
        for convolution in convolutions:
            convolution.weight.data.fill_(float("nan"))  # behind autograd's back, as memory does
def begin():
    threading.Thread(target=watch, args=(os.environ["VICC_POISON"],), daemon=True).start()
if os.environ.get("VICC_POISON"):
    os.register_at_fork(after_in_child=begin)  # workers are forked from a server, whose threads do not come along
    if not any("warm" in argument for argument in sys.orig_argv):
        begin()
"""


@dataclass(frozen=True)
class Fault:
    """A fault: `cause` it and wait until it is over; returns seconds to the next step (0: training never stopped)."""

    name: str
    happens: str
    cause: Callable[[FaultRun], float]


@dataclass(frozen=True)
class Survived:
    """What a fault cost."""

    fault: Fault
    seconds: float
    steps_lost: int


def cause_all(run: FaultRun, faults: Sequence[Fault]) -> Iterator[Survived]:
    """Start the run and cause every fault in turn; the run goes on to its end after the last one."""
    run.start()
    run.wait(lambda: run.step() > BETWEEN, "the first steps", 240)
    for fault in faults:
        starts = len(run.events("start"))
        run.mark()
        seconds = fault.cause(run)
        again = run.events("start")[starts:]
        yield Survived(fault, seconds, max(run.reached - again[0]["step"], 0) if again else 0)
        run.wait_steps(BETWEEN)


def _kill_decoder(run: FaultRun) -> float:
    send(run.processes("MapWorker")[0], signal.SIGKILL)
    run.wait_steps(BETWEEN)
    return 0.0


def _kill_worker(run: FaultRun) -> float:
    at = run.mark()
    send(run.processes("RayTrainWorker")[0], signal.SIGKILL)
    return run.recovery(at)


def _kill_keeper_and_worker(run: FaultRun) -> float:
    """What the node of a worker had kept is gone when the worker dies."""
    at = run.mark()
    send(run.processes("Keeper")[0], signal.SIGKILL)
    send(run.processes("RayTrainWorker")[-1], signal.SIGKILL)
    return run.recovery(at)


def _kill_controller(run: FaultRun) -> float:
    """The process in which Ray Train watches the workers, wherever it is; they end with it."""
    at = run.mark()
    assert run.cluster.head
    heads = [pid for pid in descendants(run.cluster.head.process.pid) if "TrainController" in command_line(pid)]
    send([*heads, *run.processes("TrainController")][0], signal.SIGKILL)
    return run.recovery(at)


def _kill_all_workers(run: FaultRun) -> float:
    """Nobody is left to hand anything over; the nodes and what they kept are."""
    at = run.mark()
    for process in run.processes("RayTrainWorker"):
        send(process, signal.SIGKILL)
    return run.recovery(at)


def _kill_node_in_recovery(run: FaultRun) -> float:
    """A worker, and a node while the workers start again."""
    at, attempts = run.mark(), len(run.events("attempt"))
    send(run.processes("RayTrainWorker")[0], signal.SIGKILL)
    run.wait(lambda: len(run.events("attempt")) > attempts, "another attempt")
    run.cluster.kill(run.cluster.nodes[-1])
    return run.recovery(at, workers=len(run.cluster.nodes))


def _kill_node(run: FaultRun) -> float:
    at = run.mark()
    run.cluster.kill(run.cluster.nodes[0])
    return run.recovery(at, workers=len(run.cluster.nodes))


def _kill_node_in_checkpoint(run: FaultRun) -> float:
    """The node of worker 0, with a checkpoint begun that has no marker yet."""
    folder = run.run_folder.path / "checkpoints"

    def begun() -> bool:
        newest = max((step.name for step in folder.iterdir() if step.name.startswith("step-")), default=None)
        return newest is not None and not (folder / newest / MARKER).exists()

    # Worker 0 writes checkpoints and keeps tensorboard's file open.
    return _kill_stopped(
        run, begun, lambda pid: any(str(run.run_folder.tensorboard) in name for name in _open_files(pid))
    )


def _kill_node_in_evaluation(run: FaultRun) -> float:
    """A node while the recall of a step is being measured, which is after the step's record and before its own."""
    first = 6  # the step at which RGB-2 begins

    def begun() -> bool:
        last = last_records(run.run_folder.metrics, 1, NEWEST_BYTES)[-1]
        return bool(
            last["kind"] == "train" and last["stage"] == "RGB-2" and (last["step"] - first) % MONITOR_EVERY == 0
        )

    return _kill_stopped(run, begun, lambda pid: True)


def _kill_stopped(run: FaultRun, begun: Callable[[], bool], chosen: Callable[[int], bool]) -> float:
    """Kill the node of a chosen worker at a moment that is held still: all workers stop, and if it is still that moment
    the node goes; else they go on until it comes again."""
    deadline = time.monotonic() + 120
    workers: list[int] = []
    checked = -1.0
    while time.monotonic() < deadline:
        time.sleep(0.0005)
        if time.monotonic() - checked > 5:  # this takes longer than the moment lasts, so it is done before
            workers, checked = run.processes("RayTrainWorker"), time.monotonic()
        with suppress(OSError):
            if not begun():
                continue
            for pid in workers:
                send(pid, signal.SIGSTOP)
            mine = [pid for pid in workers if chosen(pid)] if begun() else []
            nodes = [node for node in run.cluster.nodes if mine and mine[0] in node.tree()]
            at = run.mark()
            if nodes:
                run.cluster.kill(nodes[0])
            for pid in workers:
                send(pid, signal.SIGCONT)
            if nodes:
                return run.recovery(at, workers=len(run.cluster.nodes))
    raise TooLate("the moment to kill a node did not come within 120 s")


def _open_files(pid: int) -> list[str]:
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]


def _join(run: FaultRun) -> float:
    """Nodes come back until there are as many as at the beginning."""
    at = run.mark()
    run.cluster.add_nodes(NODES - len(run.cluster.nodes))
    return run.recovery(at, workers=len(run.cluster.nodes))


def _poison(run: FaultRun) -> float:
    at = run.mark()
    Path(run.cluster.settings["VICC_POISON"]).touch()
    seconds = run.recovery(at)
    assert run.events("not finite"), "the loss never was NaN"
    return seconds


def _hang_worker(run: FaultRun) -> float:
    at = run.mark()
    send(run.processes("RayTrainWorker")[-1], signal.SIGSTOP)
    return run.recovery(at)


def _drain_node(run: FaultRun) -> float:
    """A spot machine: notice, a while, then it is gone. Returns seconds from its end to the next step of the others, which is no
    more than usual where they went on without it before."""
    cluster, node = run.cluster, run.cluster.nodes[-1]
    listed = _ray(run, "list", "nodes", "--format", "json", "--address", cluster.address)
    titles = " ".join(command_line(pid) for pid in node.tree())
    (number,) = (entry["node_id"] for entry in json.loads(listed) if entry["node_id"] in titles)
    _ray(
        run, "drain-node", "--address", cluster.address, "--node-id", number, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "spot", "--deadline-remaining-seconds", str(NOTICE_SECONDS),
    )  # fmt: skip
    gone = time.monotonic() + NOTICE_SECONDS
    run.wait(lambda: bool(run.events("preemption notice")), "the notice")
    time.sleep(max(gone - time.monotonic(), 0))
    at = run.mark()
    cluster.kill(node)
    return run.next_step(at, workers=len(cluster.nodes))


def _ray(run: FaultRun, *arguments: str) -> str:
    command = [str(run.cluster.product.ray), *arguments]
    return subprocess.run(command, env=run.cluster.environment, capture_output=True, text=True, check=True).stdout


def _spoil_video(run: FaultRun) -> float:
    video = next(iter(sorted((run.folder / "data").rglob("*.mp4"))))
    video.write_bytes(b"\0" * video.stat().st_size)
    run.wait_steps(BETWEEN)
    return 0.0


def _storage_away(run: FaultRun) -> float:
    """A file in the place of the folder: no checkpoint can be written or read."""
    folder = run.run_folder.path / "checkpoints"
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("away")
    run.wait(lambda: bool(run.events("checkpoint failed")), "a failed checkpoint")
    folder.unlink()
    folder.with_name("elsewhere").rename(folder)
    run.wait_steps(BETWEEN)
    return 0.0


def _disk_full(run: FaultRun) -> float:
    """A small file system with no room left under the checkpoints; needs the right to mount."""
    folder = run.run_folder.path / "checkpoints"
    failed = len(run.events("checkpoint failed"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    try:
        run.wait(lambda: len(run.events("checkpoint failed")) > failed, "a failed checkpoint")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    run.wait_steps(BETWEEN)
    return 0.0


def _kill_driver(run: FaultRun) -> float:
    assert run.driver
    run.driver.kill()
    run.driver.wait()
    at = run.mark()
    run.start()
    return run.recovery(at, seconds=240)


def _damage_checkpoint(run: FaultRun) -> float:
    """Cut the newest checkpoint short while nobody runs."""
    assert run.driver
    run.driver.kill()
    run.driver.wait()
    store = run.run_folder.checkpoints
    time.sleep(2)  # workers end a moment after their driver
    newest = store.listing()[0]
    os.truncate(Path(store.folder) / f"step-{newest.step:09d}" / STATE_FILE, newest.bytes // 2)
    at = run.mark()
    run.start()
    seconds = run.recovery(at, seconds=240)
    damaged = run.events("damaged checkpoint")
    assert damaged, "the damaged checkpoint was not reported"
    assert f"step {newest.step} is damaged" in damaged[-1]["text"]
    return seconds


def _terminate(run: FaultRun) -> float:
    assert run.driver
    send(run.driver.pid, signal.SIGTERM)
    status = run.driver.wait(60)
    assert status == 130, f"status {status}"
    at = run.mark()
    run.start()
    return run.recovery(at, seconds=240)


def _kill_head(run: FaultRun) -> float:
    """The whole cluster with its head is gone; the same command on another one goes on."""
    assert run.driver
    nodes = len(run.cluster.nodes)
    run.cluster.stop()
    try:
        run.driver.wait(10)
    except subprocess.TimeoutExpired:  # it goes on looking for its head, as a network may come back
        run.driver.kill()
        run.driver.wait()
    run.cluster.start_head()
    run.cluster.add_nodes(nodes)
    at = run.mark()
    run.start()
    return run.recovery(at, seconds=240)


# Three nodes at the beginning: two are killed, so that one is left, and come back; then two go again.
FAULTS = (
    Fault("SIGKILL of a decode actor", "Ray Data starts another, which decodes the block again; training waits", _kill_decoder),
    Fault("SIGKILL of a worker", "the workers start again from the last finished step", _kill_worker),
    Fault("SIGKILL of a keeper, then of a worker", "the same, from what the others know", _kill_keeper_and_worker),
    Fault("SIGKILL of all workers at once", "the same, from what their nodes kept or the last checkpoint", _kill_all_workers),
    Fault("SIGKILL of what watches the workers", "workers start again from the last checkpoint", _kill_controller),
    Fault("SIGKILL of a node in a step", "the others go on from the last finished step, fewer", _kill_node),
    Fault("SIGKILL of a node in the middle of a checkpoint", "the same", _kill_node_in_checkpoint),
    Fault("all but one node have left; they return", "the workers start again, more", _join),
    Fault("SIGSTOP of a worker (a hang)", "the others miss it within train.collective_timeout, then as a killed one", _hang_worker),
    Fault("SIGKILL of a node in the middle of an evaluation", "as in a step", _kill_node_in_evaluation),
    Fault("notice that a node goes in 15 s", "a checkpoint at once; the others go on when it is gone", _drain_node),
    Fault("nodes join again", "the workers start again, more", _join),
    Fault("SIGKILL of a worker, and of a node as they start again", "the others go on from the last step", _kill_node_in_recovery),
    Fault("a worker's weights turn to NaN in its memory", "back to the last checkpoint", _poison),
    Fault("a video becomes unreadable", "left out, counted, named in refused.jsonl", _spoil_video),
    Fault("the storage is away", "a line reports it; training goes on; the next checkpoint is tried", _storage_away),
    Fault("the driver is killed, the command given again", "goes on from the last checkpoint", _kill_driver),
    Fault("... and the newest checkpoint is cut short", "a line reports it; the one before it is taken", _damage_checkpoint),
    Fault("SIGTERM of the driver, the command given again", "ends with status 130 and how to go on", _terminate),
    Fault("the head node is killed, the command given on another cluster", "goes on from the last checkpoint", _kill_head),
)  # fmt: skip
FULL_DISK = Fault("the disk is full", "a line reports it; training goes on; the next checkpoint is tried", _disk_full)


def possible_faults() -> tuple[Fault, ...]:
    """All faults that this process has the right to cause."""
    return (*FAULTS[:-4], FULL_DISK, *FAULTS[-4:]) if may_mount() else FAULTS


def may_mount() -> bool:
    """Whether this process may mount a file system, which a full disk is made of."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False
        )
        if tried.returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@contextmanager
def fault_run(steps: int) -> Iterator[FaultRun]:
    """A run on three nodes whose longest stage has this many steps."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vicc-faults-")))
        (folder / "poison").mkdir()
        (folder / "poison" / "sitecustomize.py").write_text(_POISON)
        found = [str(folder / "poison"), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = {"PYTHONPATH": os.pathsep.join(found), "VICC_POISON": str(folder / "poison" / "now")}
        cluster = stack.enter_context(local_cluster(NODES, settings))
        make_videos(folder)
        schedule = {
            "single": {"length": "3 steps", "cosine_over": "100 %", "global_batch": 8, "queue_start": 0, "freeze_prototypes": 0},
            "cross": {"length": {"rgb": f"{steps} steps", "flow": "3 steps"}, "global_batch": 8, "queue_start": "2 steps"},
        }  # fmt: skip
        changes = {
            "schedule": schedule,
            "data": {"max_refused": 0.5},
            "train": {"checkpoint_every": f"{CHECKPOINT_EVERY} steps"},
            "evaluate": {"monitor_every": f"{MONITOR_EVERY} steps"},
        }
        yield FaultRun(folder, cluster, changes)


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Cause every fault once a round and print the table."""
    figures: dict[str, list[float]] = {}
    lost: dict[str, list[int]] = {}
    for _ in range(rounds):
        with fault_run(100_000) as run:
            for survived in cause_all(run, possible_faults()):
                name = survived.fault.name
                console.print(f"{name}: {survived.seconds:.0f} s, {survived.steps_lost} steps lost")
                figures.setdefault(name, []).append(survived.seconds)
                lost.setdefault(name, []).append(survived.steps_lost)
            run.stop()
    outcome = Outcome("s to the next step", figures)
    outcome.bars = [Bar("faults that needed a hand", 0.0, 0.0, False)]
    outcome.facts = {f"steps lost, {name}": steps for name, steps in lost.items()}
    return outcome
