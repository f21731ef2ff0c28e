"""The typed experiment: its sections, their defaults (the published recipe, Toering et al., WACV 2022) and their checks.

Defaults live here and nowhere else; an experiment file is a small set of differences from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from vicc_ray import storage
from vicc_ray.config.streams import MOTIONS, Decoded, Motion, Stream, decoded_for
from vicc_ray.config.values import (
    BUDGET_SCHEMA,
    LENGTH_SCHEMA,
    Budget,
    Cadence,
    Duration,
    Length,
    Section,
    SpaceRange,
    WorkerRange,
    Workers,
    parse_budget,
    parse_duration,
)
from vicc_ray.errors import UserError
from vicc_ray.extensions import BACKBONES, FLOW_ALGORITHMS, OBJECTIVES, SINKS

# Of a picture: what H.264's highest levels allow (139,264 macroblocks, 8192 x 4352). A file of 200 KB can hold a picture that does
# not fit into memory.
MAX_PIXELS = 139_264 * 256
# Prototypes whose pairs fit into memory while they are spread evenly.
MOST_EVEN = 8192


@contextmanager
def _as_value_error() -> Iterator[None]:
    """For checks of other modules inside of a validator, whose errors are reported with the source of the settings."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from None


class StreamLengths(Section):
    """One length a stream; `flow` is that of the motion stream, whichever it is."""

    rgb: Length = Field(..., description="of the RGB encoder")
    flow: Length = Field(..., description="of the motion encoder")


def _parse_stage_length(value: Any) -> Duration | StreamLengths:
    if isinstance(value, StreamLengths):
        return value
    if not isinstance(value, Mapping):
        return parse_duration(value)
    lengths = _by_stream(value)
    if set(lengths) != {"rgb", "flow"}:
        raise ValueError("a length for each stream is written {rgb: 30 steps, flow: 50 steps}")
    return StreamLengths(**{stream: parse_duration(length) for stream, length in lengths.items()})


def _by_stream(value: Mapping[Any, Any]) -> dict[Any, Any]:
    """Values for RGB and for the motion stream, whose key may be its name or `motion`."""
    return {"flow" if key in ("motion", *MOTIONS) else key: item for key, item in value.items()}


def _dump_stage_length(value: Duration | StreamLengths) -> Any:
    return str(value) if isinstance(value, Duration) else value.model_dump(mode="json")


# One function for both forms: a union would name the form that was not meant in its complaint.
_LENGTH_A_STREAM = {
    "type": "object",
    "properties": dict.fromkeys(("rgb", "motion", *MOTIONS), LENGTH_SCHEMA),
    "required": ["rgb"],
    "minProperties": 2,
    "maxProperties": 2,
    "additionalProperties": False,
}
STAGE_LENGTH_SCHEMA = {
    "title": f"{LENGTH_SCHEMA['title']}; or one a stream: {{rgb: 30 steps, flow: 50 steps}}",
    "anyOf": [LENGTH_SCHEMA, _LENGTH_A_STREAM],
}
StageLength = Annotated[
    Duration | StreamLengths,
    PlainValidator(_parse_stage_length),
    PlainSerializer(_dump_stage_length),
    WithJsonSchema(STAGE_LENGTH_SCHEMA, mode="validation"),
]


def _parse_samples(value: Any) -> str:
    named = re.fullmatch(r"(\d+(?:\.\d+)?) ?s(?:econds)?", value.strip()) if isinstance(value, str) else None
    if value == "row" or (named is not None and float(named[1]) > 0):
        return "row" if named is None else f"{float(named[1]):g}s"
    raise ValueError(
        f"{value!r}: is neither row (one sample a row) nor seconds such as 10s (one sample for every 10 s)"
    )


SAMPLES_SCHEMA = {
    "title": "row, or seconds such as 10s",
    "type": "string",
    "pattern": r"^\s*(row|[0-9]+(\.[0-9]+)? ?s(econds)?)\s*$",
}
SamplesAnEpoch = Annotated[str, BeforeValidator(_parse_samples), WithJsonSchema(SAMPLES_SCHEMA, mode="validation")]


