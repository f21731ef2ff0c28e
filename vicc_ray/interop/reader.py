"""Opens a foreign `torch.save` file as plain tensors and numbers; whatever else is in it is refused, never executed."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vicc_ray.errors import UserError

# What data parallelism and torch.compile call the module that they wrap; both may wrap, parts or the whole, more than once.
_WRAPPERS = ("module", "_orig_mod")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary of a torch.save file, by a reader that knows tensors and numbers only and runs nothing."""
    with path.open("rb") as opened:
        start = opened.read(4)
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise UserError(f"{path} is not a PyTorch checkpoint (neither a zip nor a pickle): text, or another format")
    try:
        with torch.serialization.safe_globals(_numpy_numbers()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of TorchScript archives before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"calls {found[1]}" if found else "is damaged or holds more than tensors and numbers"
        raise UserError(f"{path} {what}, so it was not loaded; nothing in it was executed") from None
    except Exception as error:  # a damaged file can make the reader fail in any way
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise UserError(f"{path} cannot be read as a PyTorch checkpoint ({reason}): truncated or damaged") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{path} holds no 'state_dict', so it is not a ViCC or CoCLR checkpoint")
    return content


def _numpy_numbers() -> list[Any]:
    """What a numpy scalar (a best_loss, say) is rebuilt from: plain constructors, old and new module name."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(name)) for name in ("float32", "float64", "int64")]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *dtypes]


def plain_state_dict(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state_dict as plain tensors, without what wrappers put into names; UserError where two names become one."""
    state = content["state_dict"]
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise UserError(f"{path}: state_dict entry {name!r} is not a plain tensor but {type(tensor).__name__}")
        inner = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if inner in plain:
            raise UserError(f"{path}: state_dict has {inner} twice, once as {name}; keep one of them")
        plain[inner] = tensor
    return plain
