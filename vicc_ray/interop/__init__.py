"""Other people's files: published ViCC and CoCLR checkpoints in; published format, TorchScript and ONNX out.

`names` holds the explicit name maps, `reader` opens a foreign file without running anything in it, `importing` and
`exporting` turn one format into another.
"""

from vicc_ray.interop.exporting import (
    FORMATS,
    export,
    export_onnx,
    export_published,
    export_safetensors,
    export_torchscript,
)
from vicc_ray.interop.importing import ImportResult, import_published

__all__ = [
    "FORMATS",
    "ImportResult",
    "export",
    "export_onnx",
    "export_published",
    "export_safetensors",
    "export_torchscript",
    "import_published",
]