class StreamCounts(Section):
    """One set of prototype counts a stream; `flow` is that of the motion stream, whichever it is."""

    rgb: int | tuple[int, ...] = Field(..., description="K of the RGB encoder; a list gives several heads")
    flow: int | tuple[int, ...] = Field(..., description="K of the motion encoder; a list gives several heads")


class DataConfig(Section):
    """Which videos."""

    manifest: str | None = Field(None, description="Parquet file written by `vicc index`, or a folder of such files")
    train_split: str = Field("train", description="split that the stages learn from")
    gallery_split: str = Field("train", description="split that retrieval searches in")
    query_split: str = Field("query", description="split of the queries of retrieval")
    samples_an_epoch: SamplesAnEpoch = Field(
        "row",
        description="training samples of a manifest row in an epoch: row: one, as published; 10s: one for every ten seconds of "
        "it, at least one",
    )
    max_refused: float = Field(0.01, ge=0, le=1, description="share of unreadable videos above which a run stops")
    decoder: Literal["auto", "pyav"] = Field(
        "auto",
        description="auto: decord where it is installed and indexing found it right, else PyAV; pyav: PyAV for all",
    )
    interlaced: Literal["weave", "deinterlace"] = Field(
        "weave",
        description="pictures marked interlaced: weave: both fields as one picture, right for progressive films in a broadcast; "
        "deinterlace: their top fields alone, so that motion has no combs",
    )
    decode_timeout: float = Field(60, gt=0, description="seconds after which a video's decoder counts as hung")
    max_pixels: int = Field(
        MAX_PIXELS, gt=0, description="pixels of a picture (8192 x 4352) above which a video counts as unreadable"
    )

    @property
    def seconds_a_sample(self) -> float | None:
        """Seconds of video for which an epoch has a sample; None: it has one a row."""
        return None if self.samples_an_epoch == "row" else float(self.samples_an_epoch.removesuffix("s"))


class ClipConfig(Section):
    """Which frames of a video make a clip, and at what size they are decoded and seen."""

    frames: int = Field(32, ge=2, description="frames a clip, T (even)")
    stride: int = Field(1, ge=1, description="video frames from one clip frame to the next")
    fps: float | None = Field(
        None, gt=0, description="clip frames a second, taken by their time stamps; none: every stride-th frame"
    )
    decode_size: tuple[int, int] = Field((128, 171), description="height, width at which frames leave the decoder")
    size: int = Field(128, ge=16, description="height and width that the network sees")
    motion: Motion = Field(
        "flow",
        description="the stream next to RGB: flow: optical flow, measured from the videos; made of the RGB crops on the training "
        "device, so that no flow is measured: lucas_kanade: flow by the method of these two; difference: of consecutive frames",
    )
    source: Literal["stream", "store"] = Field(
        "stream", description="stream: decoded from the videos; store: read, with its flow, from what `vicc pack` wrote"
    )
    store: str | None = Field(None, description="folder or URI that `vicc pack` wrote, for source: store")

    @model_validator(mode="after")
    def _check(self) -> ClipConfig:
        if self.frames % 2:
            raise ValueError(f"frames: {self.frames} is odd; windows overlap by half a clip, so it must be even")
        if self.fps is not None and self.stride != 1:
            raise ValueError(
                f"fps: {self.fps:g} and stride {self.stride} both say how frames are taken; set one of them"
            )
        if min(self.decode_size) < 8:
            raise ValueError(f"decode_size: {list(self.decode_size)} is too small; each side needs at least 8 pixels")
        if self.source == "store" and not self.store:
            raise ValueError("store: is not set; source: store reads what 'vicc pack' wrote, so name that folder")
        return self


