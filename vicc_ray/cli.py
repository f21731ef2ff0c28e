"""The command line: one subcommand a verb. Parses, calls, prints; what is heavy is imported inside its verb."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import typer

from vicc_ray import __version__
from vicc_ray.commands import completion
from vicc_ray.commands.verbs import ARCHIVES, EXCHANGE, MEASURING, RESULTS, RUNS, START, TRAINING, VIDEOS, Verbs
from vicc_ray.console import console, console_on_stderr, errors, json_text
from vicc_ray.errors import Interrupted, UserError, interrupt
from vicc_ray.versions import untested

ABOVE = 0.98  # cosine of candidates for near-duplicates: docs/benchmarks.md has precision and recall

app = typer.Typer(
    name="vicc",
    cls=Verbs,
    no_args_is_help=True,
    context_settings={"max_content_width": 110},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"vicc {__version__}")
        raise typer.Exit


def _remember_debug(value: bool) -> None:
    global _debug
    _debug = _debug or value


Debug = Annotated[
    bool, typer.Option("--debug", callback=_remember_debug, expose_value=False, help="Show the traceback of an error.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show what Ray prints instead of keeping it in the run's logs folder.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change one setting, e.g. --set optim.lr=0.3. May be repeated.",
        autocompletion=completion.settings,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", envvar="RAY_ADDRESS", help="A running Ray cluster; default: one of its own on this machine."
    ),
]
AtScale = Annotated[
    Literal["full", "smoke"],
    typer.Option(
        "--scale", help="smoke: the whole path at trial sizes, in minutes on two cores; NAME becomes NAME-smoke."
    ),
]
Cut = Annotated[
    str | None,
    typer.Option(
        "--cut",
        help="Parts of videos in place of whole ones: even ones of a length (10s; a rest of at least half of it stays a part, a "
        "shorter one joins the part before), or scenes.",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help='Print one JSON object on standard output and all else on standard error; a failure is {"error", "status"}.',
    ),
]
ExperimentFile = Annotated[
    Path,
    typer.Argument(
        help="Experiment file (YAML), or the name of a shipped experiment.", autocompletion=completion.experiments
    ),
]


@app.callback()
def vicc(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Self-supervised video representation learning by cross-stream prototypes (ViCC), distributed with Ray."""


def main() -> NoReturn:
    """Run a verb. Status 0: done; 2: the reader has to change something; 130: interrupted; 1: a bug or a failed run."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    if "_VICC_COMPLETE" in os.environ:
        # Typer folds a word's help at this width, and fish takes each line for a word: findings/typer_fish_folds_help.sh.
        os.environ.setdefault("TERMINAL_WIDTH", "10000")
    elif others := untested():
        errors.print(f"vicc: not tested with {', '.join(others)}")
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        _leave(f"vicc: {error}", 2)
    except Interrupted as interruption:
        _leave(f"vicc: {interruption}", 130)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _leave("vicc: stopped; the same command goes on where this one ended", 130)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a mistake in the command line, reported by typer
            message = io.StringIO()
            error.show(message)
            errors.print(message.getvalue(), end="")
            _print_error(str(getattr(error, "message", error)), error.exit_code)
            sys.exit(error.exit_code)
        _leave(f"vicc: {type(error).__name__}: {error} (--debug shows where)", 1)
    sys.exit(status if isinstance(status, int) else 0)


def _leave(line: str, status: int) -> NoReturn:
    if _debug:
        errors.print(traceback.format_exc())
    line = " ".join(line.split())
    errors.print(line)
    _print_error(line.removeprefix("vicc: "), status)
    sys.exit(status)


def _print_error(message: str, status: int) -> None:
    """With --json a failure is an object too: what stands on standard output can be read in any case."""
    own = sys.argv[1:]
    if "--json" in own[: own.index("--") if "--" in own else len(own)]:
        _print_json({"error": message, "status": status})


@contextmanager
def _result(as_json: bool) -> Iterator[dict[str, Any]]:
    """What a verb found, to be filled: with --json it is printed at the end, and all other lines go to standard error."""
    found: dict[str, Any] = {}
    with console_on_stderr(as_json):
        yield found
    if as_json:
        _print_json(found)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    interrupt()


@app.command(epilog="Example: vicc quickstart", rich_help_panel=START)
def quickstart(
    runs: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("runs"),
    train_per_class: Annotated[int, typer.Option(min=2, help="Training videos of each of the 8 classes.")] = 50,
    query_per_class: Annotated[int, typer.Option(min=1, help="Query videos of each class.")] = 20,
    overrides: Overrides = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a small motion data set, train both streams on it, evaluate and write a report. Resumes when run again."""
    from vicc_ray.cluster.ahead import begin_cluster
    from vicc_ray.cluster.warm.start import import_forkable
    from vicc_ray.config import load_experiment
    from vicc_ray.config.published import shipped_experiment

    settings = load_experiment(shipped_experiment("quickstart"), [f"runs={runs.absolute()}", *(overrides or [])])
    with _result(as_json) as found:
        begin_cluster(settings.train, None, verbose)
        import_forkable()
        from vicc_ray.commands.quickstart import run_quickstart

        found |= run_quickstart(settings, train_per_class, query_per_class, verbose)


