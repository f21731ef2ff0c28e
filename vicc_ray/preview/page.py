"""The contact sheet: strips -> strips of pictures -> one self-contained HTML file. A strip is a row of frames of one clip."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from vicc_ray.config import STREAMS, ClipConfig, Experiment, Stream
from vicc_ray.console import console
from vicc_ray.data.augment import lucas_kanade_bound
from vicc_ray.data.flow.bound import with_bound
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.preview.samples import (
    Frames,
    PreviewClip,
    PreviewSample,
    PreviewWindow,
    preview_samples,
    preview_stages,
    strip_frames,
)
from vicc_ray.report.flow_colour import colour_flow, colour_wheel, readable_limit
from vicc_ray.report.pages import distinct_names, render
from vicc_ray.runs.records import write_text
from vicc_ray.training.batches import make_plan

LEAST_HEIGHT = 112  # pixels of a frame on the page; smaller ones are enlarged pixel by pixel, so that they stay pixels
GAP = 4  # pixels between the frames of a strip
OUTLINE = ("black", "white", "white")  # of the crop, from the outer to the inner line: one of them shows on any picture
QUALITY = 85
WHEEL = 120  # pixels of the legend
STREAM_NAMES: dict[Stream, str] = {
    "rgb": "RGB",
    "flow": "flow",
    "difference": "difference",
    "lucas_kanade": "Lucas-Kanade",
}


@dataclass(frozen=True)
class Strip:
    """A row of frames as one picture; `kind` "decoded" or "seen"."""

    name: str
    kind: str
    uri: str
    alt: str


@dataclass(frozen=True)
class Panel:
    """A clip or a window: a heading, short facts, the colour chain, strips; `refused` says why there are none."""

    name: str
    facts: list[str]
    strips: list[Strip]
    full: bool = False
    chain: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Card:
    """A sample of the page; `refused` says why there is nothing of it to see."""

    name: str
    path: str
    label: str
    same_window: bool
    panels: list[Panel]
    refused: str = ""


@dataclass(frozen=True)
class Section:
    """A stage and samples of it."""

    name: str
    note: str
    cards: list[Card]


def write_preview(experiment: Experiment, manifest: Manifest, out: Path, samples: int = 6) -> Path:
    """Write an HTML contact sheet of a run's first `samples` training samples to `out`; returns it.

    Shows each as decoded, as augmented and as evaluation would see it, RGB and flow; the same for the same seed. Videos
    that cannot be read are shown as refused. UserError where the experiment cannot train on this manifest.
    """
    if samples < 1:
        raise UserError(f"preview: {samples} samples show nothing; at least 1 is needed")
    experiment = with_bound(experiment, manifest, console.print)
    plan = make_plan(experiment, manifest)
    strips = [(stage, list(preview_samples(plan, stage, samples))) for stage in preview_stages(plan)]
    limit = _limit(sample for _, found in strips for sample in found)
    flow = experiment.clip.motion == "flow"
    names = distinct_names({sample.video.video for _, found in strips for sample in found})
    sections = [
        Section(
            name=stage.name,
            note=_stage_note(stage.stream, stage.guide),
            cards=[_card(sample, names[sample.video.video], experiment, limit) for sample in found],
        )
        for stage, found in strips
    ]
    facts = {
        "title": experiment.name,
        "facts": _facts(experiment, manifest, len(plan.videos)),
        "sections": sections,
        "wheel": _uri(Image.fromarray(colour_wheel(WHEEL)), lossless=True),
        "limit": f"{limit:g}",
        "quantum": f"{2 * experiment.flow.pixels / 255:.2g}" if flow else "",
        "physical": experiment.augment.style == "physical" or not flow,
        "columns": [number + 1 for number in strip_frames(experiment.clip.frames)],
    }
    write_text(out, render(Path(__file__).parent / "page.html.j2", facts))
    return out


def _limit(samples: Iterable[PreviewSample]) -> float:
    """Pixels a frame at which the flow of the whole page has its full colour."""
    magnitudes = [
        frames.field.square().sum(dim=1).sqrt().flatten()
        for sample in samples
        for frames in _looks(sample)
        if frames.field is not None
    ]
    return readable_limit(torch.cat(magnitudes) if magnitudes else torch.zeros(0))


def _looks(sample: PreviewSample) -> Iterator[Frames]:
    for clip in sample.clips:
        yield from clip.decoded.values()
        yield from clip.view.values()
    if sample.window:
        yield from sample.window.view.values()


def _stage_note(stream: Stream, guide: Stream | None) -> str:
    alone = f"{STREAM_NAMES[stream]} learns"
    return f"{alone} from its own two views" if guide is None else f"{alone}, guided by {STREAM_NAMES[guide]}"


def _motion(experiment: Experiment) -> str:
    """What the motion stream is, in words."""
    clip, flow = experiment.clip, experiment.flow
    if clip.motion == "flow":
        return f"{flow.algorithm}, clipped at {flow.pixels:g} px"
    if clip.motion == "lucas_kanade":
        return f"Lucas-Kanade, of the network's input, clipped at {lucas_kanade_bound(clip.size):g} px"
    return "frame differences"


def _facts(experiment: Experiment, manifest: Manifest, videos: int) -> list[tuple[str, str]]:
    clip, augmentation = experiment.clip, experiment.augment
    if clip.fps is not None:
        taken = f"{clip.fps:g} a second"
    else:
        taken = "every frame" if clip.stride == 1 else f"one in {clip.stride} frames"
    height, width = clip.decode_size
    facts = [
        ("training videos", f"{videos} (split {experiment.data.train_split})"),
        ("clip", f"{clip.frames} frames, {taken}"),
        ("decoded", f"{width} × {height} px"),
        ("network input", f"{clip.size} × {clip.size} px"),
        ("motion", _motion(experiment)),
        ("augmentation", augmentation.style),
        ("seed", str(experiment.seed)),
    ]
    if manifest.refused:
        facts.append(("refused when indexed", str(len(manifest.refused))))
    return facts


def _card(sample: PreviewSample, name: str, experiment: Experiment, limit: float) -> Card:
    panels = [_clip_panel(number, clip, experiment, limit) for number, clip in enumerate(sample.clips, 1)]
    if sample.window:
        panels.append(_window_panel(sample.window, experiment.clip, limit))
    return Card(
        name=name,
        path=sample.video.video,
        label=sample.video.label or "",
        same_window=sample.same_window,
        panels=panels,
        refused=sample.refused,
    )


def _clip_panel(number: int, clip: PreviewClip, experiment: Experiment, limit: float) -> Panel:
    top, left, height, width = clip.box
    facts = [_start(clip.start, experiment.clip), f"crop {width} × {height} at ({left}, {top})"]
    if clip.flip:
        facts.append("flipped")
    chain = " → ".join(clip.operations) or "no colour operation drawn"
    strips = []
    for kind, decoded in clip.decoded.items():
        outlined = _strip(decoded, limit, clip.box)
        name = STREAM_NAMES[kind]
        strips.append(Strip(f"decoded {name}", "decoded", outlined, f"{name} as decoded, with the crop's outline"))
        for stream, view in clip.view.items():
            if STREAMS[stream].decoded == kind:
                name = STREAM_NAMES[stream]
                strips.append(Strip(f"{name} view", "seen", _strip(view, limit), f"{name} as the network sees it"))
    return Panel(f"Clip {number}", facts, strips, full=clip.full, chain=chain if clip.full else "")


def _window_panel(window: PreviewWindow, clip: ClipConfig, limit: float) -> Panel:
    facts = [f"window {window.number} of {window.windows}", _start(window.start, clip), "centre crop"]
    strips = [
        Strip(f"{STREAM_NAMES[stream]} input", "seen", _strip(frames, limit), f"{STREAM_NAMES[stream]} in evaluation")
        for stream, frames in window.view.items()
    ]
    return Panel("Evaluation", facts, strips, refused=window.refused)


def _start(start: int, clip: ClipConfig) -> str:
    """Where a clip begins, in video frames or, where those are taken by time, in seconds."""
    if clip.fps is None:
        return (
            f"from frame {start}" if start >= 0 else f"starts {-start} frames before the video: its first one repeats"
        )
    seconds = f"{abs(start) / clip.fps:.2f} s"
    return f"from {seconds}" if start >= 0 else f"starts {seconds} before the video: its first frame repeats"


def _strip(frames: Frames, limit: float, box: Sequence[int] | None = None) -> str:
    """The frames side by side as a data URI; with `box`, the outline of top, left, height, width on each."""
    pictures = frames.picture if frames.field is None else colour_flow(frames.field, limit)
    assert pictures is not None
    scale = max(1, -(-LEAST_HEIGHT // pictures.shape[1]))
    large = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, _ = large.shape
    canvas = Image.new("RGB", (n * width + (n - 1) * GAP, height), "white")
    for place, frame in enumerate(large):
        picture = Image.fromarray(frame)
        if box is not None:
            _outline(picture, [value * scale for value in box])
        canvas.paste(picture, (place * (width + GAP), 0))
    return _uri(canvas, lossless=scale > 1)


def _outline(picture: Image.Image, box: Sequence[int]) -> None:
    top, left, height, width = box
    pen = ImageDraw.Draw(picture)
    for inset, colour in enumerate(OUTLINE):
        corners = (left + inset, top + inset, left + width - 1 - inset, top + height - 1 - inset)
        if corners[0] <= corners[2] and corners[1] <= corners[3]:
            pen.rectangle(corners, outline=colour)


def _uri(picture: Image.Image, lossless: bool) -> str:
    file = io.BytesIO()
    if lossless:  # quality is the effort then; enlarged pixels compress well with little
        picture.save(file, format="WEBP", lossless=True, quality=20, method=1)
    else:
        picture.save(file, format="WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