class FlowConfig(Section):
    """How motion between consecutive frames is measured."""

    algorithm: str = Field(
        "dis",
        description="dis, farneback, tvl1: OpenCV's; dis_compensated: dis beyond the camera's motion, each field without its "
        "median; tvl1_torch: the same TV-L1, faster, also on a GPU; motion_vectors: the codec's own; raft: a network; or one of "
        "another package (docs/extending.md)",
    )
    options: dict[str, Any] = Field({}, description="settings of a flow algorithm of another package")
    bound: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        20.0,
        description="pixels a frame at which displacements are clipped before 8 bits; auto: the store's, or what a sample of the "
        "training videos needs, written into the run as a number",
    )
    source: Literal["stream", "store"] = Field(
        "stream",
        description="stream: measured while streaming, or what clip.store holds; store: read from a store of its own",
    )
    store: str | None = Field(
        None, description="folder or URI that `vicc flow` or `vicc pack` wrote, for source: store"
    )
    weights: str | None = Field(None, description="file with RAFT's weights, for algorithm: raft")

    @model_validator(mode="after")
    def _check(self) -> FlowConfig:
        with _as_value_error():
            FLOW_ALGORITHMS.check(self.algorithm, "algorithm")
        if self.source == "store" and not self.store:
            raise ValueError("store: is not set; source: store reads what 'vicc flow' wrote, so name that folder")
        if self.algorithm == "raft" and self.source == "stream" and not self.weights:
            raise ValueError("weights: is not set; algorithm: raft needs a file with its weights")
        return self

    @property
    def pixels(self) -> float:
        """The bound in pixels; UserError where it is auto still."""
        if self.bound == "auto":
            raise UserError(
                "flow.bound: auto becomes a number where a run, a store or a sweep begins; here give the number, such as 20"
            )
        return self.bound


class AugmentConfig(Section):
    """What is done to a training clip, with the published values."""

    style: Literal["physical", "reference"] = Field(
        "physical", description="reference: colour and flips of flow as published"
    )
    area: tuple[float, float] = Field((0.2, 1.0), description="share of the frame's area that a crop keeps")
    aspect: tuple[float, float] = Field((3 / 4, 4 / 3), description="aspect ratio of a crop")
    jitter: tuple[float, float, float, float] = Field(
        (0.4, 0.4, 0.4, 0.1), description="largest change of brightness, contrast, saturation and hue"
    )
    jitter_p: float = Field(0.8, ge=0, le=1, description="probability of colour jitter")
    gray_p: float = Field(0.2, ge=0, le=1, description="probability that one colour channel stands for all three")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="standard deviation of the blur, in pixels")
    blur_p: float = Field(0.5, ge=0, le=1, description="probability of Gaussian blur")
    flip_p: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    same_window_p: float = Field(0.5, ge=0, le=1, description="probability that both clips show the same time window")
    full_chain_p: float = Field(
        0.3, ge=0, le=1, description="probability of the full chain for a clip of its own window"
    )
    local_clips: int = Field(
        0,
        ge=0,
        le=8,
        description="temporal multi-crop: short clips cut out of a sample's two, which the learner predicts the assignments of the "
        "long ones from; 0: none",
    )
    local_frames: int = Field(8, ge=2, description="frames of a short clip")
    follow: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the crops of pretraining whose middle is drawn where things move, by flow beyond the camera's; 0: "
        "they lie anywhere",
    )


class ModelConfig(Section):
    """The encoders; both streams use the same kind."""

    backbone: str = Field(
        "s3d",
        description="s3d, s3dg, r2plus1d_10, r2plus1d_18, mvit_v2_s, swin3d_t, or one of another package (docs/extending.md)",
    )
    width: float = Field(1.0, gt=0, le=4, description="multiplier of every channel count")
    embedding_dim: int = Field(128, ge=2, description="D, size of the projected embedding")
    batch_norm: Literal["auto", "local", "sync", "shuffle"] = Field(
        "auto",
        description="auto: statistics over all workers on GPU, per worker on CPU; shuffle: per worker with the second "
        "view's batch shuffled over workers, as published (needs objective.second_view_gradient: false)",
    )
    joint_views: bool = Field(
        False,
        description="the learner encodes both views in one forward: batch norm takes its statistics over both views "
        "together and its running statistics move once a step; false: over one view at a time, as published",
    )
    difference_filters: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the filters of the RGB encoder's convolutions over time that start without their mean over time, so "
        "that they respond to change alone; 0: none",
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        with _as_value_error():
            BACKBONES.check(self.backbone, "backbone")
        return self


