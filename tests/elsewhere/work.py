"""What `tests/test_elsewhere.py` has another Python do: import all of the package, index, train; prints what it found as JSON.

python work.py MANIFEST-MADE-WITH-DECORD TABLE-OF-ITS-VIDEOS FOLDER
"""

import json
import pkgutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from test_run import PlainHost
from tiny import tiny_experiment, tiny_plan

import vicc_ray
from vicc_ray.archive import faiss_index
from vicc_ray.cluster.resources import this_machine
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.probing import index
from vicc_ray.data.reader import ClipReader
from vicc_ray.errors import UserError
from vicc_ray.interop.exporting import export_onnx
from vicc_ray.models.encoder_file import load_encoder
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.sinks import check_sinks
from vicc_ray.training.driver import alone_in, is_held
from vicc_ray.training.loop import train
from vicc_ray.training.pretraining import Pretraining

FOR_GPUS = {"vicc_ray.data.augment_triton"}  # imported where a GPU and Triton are

theirs = Manifest.read(sys.argv[1])
out = Path(sys.argv[3])
modules = {found.name for found in pkgutil.walk_packages(vicc_ray.__path__, "vicc_ray.")} - FOR_GPUS
for name in sorted(modules):
    import_module(name)

ours = index(scan(sys.argv[2]), workers=2)
experiment = tiny_experiment()
reader = ClipReader(experiment.clip, experiment.flow, experiment.data)
clips = reader.read(theirs.videos[0], [0], ["rgb", "flow"])
reader.close()
plan = tiny_plan(experiment, theirs)
folder = RunFolder(out / "run")
with alone_in(folder):
    held = is_held(folder)
    folder.open(experiment, theirs.fingerprint())
    steps = train(Pretraining(), plan, folder, PlainHost(plan), None, None)


def refusal(call: Callable[[], object]) -> str:
    """What a user is told."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


encoder = load_encoder(folder.encoder("RGB-2"))
facts = {
    "needs": [
        refusal(lambda: check_sinks(tiny_experiment(train={"sinks": {"mlflow": {}}}))),
        refusal(lambda: check_sinks(tiny_experiment(train={"sinks": {"wandb": {}}}))),
        refusal(lambda: export_onnx(encoder, out / "encoder.onnx", (8, 32, 32))),
        refusal(faiss_index._faiss),
    ],
    "imported": len(modules),
    "readers": sorted({row.decoder for row in ours.videos}),
    "videos": len(ours),
    "fingerprint": ours.fingerprint(),
    "steps": steps,
    "held": held,
    "cpus": this_machine().cpus,
    "clips": {name: [list(array.shape), int(array.astype(int).sum())] for name, array in clips.items()},
}
print(json.dumps(facts))