@app.command(
    epilog="Example: vicc index videos/ --out videos.parquet --split 'query: group even; train: rest'",
    rich_help_panel=VIDEOS,
)
def index(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, quoted glob, table (CSV, TSV, JSON, Parquet), text list or one video; as a path or a URI "
            "(s3://bucket/videos)."
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Parquet file to write, path or URI; what it knows of unchanged files is kept.")
    ],
    layout: Annotated[
        str,
        typer.Option(
            help="auto, ucf101, hmdb51, kinetics, folders, classes (every first folder is one), splits (folders named like "
            "splits are splits), flat, csv, list or video."
        ),
    ] = "auto",
    fold: Annotated[int, typer.Option(min=1, max=3, help="Which of the official splits of UCF101 or HMDB51.")] = 1,
    split: Annotated[
        str | None,
        typer.Option(
            help="Which videos are train and which query: random:0.2, 'query: group even; train: rest' (docs/guides/own-videos.md)."
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Decode every frame, hash every byte; say which files lie about their length."),
    ] = False,
    cut: Cut = None,
    min_length: Annotated[
        float | None, typer.Option(help="Seconds of the shortest scene, which is part of the one before; default: 1.")
    ] = None,
    max_length: Annotated[
        float | None, typer.Option(help="Seconds above which a scene is cut evenly; default: 60.")
    ] = None,
    still: Annotated[
        float | None,
        typer.Option(help="Share of the picture: what moves less gets the split 'still' and is named, e.g. 0.005."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that probe; default: one a CPU.")] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pixels of a picture above which a video is refused; default: 35651584 (8192 x 4352)."
        ),
    ] = None,
    address: Address = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Probe videos and write the manifest that training reads; what cannot be read is named, counted and listed in it."""
    from vicc_ray.commands.index import IndexOptions, index_videos, manifest_json
    from vicc_ray.config import MAX_PIXELS

    most = max_pixels or MAX_PIXELS
    options = IndexOptions(
        layout,
        fold,
        split,
        check,
        workers,
        address,
        verbose,
        max_pixels=most,
        cut=cut,
        min_length=min_length,
        max_length=max_length,
        still=still,
    )
    with _result(as_json) as found:
        found |= manifest_json(out, index_videos(source, out, options))


FilledManifest = Annotated[str, typer.Argument(help="Manifest that 'vicc index' wrote, path or URI.")]
FilledStore = Annotated[str | None, typer.Option(help="Folder or URI of the store; made, or filled up.")]
SettingsFor = Annotated[
    Path | None, typer.Option("--for", help="Experiment file whose flow settings, decode size and store are taken.")
]
PackSize = Annotated[
    str,
    typer.Option(help="Height x width of the decoded frames; auto: clip.decode_size of the experiment, else 128x171."),
]
Weights = Annotated[str | None, typer.Option(help="File with RAFT's weights.")]
FlowGpu = Annotated[bool, typer.Option("--gpu", help="One GPU an actor, for raft and tvl1_torch.")]
PackWorkers = Annotated[int | None, typer.Option(min=1, help="Actors at once; default: one a CPU (GPU).")]
CheckStore = Annotated[
    bool, typer.Option("--check", help="Read all that is stored and pack again what is not what was written.")
]
FLOW_NAMES = "dis, dis_compensated, farneback, tvl1, tvl1_torch, motion_vectors or raft"


@app.command(epilog="Example: vicc pack videos.parquet --store packed --flow dis", rich_help_panel=VIDEOS)
def pack(
    manifest: FilledManifest,
    store: FilledStore = None,
    experiment: SettingsFor = None,
    overrides: Overrides = None,
    scale: AtScale = "full",
    size: PackSize = "auto",
    flow: Annotated[
        str | None,
        typer.Option(help=f"{FLOW_NAMES}, or none for pictures alone; default: the experiment's, else dis."),
    ] = None,
    weights: Weights = None,
    gpu: FlowGpu = False,
    workers: PackWorkers = None,
    check: CheckStore = False,
    address: Address = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Decode a manifest's videos once, at training size, and store their pictures and flow for fast training.

    The same command goes on after an interruption, and does only what is new or has changed when it is run again.
    """
    from vicc_ray.commands.pack import PackOptions, PackRequest, pack_request

    streams: tuple[Literal["rgb", "flow"], ...] = ("rgb",) if flow == "none" else ("rgb", "flow")
    options = PackOptions(streams, workers, gpu, address, verbose, check)
    algorithm = None if flow == "none" else flow
    request = PackRequest(store, experiment, tuple(overrides or ()), scale, size, algorithm, weights)
    with _result(as_json) as found:
        found |= pack_request(manifest, request, options)
        console.print(f"train with it: --set clip.source=store --set clip.store={found['store']}")


@app.command(epilog="Example: vicc flow videos.parquet --store flow/tvl1 --algorithm tvl1", rich_help_panel=VIDEOS)
def flow(
    manifest: FilledManifest,
    store: FilledStore = None,
    experiment: SettingsFor = None,
    overrides: Overrides = None,
    scale: AtScale = "full",
    algorithm: Annotated[str | None, typer.Option(help=f"{FLOW_NAMES}; default: dis.")] = None,
    size: PackSize = "auto",
    weights: Weights = None,
    gpu: FlowGpu = False,
    workers: PackWorkers = None,
    check: CheckStore = False,
    address: Address = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """The flow part of 'vicc pack' alone, for pictures that are decoded from the videos. It goes on after an interruption."""
    from vicc_ray.commands.pack import PackOptions, PackRequest, pack_request

    options = PackOptions(("flow",), workers, gpu, address, verbose, check)
    request = PackRequest(store, experiment, tuple(overrides or ()), scale, size, algorithm, weights)
    with _result(as_json) as found:
        found |= pack_request(manifest, request, options)
        console.print(f"train with it: --set flow.source=store --set flow.store={found['store']}")


@app.command(epilog="Example: vicc unpack packed v_Biking_g01_c01.avi --out taken", rich_help_panel=VIDEOS)
def unpack(
    store: Annotated[str, typer.Argument(help="Folder or URI of a packed store.")],
    names: Annotated[
        list[str] | None, typer.Argument(help="Videos, by path, id or file name; none: list what the store holds.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder or URI for the files; default: the current one.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take videos out of a packed store, as MP4 files that any player opens: pictures, and flow as u above v in gray."""
    from vicc_ray.commands.unpack import list_entries, unpack_videos

    with _result(as_json) as found:
        if names:
            found["files"] = unpack_videos(store, names, out)
        else:
            found["entries"] = list_entries(store)


@app.command(
    epilog="Example: vicc preview experiments/quickstart.yaml --set data.manifest=videos.parquet",
    rich_help_panel=VIDEOS,
)
def preview(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    scale: AtScale = "full",
    samples: Annotated[int, typer.Option(min=1, help="Training samples to show.")] = 6,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("preview.html"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a page with what the network would see: augmented views of some samples and their flow in colour."""
    from vicc_ray.preview import write_preview
    from vicc_ray.runs.folder import RunFolder
    from vicc_ray.runs.scale import experiment_at

    settings = experiment_at(experiment, overrides or [], scale)
    with _result(as_json) as found:
        manifest = RunFolder.at(settings.run_folder).read_manifest(settings)
        found["page"] = str(write_preview(settings, manifest, out, samples))
        console.print(f"preview: {found['page']}")


@app.command(
    epilog="Example: vicc train experiments/quickstart.yaml --set data.manifest=videos.parquet --set name=mine",
    rich_help_panel=TRAINING,
)
def train(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    scale: AtScale = "full",
    plan: Annotated[bool, typer.Option("--plan", help="Print the stages without running anything.")] = False,
    videos: Annotated[
        int | None, typer.Option(min=1, help="With --plan: number of training videos, where there is no manifest.")
    ] = None,
    address: Address = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train every stage of an experiment. The same command resumes an interrupted run and skips finished stages."""
    from vicc_ray.runs.scale import experiment_at

    settings = experiment_at(experiment, overrides or [], scale, videos)
    if plan:
        from vicc_ray.commands.train import make_plan

        with _result(as_json) as found:
            found |= make_plan(settings, videos)
        return
    from vicc_ray.cluster.ahead import begin_cluster
    from vicc_ray.cluster.warm.start import import_forkable
    from vicc_ray.runs.folder import RunFolder

    folder = RunFolder.at(settings.run_folder)
    with _result(as_json) as found:
        begin_cluster(settings.train, address, verbose)
        manifest = folder.read_manifest(settings)  # a mistake shows before Ray and torch are loaded
        import_forkable()
        from vicc_ray.cluster.launch import run_training

        folder = run_training(settings, address, verbose, manifest=manifest)
        found |= {"run": str(folder.path), "encoders": folder.encoders()}
        console.print(f"finished; encoders in {folder.path / 'encoders'}")


@app.command(epilog="Example: vicc status runs/mine", rich_help_panel=RUNS)
def status(
    run: Annotated[str, typer.Argument(help="Run folder or archive, path or URI.", autocompletion=completion.runs)],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """How a run stands: stage, speed, time left, workers, last checkpoint, faults; or an archive. Reads its folder only."""
    from vicc_ray.archive.store import is_archive

    if is_archive(run):
        from vicc_ray.commands.archive_status import archive_status, print_archive_status

        stands = archive_status(run)
        _print_json(stands) if as_json else print_archive_status(stands)
        return
    from vicc_ray.commands.status import print_status, read_status, status_json
    from vicc_ray.runs.folder import RunFolder

    found = read_status(RunFolder.at(run))
    if as_json:
        _print_json(status_json(found))
    else:
        print_status(found)


@app.command(epilog="Example: vicc watch runs/mine", rich_help_panel=RUNS)
def watch(
    run: Annotated[str, typer.Argument(help="Run folder, path or URI.", autocompletion=completion.runs)],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the folder.")] = 2.0,
    debug: Debug = False,
) -> None:
    """Follow a run until it ends, from its folder alone: curves, recall, workers and faults; plain lines where no terminal is.

    Status 0 where the run is finished, 1 where it ended before that. Ctrl-C ends the view, not the run.
    """
    from vicc_ray.commands.watch import watch_run

    if not watch_run(run, every):
        raise typer.Exit(1)


@app.command(epilog="Example: vicc clean runs/mine", rich_help_panel=RUNS)
def clean(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders of runs or sweeps, paths or URIs.", autocompletion=completion.runs),
    ],
    features: Annotated[
        bool,
        typer.Option(
            "--features",
            help="Stored features too, which the next evaluation makes again from the videos, at its price.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only say what would go.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what of a run can go and what that frees; with --yes remove it. Nothing that a resume, a result or a report needs."""
    from vicc_ray.commands.clean import plan_removals, print_removals, removals_json, remove

    with _result(as_json) as found:
        removals = [one for run in runs for one in plan_removals(run, features)]
        if yes:
            remove(removals)
        print_removals(removals, yes)
        found |= removals_json(removals, yes)


@app.command(epilog="Example: vicc embed runs/mine recordings/ --out archive --cut 10s", rich_help_panel=ARCHIVES)
def embed(
    run: Annotated[
        str,
        typer.Argument(
            help="Run folder, path or URI, or an encoder's .safetensors file.", autocompletion=completion.runs
        ),
    ],
    source: Annotated[
        str, typer.Argument(help="Manifest, or what 'vicc index' takes: a folder, a bucket, a table, one video.")
    ],
    out: Annotated[str, typer.Option(help="Folder or URI of the archive; made, or filled up.")],
    stream: Annotated[
        Literal["rgb", "flow", "both"],
        typer.Option(help="Which encoders: rgb needs no flow; both: their vectors one after the other."),
    ] = "rgb",
    encoder: Annotated[
        str | None,
        typer.Option(
            help="An encoder by name, such as RGB-1; default: the newest.", autocompletion=completion.encoders
        ),
    ] = None,
    windows: Annotated[
        Literal["all", "centre"],
        typer.Option(help="all: the mean over a row's windows, as 'vicc evaluate'; centre: its middle one, faster."),
    ] = "all",
    every: Annotated[
        float | None,
        typer.Option(min=0.04, help="Seconds: a vector for each such part of a row, in place of one a row."),
    ] = None,
    cut: Cut = None,
    split: Annotated[
        str | None, typer.Option(help="Rows of this split only; default: all but 'still' (all: these too).")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store vectors in half precision, in half the space.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Encoding actors, and as many that decode; default: one a CPU or GPU.")
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Embed videos, labels or none, into an archive to search in. The same command goes on after an interruption."""
    from vicc_ray.commands.embed import EmbedOptions, embed_videos

    options = EmbedOptions(
        stream, encoder, windows, every, half, split, cut, workers, address, verbose, tuple(overrides or ())
    )
    with _result(as_json) as found:
        embed_videos(run, source, out, options)
        from vicc_ray.commands.archive_status import archive_status

        found |= archive_status(out)


Also = Annotated[
    list[str] | None,
    typer.Option("--also", metavar="ARCHIVE", help="Another archive of the same encoder. May be repeated."),
]


@app.command(epilog="Example: vicc search archive recordings/party.mp4@12.5-15 -k 10", rich_help_panel=ARCHIVES)
def search(
    archive: Annotated[str, typer.Argument(help="Archive that 'vicc embed' made, path or URI.")],
    query: Annotated[
        list[str] | None,
        typer.Argument(help="Video files, parts of them (file.mp4@12.5-15, seconds), or ids of the archive."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each query.")] = 10,
    also: Also = None,
    exclude_group: Annotated[
        bool, typer.Option("--exclude-group", help="Pass over what is of the query's group, such as the same file.")
    ] = False,
    index: Annotated[
        Literal["none", "ivf", "hnsw"],
        typer.Option(
            help="Search by a faiss index, for archives beyond ten million; without a query it is built anew."
        ),
    ] = "none",
    centre: Annotated[
        bool | None,
        typer.Option("--centre/--no-centre", help="Take the mean of all vectors off; default: from 100 rows on."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="HTML page with moving thumbnails; default: search.html, with --json none.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find what in an archive looks most like a video, or a part of one: a table, and a page with moving thumbnails."""
    from vicc_ray.commands.search import print_answers, search_archives, write_search_page

    if not query and index == "none":
        raise UserError("vicc search: name a video file, a part of one (file.mp4@12.5-15), or an id of the archive")
    folders = [archive, *(also or [])]
    with _result(as_json) as found:
        answers = search_archives(folders, query or [], k, exclude_group, index, centre)
        out = page or (None if as_json else Path("search.html"))
        if not as_json:
            print_answers(answers)
        if answers and out is not None:
            write_search_page(folders, answers, out)
        found["answers"] = [answer.to_dict() for answer in answers]


@app.command(epilog="Example: vicc duplicates archive --above 0.98", rich_help_panel=ARCHIVES)
def duplicates(
    archive: Annotated[str, typer.Argument(help="Archive that 'vicc embed' made, path or URI.")],
    above: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Cosine of two vectors from which on their videos are compared.")
    ] = ABOVE,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Compare the pictures of what is alike by its vectors, which decodes it; default: of up to 5000 rows.",
        ),
    ] = None,
    also: Also = None,
    page: Annotated[
        Path | None, typer.Option(help="HTML page with moving thumbnails; default: duplicates.html, with --json none.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="CSV or Parquet file for the groups: group, id, kept, similarity.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Groups of near-duplicates in an archive, with the one of each to keep. Nothing is deleted."""
    from vicc_ray.commands.duplicates import show_duplicates

    out = page or (None if as_json else Path("duplicates.html"))
    with _result(as_json) as found:
        found |= show_duplicates([archive, *(also or [])], above, out, table, check, as_json)


@app.command(epilog="Example: vicc clusters archive --by prototypes", rich_help_panel=ARCHIVES)
def clusters(
    archive: Annotated[str, typer.Argument(help="Archive that 'vicc embed' made, path or URI.")],
    by: Annotated[
        Literal["prototypes", "kmeans"], typer.Option(help="The encoder's own prototypes, or k-means.")
    ] = "prototypes",
    count: Annotated[
        int | None, typer.Option(min=1, help="Clusters of k-means; default: by the rows, at most 50.")
    ] = None,
    also: Also = None,
    page: Annotated[
        Path | None, typer.Option(help="HTML page with a map and thumbnails; default: clusters.html, with --json none.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """What an archive is made of: clusters, their most central videos as moving thumbnails, and a map."""
    from vicc_ray.commands.clusters import show_clusters

    out = page or (None if as_json else Path("clusters.html"))
    with _result(as_json) as found:
        found |= show_clusters([archive, *(also or [])], by, count, out, as_json)


@app.command(
    epilog="Example: vicc evaluate runs/mine --protocol retrieval --data hmdb51.parquet", rich_help_panel=RESULTS
)
def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, paths or URIs; several give mean and spread too.", autocompletion=completion.runs
        ),
    ],
    protocol: Annotated[
        str,
        typer.Option(
            help="retrieval, linear (probe learnt by SGD), finetune, probe (linear fit on stored features), or all."
        ),
    ] = "retrieval",
    data: Annotated[
        list[str] | None, typer.Option(help="Manifest to judge on; default: the run's own. May be repeated.")
    ] = None,
    train_on: Annotated[
        str | None, typer.Option(help="Split that is searched in or learnt from, or 'all'; default: the experiment's.")
    ] = None,
    test_on: Annotated[
        str | None, typer.Option(help="Split of the queries or test videos, or 'all'; default: the experiment's.")
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Judge every finished stage of one or more runs, and both streams together (R+F)."""
    from vicc_ray.commands.evaluate import evaluate_runs, evaluations_json, print_evaluations

    with _result(as_json) as found:
        made = evaluate_runs(runs, protocol, data or [], train_on, test_on, overrides or [], address, verbose)
        print_evaluations(made)
        found |= evaluations_json(made)


@app.command(epilog="Example: vicc report runs/quickstart runs/mine --out report.html", rich_help_panel=RESULTS)
def report(
    runs: Annotated[list[str], typer.Argument(help="Run folders, paths or URIs.", autocompletion=completion.runs)],
    out: Annotated[Path | None, typer.Option(help="HTML file; default: report.html in the first run folder.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page about one or more runs, or that compares them; reads their folders, runs nothing."""
    from vicc_ray.report import write_report
    from vicc_ray.runs.folder import RunFolder

    folders = [RunFolder.at(run) for run in runs]
    with _result(as_json) as found:
        for folder in folders:
            with folder.as_user_errors():
                folder.pull()
            folder.experiment()
        target = out or folders[0].report
        write_report([folder.path for folder in folders], target)
        if out is None:
            folders[0].push(target)
        found |= {"page": str(target), "runs": [str(folder) for folder in folders], "bytes": target.stat().st_size}
        console.print(f"report: {target}")


@app.command(
    "import",
    epilog="Example: vicc import ViCC-RGB-2.pth.tar --stream rgb --out runs/published",
    rich_help_panel=EXCHANGE,
)
def import_(
    file: Annotated[Path, typer.Argument(help="Published ViCC or CoCLR checkpoint.")],
    stream: Annotated[
        str, typer.Option(help="rgb or flow: what the learning encoder was trained on; the file does not say.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to make; a file of the other stream may be added to it.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Read a published checkpoint into a run folder that 'vicc evaluate' and 'vicc export' take. Nothing in it is executed."""
    from vicc_ray.commands.import_ import import_checkpoint

    if stream not in ("rgb", "flow"):
        raise UserError(f"--stream {stream}: is not a stream; allowed: rgb, flow")
    with _result(as_json) as found:
        folder = import_checkpoint(file, "rgb" if stream == "rgb" else "flow", out)
        found |= {"run": str(folder), "encoders": folder.encoders()}


@app.command(epilog="Example: vicc export runs/mine --encoder RGB-2 --format onnx", rich_help_panel=EXCHANGE)
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.", autocompletion=completion.runs)],
    encoder: Annotated[
        str | None,
        typer.Option(help="Which encoder; default: RGB-2, else RGB-1.", autocompletion=completion.encoders),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="safetensors, torchscript, onnx or published.")] = "safetensors",
    out: Annotated[Path | None, typer.Option(help="File to write; default: in the run's exports folder.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write an encoder of a run in another format."""
    from vicc_ray.commands.export import export_encoder

    with _result(as_json) as found:
        found |= {"file": str(export_encoder(run, encoder, form, out)), "format": form}
        console.print(found["file"])


@app.command(epilog="Example: vicc bench pipeline --out pipeline.json", rich_help_panel=MEASURING)
def bench(
    name: Annotated[str, typer.Argument(help="What to measure; 'vicc bench list' names all.")],
    experiment: Annotated[
        str | None, typer.Argument(help="Experiment, for 'vicc bench step'; for 'learning' a recipe of one's own.")
    ] = None,
    overrides: Overrides = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="For 'vicc bench step'; default: cuda where there is one.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for figures and bars.")] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds in which the contenders take turns; for 'learning' the seeds.")
    ] = 5,
    manifest: Annotated[
        str | None, typer.Option(help="Manifest of the videos to measure on; default: made videos.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="For 'learning': a data set that is made, such as quickstart.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="For 'learning': where videos, store and runs are kept; default: runs/learning.")
    ] = None,
    recipes: Annotated[
        str | None,
        typer.Option(help="For 'learning': names of recipes, separated by ';'; default: the experiment, else all."),
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="For 'learning': runs at a time, a core each; default: all cores.")
    ] = None,
    queries: Annotated[
        bool,
        typer.Option(
            "--queries",
            help="For 'learning': search with the queries, once a finished run; without it recipes are judged on videos held "
            "out of the training split.",
        ),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure one part side by side with its rivals and print medians, ratios and bars. Status 1 where a bar is missed."""
    from vicc_ray.commands.bench import load_benchmarks

    options: dict[str, Any] = {"experiment": experiment, "overrides": overrides or (), "device": device}
    options |= {"data": data, "folder": folder, "recipes": recipes, "cores": cores, "queries": queries}
    with _result(as_json) as found:
        found |= load_benchmarks().run_bench(name, out, rounds, manifest, **options)
    if not all(bar["holds"] for bar in found.get("bars", [])):
        raise typer.Exit(1)


@app.command(
    epilog="Example: vicc tune experiments/sweep_quickstart.yaml --set data.manifest=videos.parquet",
    rich_help_panel=TRAINING,
)
def tune(
    sweep: Annotated[
        str,
        typer.Argument(
            help="Experiment file with a search section, or a sweep's folder.", autocompletion=completion.experiments
        ),
    ],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a sweep; refused where there is none to go on with.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="How the sweep stands; reads its folder only.")] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Make the sweep's driver end after its trials' next checkpoints.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list the next trials.")] = False,
    address: Address = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Search settings for the best retrieval recall, a training run a trial. The same command goes on after an interruption."""
    from vicc_ray.commands.tune import dry_run_sweep, load_sweep, request_stop, run_sweep

    if sum((resume, status, stop, dry_run)) > 1:
        raise UserError("--resume, --status, --stop and --dry-run: give one of them")
    settings = load_sweep(sweep, overrides or [], resume)
    with _result(as_json) as found:
        if status:
            from vicc_ray.tune.status import print_sweep_status, sweep_status

            found |= sweep_status(settings)
            print_sweep_status(found)
        elif stop:
            found |= {"sweep": str(request_stop(settings)), "stop_requested": True}
            console.print(f"{found['sweep']}: will stop after its trials' next checkpoints")
        elif dry_run:
            found |= dry_run_sweep(settings, address)
        else:
            folder = run_sweep(settings, address, verbose)
            from vicc_ray.tune.status import sweep_status

            found |= sweep_status(folder.experiment())


JobsServer = Annotated[
    str,
    typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="Ray's dashboard, for example http://HOST:8265."),
]
Verify = Annotated[str, typer.Option(help="Certificate of an https address: true, false, or a file of trusted ones.")]


@app.command(
    epilog="Example: vicc submit experiments/quickstart.yaml --address http://HOST:8265 --set runs=s3://bucket/runs --follow",
    rich_help_panel=TRAINING,
)
def submit(
    experiment: ExperimentFile,
    address: JobsServer,
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[-- WORDS...]", help="More words for the verb, after '--'.")
    ] = None,
    verb: Annotated[Literal["train", "tune", "evaluate", "doctor"], typer.Option(help="What runs there.")] = "train",
    workers: Annotated[
        str | None, typer.Option(help="train.workers: a number, or the least and the most as 2:8.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the log until the end; exit with its status.")] = False,
    overrides: Overrides = None,
    scale: AtScale = "full",
    lock: Annotated[
        Path | None, typer.Option(help="Requirements file to install on the nodes first; default: what they have.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Container image to run in (nodes need podman).")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Variable of the job, no secret.")
    ] = None,
    verify: Verify = "true",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run an experiment on a cluster through Ray's jobs server. The same command comes back to a job that runs already."""
    from vicc_ray.commands.jobs import jobs_json
    from vicc_ray.commands.submit import submit_experiment
    from vicc_ray.runs.scale import experiment_at
    from vicc_ray.submit.request import Environment, parse_variables, parse_workers

    changes = [*(overrides or []), *([f"train.workers={parse_workers(workers)}"] if workers else [])]
    settings = experiment_at(experiment, changes, scale)
    environment = Environment(lock, image, parse_variables(env or []))
    with _result(as_json) as found:
        job = submit_experiment(settings, address, verb, extra or [], environment, follow, verify)
        found |= jobs_json([job])[0]
    if follow:
        raise typer.Exit(job.exit_status())


@app.command(
    epilog="Example: vicc jobs vicc-train-mine-1f0c5a3e --address http://HOST:8265 --follow", rich_help_panel=TRAINING
)
def jobs(
    address: JobsServer,
    job: Annotated[str | None, typer.Argument(help="Id of a job, or name of a run; default: all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the log until the end; exit with its status.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the job after a checkpoint.")] = False,
    verify: Verify = "true",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List a cluster's jobs, follow one, or end one."""
    from vicc_ray.commands.jobs import find_job, follow_job, jobs_json, print_jobs
    from vicc_ray.submit.client import connect

    if (follow or stop) and job is None:
        raise UserError("--follow and --stop: say which job; 'vicc jobs' without them lists all")
    with _result(as_json) as found:
        client = connect(address, verify)
        chosen = [find_job(client, job)] if job else client.jobs()
        if stop:
            client.stop(chosen[0].id)
            console.print(f"{chosen[0].id}: will end after a checkpoint")
        if follow:
            chosen = [follow_job(client, chosen[0].id, address)]
        elif not stop:
            print_jobs(chosen)
        found["jobs"] = jobs_json(chosen)
    if follow:
        raise typer.Exit(chosen[0].exit_status())


@app.command(epilog="Example: vicc doctor experiments/quickstart.yaml --address HEAD:6379", rich_help_panel=START)
def doctor(
    experiment: Annotated[
        Path | None,
        typer.Argument(
            help="Experiment (file or shipped name) that is to run there.", autocompletion=completion.experiments
        ),
    ] = None,
    overrides: Overrides = None,
    scale: AtScale = "full",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            envvar="RAY_ADDRESS",
            help="Ray cluster HOST:6379, seen from one of its nodes, or its dashboard http://HOST:8265, from anywhere.",
        ),
    ] = None,
    verify: Verify = "true",
    verbose: Verbose = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check, from each node, whether an experiment can run there, and what to do where not. Status 1 where something fails."""
    from vicc_ray.runs.scale import experiment_at

    settings = experiment_at(experiment, overrides or [], scale) if experiment else None
    if address and address.startswith("http"):
        from vicc_ray.commands.jobs import jobs_json
        from vicc_ray.commands.submit import submit_experiment

        if settings is None:
            raise UserError("vicc doctor: a dashboard is checked by sending an experiment there; name its file")
        with _result(as_json) as found:
            job = submit_experiment(settings, address, "doctor", (), None, True, verify)
            found |= jobs_json([job])[0]
        raise typer.Exit(job.exit_status())
    from vicc_ray.commands.doctor import examine, findings_json, healthy, print_findings

    with _result(as_json) as found:
        findings = examine(settings, address, verbose)
        print_findings(findings)
        found |= {"healthy": healthy(findings), "findings": findings_json(findings)}
    raise typer.Exit(0 if found["healthy"] else 1)


config_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="An experiment's settings, resolved and described."
)
app.add_typer(
    config_app, name="config", rich_help_panel=START, epilog="Example: vicc config show experiments/quickstart.yaml"
)


@config_app.command(
    "show", epilog="Example: vicc config show experiments/s3d_rgb_retrieval_ucf101.yaml --set optim.lr=0.3"
)
def config_show(
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file (YAML), or the name of a shipped one; none: the defaults.")
    ] = None,
    overrides: Overrides = None,
    scale: AtScale = "full",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Print every setting as it is resolved, and where it comes from: a file, --scale, --set or the default. It is YAML."""
    from vicc_ray.commands.config import resolve, shown, sources_json

    settings, origins = resolve(experiment, overrides or [], scale)
    if as_json:
        _print_json(sources_json(settings, origins))
    else:
        console.print(shown(settings, origins), end="", soft_wrap=True)


@config_app.command("schema", epilog="Example: vicc config schema --out experiment.schema.json")
def config_schema(
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of experiment files, by which editors complete and check them."""
    from vicc_ray.config.settings import experiment_schema

    if out is None:
        _print_json(experiment_schema())
        return
    try:
        out.write_text(json_text(experiment_schema()) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    console.print(f"schema: {out}")


def _print_json(value: Any) -> None:
    console.print(json_text(value), soft_wrap=True)


if __name__ == "__main__":
    main()