class ObjectiveConfig(Section):
    """What encoders learn by; all but `name` and `options` are of the built-in one: prototypes and the swapped prediction."""

    name: str = Field("prototypes", description="prototypes, or an objective of another package (docs/extending.md)")
    options: dict[str, Any] = Field({}, description="settings of an objective of another package")
    prototypes: int | tuple[int, ...] | StreamCounts = Field(300, description="K; a list gives several heads")
    temperature: float = Field(0.1, gt=0, description="T of the softmax over prototypes")
    epsilon: float = Field(0.05, ge=0.001, description="entropy regularisation of Sinkhorn-Knopp")
    iterations: int = Field(3, ge=1, description="Sinkhorn-Knopp iterations")
    queue: int = Field(1920, ge=0, description="past embeddings that join the assignments, over all workers; 0: none")
    views_for_assignment: tuple[int, ...] | None = Field(
        None, description="views whose assignments are predicted; default all"
    )
    guidance: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="guided assignments: in a cross-stream stage, how much the other stream's assignments of the same clips count "
        "as a prior in Sinkhorn-Knopp for the learner's; 0: not",
    )
    neighbours: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of a target that is the assignment of the queue's nearest embedding, once the queue is used; 0: none",
    )
    even_prototypes: bool = Field(
        False, description="prototypes spread evenly over the sphere, fixed, the same for both streams; false: learnt"
    )
    second_view_gradient: bool = Field(True, description="false: only the first view carries gradient, as published")

    @model_validator(mode="after")
    def _check(self) -> ObjectiveConfig:
        with _as_value_error():
            OBJECTIVES.check(self.name, "name")
        for count in (*self.heads("rgb"), *self.heads("flow")):
            if count < 2:
                raise ValueError(f"prototypes: {count} cannot separate anything; at least 2 are needed")
        views = self.views_for_assignment
        if views is not None and (not views or len(set(views)) != len(views) or not set(views) <= {0, 1, 2, 3}):
            raise ValueError(f"views_for_assignment: {list(views)} must name some of the views 0, 1, 2, 3 once each")
        if self.guidance and views is not None and set(views) != {0, 1, 2, 3}:
            raise ValueError(
                f"guidance: {self.guidance:g} needs the assignments of all views; unset views_for_assignment"
            )
        if self.neighbours and not self.queue:
            raise ValueError(f"neighbours: {self.neighbours:g} come from the queue; set queue above 0")
        if self.even_prototypes and max(*self.heads("rgb"), *self.heads("flow")) > MOST_EVEN:
            raise ValueError(
                f"even_prototypes: are for up to {MOST_EVEN} prototypes a head; lower prototypes, or learn them"
            )
        return self

    def heads(self, stream: str) -> tuple[int, ...]:
        """The number of prototypes of each head of a stream."""
        counts = self.prototypes
        if isinstance(counts, StreamCounts):
            counts = counts.rgb if stream == "rgb" else counts.flow
        return (counts,) if isinstance(counts, int) else counts


class StageConfig(Section):
    """One kind of stage; the two kinds differ in their defaults only."""

    length: StageLength = Field(..., description="how long a stage learns, for both streams or for each")
    cosine_over: Length | None = Field(
        None, description="length that the cosine is laid out over; none: the stage's own"
    )
    global_batch: int = Field(..., ge=1, description="samples a step over all workers")
    queue_start: Length = Field(..., description="when the queue joins the assignments (it must be full too)")
    freeze_prototypes: Length = Field(..., description="how long the prototypes stay as they are at the stage's start")

    def stage_length(self, stream: str) -> Duration:
        """How long the stage of a stream learns."""
        if isinstance(self.length, StreamLengths):
            return self.length.rgb if stream == "rgb" else self.length.flow
        return self.length


class SingleConfig(StageConfig):
    """The single-stream stages: an encoder learns from its own stream's two views."""

    length: StageLength = Duration(300, "epochs")
    cosine_over: Length | None = Duration(500, "epochs")
    global_batch: int = Field(192, ge=1)
    queue_start: Length = Duration(150, "epochs")
    freeze_prototypes: Length = Duration(100, "epochs")


class CrossConfig(StageConfig):
    """The cross-stream stages: an encoder learns with both streams' views, the other one guides."""

    length: StageLength = Duration(100, "epochs")
    global_batch: int = Field(96, ge=1)
    queue_start: Length = Duration(25, "epochs")
    freeze_prototypes: Length = Duration(0, "epochs")
    guide: Literal["frozen", "learning", "averaged"] = Field(
        "frozen",
        description="the other stream's encoder: frozen: as published, the streams take turns; learning: both learn in one stage, "
        "each from the other as it is at that step; averaged: likewise, each from the other's averaged weights (optim.ema)",
    )
    prototypes: Literal["own", "guide"] = Field(
        "own",
        description="where a stage's prototypes start: own: as its stream's stage before left them, as published; guide: as the "
        "guide's are, so that its assignments mean something from the first step (where both streams learn, RGB takes the motion "
        "stream's)",
    )


