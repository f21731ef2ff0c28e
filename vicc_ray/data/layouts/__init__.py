"""What to index: which videos a folder, a glob, a table or a list names, with labels, groups and splits.

Splits are names. The system trains on `train`, which is the gallery of retrieval too, and queries with `query`; a data
set may use others and say so in the experiment.
"""

from vicc_ray.data.layouts.candidates import VIDEO_EXTENSIONS, Candidate, Found, deduplicate
from vicc_ray.data.layouts.contract import DataLayout, Source
from vicc_ray.data.layouts.scanning import scan
from vicc_ray.data.layouts.splits import SPLIT_SYNTAX, assign_splits

__all__ = [
    "SPLIT_SYNTAX",
    "VIDEO_EXTENSIONS",
    "Candidate",
    "DataLayout",
    "Found",
    "Source",
    "assign_splits",
    "deduplicate",
    "scan",
]
