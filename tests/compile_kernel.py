"""Compiles the augmentation kernel for GPUs that need not be here, in every form in which training calls it; prints which."""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from vicc_ray.data.augment_triton import _chain

POINTERS = {"frames": "*u8", "whole": "*i32", "real": "*fp32", "sums": "*fp32", "scratch": "*fp32"}
FORMS: list[dict[str, Any]] = [
    {"CHANNELS": 3, "FLOW": False, "VECTORS": False, "STATS": True},
    {"CHANNELS": 3, "FLOW": False, "VECTORS": False, "STATS": False},
    {"CHANNELS": 2, "FLOW": True, "VECTORS": True, "STATS": False},
    {"CHANNELS": 2, "FLOW": True, "VECTORS": False, "STATS": True},
    {"CHANNELS": 2, "FLOW": True, "VECTORS": False, "STATS": False},
]
SIZES = {"SIDE": 128, "KY": 3, "KX": 5, "TILES": 32, "TILES_UP": 32, "PIXELS": 512, "INTEGERS": 7, "FLOATS": 6}


def main() -> None:
    """Compile; an error of the compiler ends it."""
    for capability, out in ((80, "*fp32"), (90, "*bf16")):
        for form in FORMS:
            constants = SIZES | form
            kinds = dict.fromkeys(_chain.arg_names, "i32") | POINTERS | {"out": out}
            kinds |= {name: "fp32" for name in kinds if name.startswith(("mean_", "std_"))}
            kinds |= dict.fromkeys(constants, "constexpr")
            source = ASTSource(fn=_chain, signature=kinds, constexprs=constants)
            compile(source, target=GPUTarget("cuda", capability, 32))
        print(capability)


if __name__ == "__main__":
    main()