class ScheduleConfig(Section):
    """The stages: each stream alone, then in turn with the other stream's frozen encoder as a guide."""

    total: Length | None = Field(None, description="what 100 % stands for when a stage's length is a percentage")
    single: SingleConfig = SingleConfig()
    cross: CrossConfig = CrossConfig()
    cycles: int = Field(2, ge=0, description="cross-stream stages a stream; 0: single-stream only")


class OptimConfig(Section):
    """How weights follow gradients."""

    name: Literal["lars", "sgd", "adamw"] = Field(
        "lars", description="lars: SGD with a trust ratio a layer, as published"
    )
    lr: float = Field(0.6, gt=0, description="learning rate at the start of a stage's cosine")
    end_lr: float = Field(0.0006, ge=0, description="learning rate at the end of it")
    warm_up: Length = Field(Duration(0, "epochs"), description="linear rise of the learning rate at a stage's start")
    momentum: float = Field(0.9, ge=0, lt=1, description="of lars and sgd")
    weight_decay: float = Field(1e-6, ge=0, description="decay of the weights; of adamw apart from the gradient")
    trust: float = Field(0.001, gt=0, description="LARS trust coefficient")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient; none: unbounded")
    micro_batch: int | None = Field(None, ge=1, description="samples a worker encodes at a time; none: its whole share")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="of the encoders; bf16: on GPUs, and on CPUs with matrix units for it (Intel's AMX); auto: bf16 there, "
        "fp32 elsewhere; the objective is always fp32",
    )
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights used for evaluation; 0: none")


class PlaceConfig(Section):
    """Which nodes do what, by the labels that the cluster gave them; none: any node.

    Labels of nodes that a cluster without an autoscaler does not have are passed over, with a line that says so.
    """

    train: dict[str, str] = Field({}, description="labels of the nodes that train and encode: {vicc-role: train}")
    decode: dict[str, str] = Field(
        {}, description="labels of the nodes that decode and measure flow: {vicc-role: decode}"
    )


class TrainConfig(Section):
    """Where and how often; none of it changes what is learnt."""

    workers: Workers = Field(
        WorkerRange(min=1, max=1), description="Ray Train workers; {min: 2, max: 8}: as many as there is room for"
    )
    resize_after: float = Field(
        60, gt=0, description="seconds between two checks whether the cluster has room for more workers"
    )
    use_gpu: bool | Literal["auto"] = Field(
        "auto", description="one GPU a worker; auto: where the cluster has them now"
    )
    decode_actors: int | None = Field(
        None,
        ge=1,
        description="Ray Data actors that decode, at least one a worker; none: as many as CPUs are free. A core "
        "delivers some 5 samples/s of 2 x 32 "
        "frames with flow from videos of 480 lines, some 100 from a packed store; `vicc doctor` measures yours",
    )
    threads: int | None = Field(
        None, ge=1, description="most CPU threads of a worker; none: its share of its node's CPUs"
    )
    place: PlaceConfig = Field(PlaceConfig(), description="labels of the nodes that train and of those that decode")
    channels_last: bool = Field(
        False, description="memory layout of the encoders; faster for some backbones and devices"
    )
    planar: bool | Literal["auto"] = Field(
        "auto",
        description="factorised convolutions and max-pools computed as 2D ones, in channels-last memory; auto: on CPU, "
        "where it is measured to be faster",
    )
    fold_guide: bool = Field(True, description="batch norm of the frozen guide is folded into its convolutions")
    compile: bool = Field(
        False, description="torch.compile of the backbones: minutes at each stage's start, then faster steps"
    )
    recompute: bool = Field(
        False, description="activations are computed again in backward instead of kept: less memory, a slower step"
    )
    fused_augment: bool = Field(
        False, description="on GPU, augmentation by one Triton kernel instead of PyTorch's operators one by one"
    )
    autotune: bool = Field(
        False, description="on GPU, cuDNN tries its convolution kernels at each stage's start and keeps the fastest"
    )
    cuda_graphs: bool = Field(
        False, description="on one GPU, the encoders as CUDA graphs: fewer launches, for small batches a worker"
    )
    overlap: bool = Field(
        True, description="on GPU, the next batch is copied and augmented while the backward pass still runs"
    )
    checkpoint_every: Cadence = Field(
        Duration(5, "minutes"), description="a checkpoint of everything, this often, written beside training"
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="newest checkpoints that are kept, beside the one with the best recall of its stage"
    )
    sinks: dict[str, dict[str, Any]] = Field(
        {"tensorboard": {}},
        description="where metrics go besides metrics.jsonl, with options: tensorboard, mlflow, wandb or another package's",
    )
    record_samples: bool = Field(False, description="write which videos each step consumed, to prove that none is lost")
    log_every: int = Field(10, ge=1, description="steps from one record to the next")
    collapse_warning_steps: int = Field(
        200, ge=1, description="steps at a loss of ln(K) after which a warning is recorded"
    )
    max_failures: int = Field(
        5, ge=0, description="failures in a row, without a checkpoint in between, after which a run gives up"
    )
    object_store_share: float = Field(
        0.25, gt=0, le=0.9, description="most of the memory that Ray's object store may take"
    )
    collective_timeout: float = Field(
        120, gt=0, description="seconds of silence in training after which a worker counts as lost"
    )
    start_timeout: float = Field(
        10, gt=0, description="seconds to wait for the room of a worker before the cluster is checked again"
    )

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        with _as_value_error():
            for name in self.sinks:
                SINKS.check(name, "sinks")
        return self


