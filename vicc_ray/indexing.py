"""`vicc index`: from a source of videos to a manifest, with every refusal named and counted."""

from __future__ import annotations

import os
from pathlib import Path

from vicc_ray.console import console
from vicc_ray.data.layouts import index, scan
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.progress import Counter


def index_videos(
    source: str, out: Path, layout: str = "auto", split: str | None = None, workers: int | None = None
) -> Manifest:
    """Probe the videos of a source and write their manifest; UserError where none can be read."""
    found = scan(source, layout, split)
    with Counter("probing videos", len(found)) as counter:
        manifest = index(found, workers or len(os.sched_getaffinity(0)), lambda *_: counter.advance())
    for row in manifest.refused:
        console.print(f"refused: {row.video}: {row.refused}", markup=False)
    if not manifest.videos:
        raise UserError(f"{source}: none of its {len(manifest.refused)} videos can be read; nothing was written")
    manifest.write(out)
    splits = ", ".join(f"{name} {count}" for name, count in manifest.splits.items())
    ignored = sum(found.ignored.values())
    console.print(
        f"{out}: {len(manifest.videos)} videos used ({splits}), {len(manifest.labels)} classes, "
        f"{len(manifest.refused)} refused, {ignored} other files passed over",
        markup=False,
    )
    return manifest
