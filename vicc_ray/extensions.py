"""What can be added without changing this package: one table of names a kind, each found when it is first used.

A name is a built-in one, one that an installed package gives as an entry point (group `vicc_ray.backbones` and so on), or
`package.module:Name` for anything that Python can import. `docs/extending.md` shows one of each kind.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vicc_ray.errors import UserError

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Extensions:
    """One kind of extension.

    Args:
        kind: what one is called in a message, for example "backbone".
        group: entry points of installed packages that add to it.
        built_in: name -> `package.module:Name` of those that come with this package; imported when they are used.
    """

    kind: str
    group: str
    built_in: Mapping[str, str]

    def names(self) -> tuple[str, ...]:
        """The built-in names, then those of installed packages, sorted."""
        return (*self.built_in, *sorted(self._installed().keys() - self.built_in.keys()))

    def check(self, name: str, setting: str) -> None:
        """UserError, beginning with the setting, unless the name is known or has the form `package.module:Name`.

        Nothing is imported: whether a `package.module:Name` is there shows when it is used.
        """
        if name in self.built_in or name in self._installed() or _PATH.fullmatch(name):
            return
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"{setting}: {self.kind} {name!r} is unknown{hint}; known: {', '.join(self.names())}; "
            f"one of your own is named package.module:Name, or comes with an installed package ({self.group})"
        )

    def load(self, name: str, setting: str) -> Any:
        """The class or function of a name; UserError where it is unknown or cannot be imported."""
        self.check(name, setting)
        target = self.built_in.get(name)
        if target is None and name in self._installed():
            target = self._installed()[name].value
        module, _, attribute = (target or name).partition(":")
        try:
            found: Any = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{setting}: {self.kind} {name!r} cannot be loaded ({' '.join(str(error).split())}); install its package on "
                "every machine of the run, or put its folder on PYTHONPATH"
            ) from error
        return found

    def _installed(self) -> Mapping[str, EntryPoint]:
        return _entry_points(self.group)


@cache
def _entry_points(group: str) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def importable_here() -> None:
    """Let `package.module:Name` be found in the working directory too, as `python -m` does, also by processes started from here."""
    import sys

    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*known, here]))


BACKBONES = Extensions(
    "backbone",
    "vicc_ray.backbones",
    {
        "s3d": "vicc_ray.models.s3d:S3D",
        "s3dg": "vicc_ray.models.s3d:S3DG",
        "r2plus1d_10": "vicc_ray.models.r2plus1d:R2Plus1D10",
        "r2plus1d_18": "vicc_ray.models.r2plus1d:R2Plus1D18",
        "mvit_v2_s": "vicc_ray.models.transformers:MViTv2S",
        "swin3d_t": "vicc_ray.models.transformers:Swin3DT",
    },
)

OBJECTIVES = Extensions(
    "objective", "vicc_ray.objectives", {"prototypes": "vicc_ray.objective.prototype_objective:PrototypeObjective"}
)

PROTOCOLS = Extensions(
    "evaluation protocol",
    "vicc_ray.protocols",
    {
        "retrieval": "vicc_ray.evaluation.neighbours:Retrieval",
        "linear": "vicc_ray.evaluation.classifiers:Linear",
        "finetune": "vicc_ray.evaluation.classifiers:Finetune",
        "probe": "vicc_ray.evaluation.classifiers:Probe",
    },
)

FLOW_ALGORITHMS = Extensions(
    "flow algorithm",
    "vicc_ray.flow_algorithms",
    {
        "dis": "vicc_ray.data.flow.algorithms:Dis",
        "dis_compensated": "vicc_ray.data.flow.algorithms:CompensatedDis",
        "farneback": "vicc_ray.data.flow.algorithms:Farneback",
        "tvl1": "vicc_ray.data.flow.algorithms:TVL1",
        "tvl1_torch": "vicc_ray.data.flow.algorithms:TorchTVL1",
        "motion_vectors": "vicc_ray.data.flow.algorithms:MotionVectors",
        "raft": "vicc_ray.data.flow.algorithms:Raft",
    },
)

LAYOUTS = Extensions(
    "data layout",
    "vicc_ray.layouts",
    {
        "ucf101": "vicc_ray.data.layouts.ucf101:UCF101",
        "hmdb51": "vicc_ray.data.layouts.hmdb51:HMDB51",
        "kinetics": "vicc_ray.data.layouts.kinetics:Kinetics",
        "folders": "vicc_ray.data.layouts.scanning:Folders",
        "classes": "vicc_ray.data.layouts.scanning:Classes",
        "splits": "vicc_ray.data.layouts.scanning:Splits",
        "flat": "vicc_ray.data.layouts.scanning:Flat",
        "csv": "vicc_ray.data.layouts.scanning:Table",
        "list": "vicc_ray.data.layouts.scanning:List",
        "video": "vicc_ray.data.layouts.scanning:Video",
    },
)

SINKS = Extensions(
    "metrics sink",
    "vicc_ray.sinks",
    {
        "tensorboard": "vicc_ray.runs.sinks:TensorBoard",
        "mlflow": "vicc_ray.runs.sinks:MLflow",
        "wandb": "vicc_ray.runs.sinks:WeightsAndBiases",
    },
)