class EvaluateConfig(Section):
    """How runs are judged."""

    windows: Literal["all", "centre"] = Field(
        "all", description="windows of T frames a video: all at stride T/2 - 1, or one"
    )
    retrieval: Literal["exact", "reference"] = Field(
        "exact",
        description="exact: both sides centred by the gallery's mean; reference: as published, each side by its own, one random "
        "window a gallery video and a random colour jitter at test",
    )
    fusion: Literal["published", "fitted"] = Field(
        "published", description="weights of the streams in R+F: equal, or fitted on the training split"
    )
    exclude_groups: bool = Field(
        False, description="a query passes over gallery videos of its own group (clips of one source video)"
    )
    crops: Literal["ten", "five", "centre"] = Field(
        "ten", description="crops a window in the test of classifiers; ten: centre and corners, and flipped"
    )
    motion_crop: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a window is seen in a square crop that lies where things move (by flow beyond the camera's, or by frame "
        "differences where no flow is decoded); its side as a share of the frame's shorter one; 0: the middle square, whole",
    )
    ks: tuple[int, ...] = Field((1, 5, 10, 20, 50), description="k of R@k")
    monitor_every: Length = Field(Duration(0, "epochs"), description="recall during training, this often; 0: never")
    monitor_videos: int = Field(256, ge=2, description="videos of gallery and query together that the monitor uses")
    neighbours: int = Field(8, ge=0, description="queries whose neighbours are written for the report")
    options: dict[str, Any] = Field({}, description="settings of an evaluation protocol of another package")


class ClassifierConfig(Section):
    """How a classifier is learnt on a pretrained encoder, by SGD; the two kinds differ in their defaults only."""

    length: Length = Field(..., description="how long it learns")
    drops: tuple[Length, ...] = Field(..., description="when the learning rates are multiplied by drop_factor")
    drop_factor: float = Field(0.1, gt=0, le=1, description="what the learning rates are multiplied by at each drop")
    head_lr: float = Field(0.1, gt=0, description="learning rate of the linear layer (and the batch norm before it)")
    backbone_lr: float = Field(..., ge=0, description="learning rate of the backbone; 0: it stays as it is")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(1e-3, ge=0, description="L2 penalty of the weights")
    dropout: float = Field(..., ge=0, lt=1, description="share of the pooled feature left out in a step")
    global_batch: int = Field(128, ge=1, description="samples a step over all workers; published: 32 a GPU")


