"""Makes a Python, and those that it starts, like one on another machine: packages and calls that only some have are absent."""

import os
import sys
from typing import Any

# decord and triton have no wheels for other processors or systems, fcntl is Unix's, the rest are extras.
ABSENT = {"decord", "triton", "fcntl", "faiss", "mlflow", "onnx", "onnxscript", "onnxruntime", "wandb"}
CALLS = ("sched_getaffinity", "sched_setaffinity", "memfd_create", "pidfd_open", "pread", "pwrite")


class Without:
    """A finder of modules that finds none of these."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in ABSENT:
            return None
        return self.finder.find_spec(fullname, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for _name in CALLS:
    if hasattr(os, _name):
        delattr(os, _name)