class LinearConfig(ClassifierConfig):
    """The linear probe: frozen backbone, pooled feature -> L2 norm -> batch norm -> linear."""

    length: Length = Duration(100, "epochs")
    drops: tuple[Length, ...] = (Duration(60, "epochs"), Duration(80, "epochs"))
    backbone_lr: float = Field(0.0, ge=0, le=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class FinetuneConfig(ClassifierConfig):
    """Finetuning: pooled feature -> dropout -> linear, and the backbone learns too."""

    length: Length = Duration(500, "epochs")
    drops: tuple[Length, ...] = tuple(Duration(epoch, "epochs") for epoch in (200, 300, 400, 450))
    backbone_lr: float = Field(0.01, ge=0)
    dropout: float = Field(0.9, ge=0, lt=1)


def _refuse_pbt(value: Any) -> Any:
    if str(value).lower() == "pbt":
        raise ValueError(
            "population based training copies the weights of a good trial into a bad one, and Ray Train gives Ray Tune no "
            "weights to copy; allowed: asha, promotion, median, none"
        )
    return value


class SearchConfig(Section):
    """A sweep, for `vicc tune`: which settings are tried, what they are judged by, how much may be spent."""

    space: dict[str, SpaceRange] = Field(
        {}, description="setting -> {log|uniform|int|log_int: [a, b]} or {choice: [...]}"
    )
    metric: str | tuple[str, ...] = Field(
        "RGB-2/R@1", description="STAGE/FIGURE of the recall during training; several: their mean"
    )
    mode: Literal["max", "min"] = Field("max", description="whether a high or a low metric is good")
    against: Literal["none", "seconds", "device-hours"] = Field(
        "none", description="a cost that is searched against the metric; the answer is then a front, not one trial"
    )
    budget: Annotated[
        Budget,
        PlainValidator(parse_budget),
        PlainSerializer(str),
        WithJsonSchema(BUDGET_SCHEMA, mode="validation"),
    ] = Field(Budget(20, "trials"), description="how much may be spent; trials that run then come to their ends")
    concurrency: int | None = Field(None, ge=1, description="trials at once; none: as many as there is room for")
    sampler: Literal["tpe", "gp", "random", "grid"] = Field(
        "tpe", description="how the next trial is chosen: gp: by a Gaussian process"
    )
    random_starts: int = Field(5, ge=1, description="trials at random before tpe or gp learns from them")
    scheduler: Annotated[Literal["asha", "promotion", "median", "none"], BeforeValidator(_refuse_pbt)] = Field(
        "asha",
        description="which trials stop early: asha keeps the best 1/reduction at each rung; promotion: all pause at each rung, "
        "and the best 1/reduction go on from there",
    )
    reduction: int = Field(3, ge=2, description="asha, promotion: rungs lie this factor of samples apart")
    grace: Length = Field(
        Duration(0, "steps"),
        description="length of the measured stage before a trial may be stopped; 0: the first measurement",
    )
    share: Literal["auto", "single", "none"] = Field(
        "auto",
        description="single-stream stages: auto: made once where no searched setting acts on them; single: made once in any "
        "case, what is searched acts on the cross-stream stages only; none: made by each trial",
    )
    max_failures: int = Field(2, ge=0, description="restarts of a trial whose driver was lost")
    seed: int = Field(0, ge=0, description="of the sampler")


class Experiment(Section):
    """Everything that defines a run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder of the run below `runs`")
    runs: str = Field("runs", description="folder or URI (s3://bucket/runs) that holds runs")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order of videos, windows and augmentation")
    scale: Literal["full", "smoke"] = Field("full", description="smoke: trial sizes, set by --scale smoke; no result")
    data: DataConfig = DataConfig()
    clip: ClipConfig = ClipConfig()
    flow: FlowConfig = FlowConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    linear: LinearConfig = LinearConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    search: SearchConfig | None = Field(None, description="a sweep over settings, for `vicc tune`")

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        for field, place in self.places.items():
            # Refused before anything is written, for every verb: a run's folder keeps its settings.
            with _as_value_error():
                storage.refuse_credentials(place, field)
        if self.model.batch_norm == "shuffle" and self.objective.second_view_gradient:
            raise ValueError(
                "model.batch_norm: shuffle works on a view without gradient; set objective.second_view_gradient: false"
            )
        if self.model.joint_views and not self.objective.second_view_gradient:
            raise ValueError(
                "model.joint_views: true encodes both views with gradient; set objective.second_view_gradient: true"
            )
        if self.train.compile and self.train.recompute:
            raise ValueError("train.compile and train.recompute exclude each other; set one of them")
        if self.train.cuda_graphs:
            for taken, name in (
                (self.train.compile, "train.compile"),
                (self.train.recompute, "train.recompute"),
                (self.optim.micro_batch is not None, "optim.micro_batch"),
                (not self.objective.second_view_gradient, "objective.second_view_gradient: false"),
            ):
                if taken:
                    raise ValueError(f"train.cuda_graphs and {name} exclude each other; set one of them")
        self._check_joint()
        self._check_short()
        if self.schedule.cross.prototypes == "guide" and self.objective.heads("rgb") != self.objective.heads("flow"):
            raise ValueError(
                "schedule.cross.prototypes: guide needs as many prototypes in both streams; set objective.prototypes to one number"
            )
        if self.optim.end_lr > self.optim.lr:
            raise ValueError(f"optim.end_lr: {self.optim.end_lr:g} is above optim.lr {self.optim.lr:g}")
        for kind in ("single", "cross"):
            stage: StageConfig = getattr(self.schedule, kind)
            for stream in self.streams:
                if stage.stage_length(stream).value <= 0:
                    raise ValueError(f"schedule.{kind}.length: 0 trains nothing; it must be above 0")
        return self

    def _check_joint(self) -> None:
        cross = self.schedule.cross
        if cross.guide == "frozen":
            return
        field = f"schedule.cross.guide: {cross.guide}"
        if isinstance(cross.length, StreamLengths):
            raise ValueError(f"{field} trains both streams in one stage; give schedule.cross.length one length")
        if cross.guide == "averaged" and not self.optim.ema:
            raise ValueError(f"{field} needs averaged weights; set optim.ema, for example to 0.99")
        for taken, name in (
            (self.train.cuda_graphs, "train.cuda_graphs"),
            (self.optim.micro_batch is not None, "optim.micro_batch"),
        ):
            if taken:
                raise ValueError(f"{field} and {name} exclude each other; set one of them")

    def _check_short(self) -> None:
        short = self.augment.local_frames
        if not self.augment.local_clips:
            return
        if short >= self.clip.frames:
            raise ValueError(
                f"augment.local_frames: {short} is not below clip.frames {self.clip.frames}; short clips are cut out"
            )
        for taken, name in (
            (self.train.cuda_graphs, "train.cuda_graphs"),
            (self.optim.micro_batch is not None, "optim.micro_batch"),
        ):
            if taken:
                raise ValueError(f"augment.local_clips and {name} exclude each other; set one of them")

    @property
    def places(self) -> dict[str, str]:
        """The settings that name a file or folder, by path or URI; those that are not set are left out."""
        places = (self.runs, self.data.manifest, self.clip.store, self.flow.store, self.flow.weights)
        named = dict(zip(PLACES, places, strict=True))
        return {field: place for field, place in named.items() if place is not None}

    @property
    def streams(self) -> tuple[Stream, Stream]:
        """RGB and the motion stream, in the order in which they are trained."""
        return ("rgb", self.clip.motion)

    def decoded_at_test(self, streams: Iterable[Stream]) -> tuple[Decoded, ...]:
        """The clips that windows of some streams are made from at test: their own, and flow where crops follow it."""
        follows = self.evaluate.motion_crop > 0 and self.clip.motion == "flow"
        return decoded_for((*streams, "flow") if follows else streams)

    @property
    def run_folder(self) -> str:
        """The run's folder: an absolute path, or a URI."""
        return storage.join(storage.absolute(self.runs), self.name)


# Fields that name a file or folder; see `Experiment.places`.
PLACES = ("runs", "data.manifest", "clip.store", "flow.store", "flow.weights")

# Fields whose change leaves what is learnt as it is: a run may be resumed under another value of them.
FREE_FIELDS = (
    "name",
    "runs",
    "train",
    "evaluate",
    "linear",
    "finetune",
    "search",
    "data.manifest",
    "data.gallery_split",
    "data.query_split",
    "data.max_refused",
    "data.decode_timeout",
    "data.max_pixels",
    # By content and not by name: see `data.identity`.
    "clip.store",
    "flow.store",
    "flow.weights",
)
