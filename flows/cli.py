"""The command line. Libraries are imported where they are used: `--help` answers at once."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.signals import STOPPED, take_signals

if TYPE_CHECKING:
    from pipeline.config.settings import Config

app = typer.Typer(
    help="Sim-to-real adaptation for semantic segmentation: train a CycleGAN, translate synthetic "
    "frames, train segmentation networks, and report how much of the gap was closed. "
    "Any command takes --debug, which shows the traceback of an error, and --allow-code, which "
    "lets a data set's YAML name a Python file to run. `sim2real --version` says which it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override one setting.")
]
Forced = Annotated[
    list[str] | None,
    typer.Option("--force", metavar="STAGE", help="Make a stage and what reads it anew."),
]
Translation = Annotated[
    str, typer.Option("--translation", metavar="NAME", help="Which of a run's translations.")
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="The I-th of N parts alone; the same command without it puts them together.",
    ),
]
_QUICK = {"status", "datasets"}
_HELPERS = {"train-segmentation", "label-target"}
_FIRST_WORD_SECONDS = 1.5
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configure the run first, as `run` would.")
]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML configuration.")],
    run_folder: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Run folder [runs/NAME].")
    ] = None,
    settings: Settings = None,
    force: Forced = None,
    ablate: Annotated[
        bool,
        typer.Option("--ablate", help="Show what each step brings instead [runs/NAME-ablation]."),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="N,N,...",
            help="Show what the synthetic frames are worth in labelled ones, with arms that have N "
            "of these [runs/NAME-budget].",
        ),
    ] = None,
    workers: Annotated[
        bool,
        typer.Option("--workers", help="Let the workers of the server at PREFECT_API_URL do it."),
    ] = False,
    parts: Annotated[
        int,
        typer.Option("--parts", min=1, max=1024, help="Parts of a translation, for workers."),
    ] = 1,
) -> None:
    """Run the whole chain as a Prefect flow; continue it where it was interrupted.

    With --ablate, show what each step brings: source only, simple translators, CycleGAN, semantic
    consistency, self-training, rare class sampling, masking, oracle; one table over all.

    With --budget 1,4,16,64, train beside the configuration's arms on so many labelled frames of the
    target, alone and with the frames of the adapted arm: how many is the adaptation worth?
    """
    from pipeline.config.load import load_config
    from pipeline.errors import UserError

    if (config / "config.yaml").is_file():
        raise UserError(
            f"{config} is the folder of a run. Continue it: sim2real run {config}/config.yaml "
            f"--run {config}"
        )
    loaded = load_config(config, settings)
    folder = Path("runs") / loaded.name
    if ablate and budget is not None:
        raise UserError("--ablate and --budget make a run each: give one of them.")
    if ablate:
        from flows.ablate import ablation

        derived = ablation(loaded)
    elif budget is not None:
        from flows.budget import numbers_of_frames, with_budget

        derived = with_budget(loaded, numbers_of_frames(budget))
    else:
        _run_flow(loaded, run_folder or folder, force or [], config, workers=workers, parts=parts)
        return
    place = run_folder or Path("runs") / derived.name
    _run_flow(derived, place, force or [], config, folder, workers=workers, parts=parts)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder.")] = Path(
        "runs/demo"
    ),
    settings: Settings = None,
) -> None:
    """Draw a toy world and run the whole chain on it: minutes on two CPU cores."""
    from pipeline.config.load import load_config
    from pipeline.files import write_text
    from pipeline.toyworld.writing import write_toy_world

    shipped, config = Path(__file__).parent / "demo.yaml", out / "demo.yaml"
    load_config(shipped, settings)  # a misspelt setting is said before anything is drawn
    write_toy_world(out / "data")
    write_text(config, shipped.read_text(encoding="utf-8"))
    _run_flow(load_config(config, settings), out, [], config)


def _run_flow(
    config: "Config",
    folder: Path,
    forced: list[str],
    file: Path,
    lender: Path | None = None,
    *,
    workers: bool = False,
    parts: int = 1,
) -> None:
    """Do what is left of a run, and show its result.

    Args:
        file: what the configuration was read from.
        lender: another run, to take stages over from that it made from equal inputs.
        workers: let the workers of the named server do it.
        parts: into how many units workers divide each translation.
    """
    from flows.prepare import prepare
    from flows.show import show_result
    from pipeline.errors import UserError
    from pipeline.run.folder import CONFIG_FILE, LADDER_FILE, locked
    from pipeline.run.stage import is_done

    if (folder / LADDER_FILE).is_file() and not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} holds an ablation of an earlier version: a folder of runs, each of which "
            "can still be reported and compared. Give another folder with --run DIR."
        )
    if workers:
        from flows.server import use_named_server

        use_named_server()
    with locked(folder):
        stages = prepare(config, folder, forced, file, devices=not workers)
        if lender:
            from flows.ablate import take_over

            if taken := take_over(config, folder, lender):
                print(f"Taken over from {lender}: {', '.join(taken)}", file=sys.stderr, flush=True)
    if not all(is_done(folder, stage.name) for stage in stages):
        with _prefect(folder):
            from flows.adapt import adapt

            adapt(run=str(folder), workers=workers, parts=parts)
    show_result(folder)


@contextmanager
def _prefect(folder: Path) -> Iterator[None]:
    """Let flows run in this block, and one message say that their server is gone."""
    from pipeline.errors import UserError

    take_signals()
    from flows.server import prefect_server

    try:
        with prefect_server(folder):
            yield
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        raise UserError(
            f"Prefect's server does not answer any more ({error}). What is done is kept: the same "
            "command continues. Start the server again, or unset PREFECT_API_URL to run without."
        ) from error


def _run_stages(
    folder: Path,
    command: str,
    config: Path | None = None,
    settings: list[str] | None = None,
    anew: bool = False,
) -> None:
    """Do every stage of one command, without Prefect; `anew` also those that are complete."""
    from flows.plan import gate_plan, plan
    from flows.prepare import prepare
    from pipeline.config.load import load_config
    from pipeline.errors import UserError
    from pipeline.run.folder import locked, read_run
    from pipeline.run.stage import check, is_done, named, remove, run_stage, scored_on_other_data

    if settings and not config:
        raise UserError("--set needs --config CONFIG; a run keeps the settings it was made with.")
    if not config:
        read_run(folder)  # a mistyped name must not make a folder
    with locked(folder):
        if config:
            prepare(load_config(config, settings), folder, [], config)
        stages = (gate_plan if command == "gate" else plan)(read_run(folder), folder)
        wanted = [stage for stage in stages if stage.command == command]
        if not wanted:
            commands = ", ".join(dict.fromkeys(stage.command for stage in stages))
            nothing = f"{folder} has no stage for {command}. Its commands: {commands}."
            if config:  # to configure the run is half of what was asked for
                print(f"Configured. {nothing}", file=sys.stderr)
                return
            raise UserError(nothing)
        if command == "train-cyclegan":  # networks that watch it or label for it are a part of it
            for stage in reversed([s for s in stages if s.command in _HELPERS]):
                if any(stage.name in other.reads for other in wanted):
                    wanted.insert(0, stage)
        names = {stage.name for stage in wanted}
        # A report is of no use to anyone when it is not of the results that are there.
        outdated = sorted(names) if anew else scored_on_other_data(folder, wanted)
        inputs = check(folder, stages, only=lambda s: s.command == command, forced=outdated)
        if outdated:
            remove(folder, [name for name in named(stages, outdated) if name not in names])
        ready = [s for s in wanted if all(is_done(folder, n) for n in s.reads if n not in names)]
    for stage in ready or wanted:
        if stage.name in outdated and not anew:
            print(f"{stage.name}: test files have changed; scored anew", file=sys.stderr)
        done = run_stage(folder, stage, inputs[stage.name], anew=stage.name in outdated)
        print(f"{stage.name}: {'done' if done else 'was complete'}", file=sys.stderr)
    if waiting := [stage for stage in wanted if ready and stage not in ready]:
        missing = next(n for n in waiting[0].reads if not is_done(folder, n))
        raise UserError(
            f"Done: {', '.join(stage.name for stage in ready)}. Not {waiting[0].name}: it "
            f"reads {missing}, which is not complete. Run `sim2real run` or that stage first."
        )


@app.command("train-cyclegan")
def train_cyclegan(run: RunFolder, config: ConfigOption = None, settings: Settings = None) -> None:
    """Train the translator of a run."""
    _run_stages(run, "train-cyclegan", config, settings)


@app.command()
def translate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run; with --input also RUN/TRANSLATION or a file of weights."
        ),
    ],
    frames: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FRAMES",
            help="Translate this folder, video, image or data set's YAML instead.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the translated frames, or a video."),
    ] = None,
    translation: Annotated[
        str | None, typer.Option("--translation", metavar="NAME", help="As RUN/NAME.")
    ] = None,
    format: Annotated[
        Literal["png", "jpg", "webp"] | None,
        typer.Option("--format", help="Of the images; png and webp lose nothing [png]."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option("--width", min=16, max=65_535, help="Translate at this width [their own]."),
    ] = None,
    precision: Annotated[
        Literal["32-true", "bf16-mixed"] | None,
        typer.Option("--precision", help="bf16-mixed is faster where there is hardware for it."),
    ] = None,
    strips: Annotated[
        Literal["auto", "always", "never"] | None,
        typer.Option("--strips", help="Large frames in strips of rows, to save memory [auto]."),
    ] = None,
    unreadable: Annotated[
        float | None,
        typer.Option(
            "--unreadable", min=0, max=1, help="Share of frames that may be unreadable [0.1]."
        ),
    ] = None,
    shard: Shard = None,
    config: ConfigOption = None,
    settings: Settings = None,
) -> None:
    """Translate the source frames of a run, or any frames with its generator; labels or not."""
    from pipeline.errors import UserError

    if frames is not None and (config or settings):
        raise UserError("--config and --set are for the stages of a run, --input for any frames.")
    if frames is None and out is None:
        given = (translation, format, width, precision, strips, unreadable, shard)
        if any(option is not None for option in given):
            raise UserError(
                "These options go with --input FRAMES and --out DIR. Without, the source frames of "
                "a run are translated, by all of its translations, as its configuration says."
            )
        _run_stages(source, "translate", config, settings)
        return
    if frames is None or out is None:
        raise UserError(
            "--input FRAMES and --out DIR go together. Without, the source frames of a run are "
            "translated, by all of its translations."
        )
    from flows.frames import UNREADABLE, translate_any

    made = translate_any(
        source,
        frames,
        out,
        translation=translation,
        format=format,
        width=width,
        precision=precision,
        strips=strips,
        unreadable=UNREADABLE if unreadable is None else unreadable,
        part=_shard(shard) if shard else None,
    )
    _tell("Translated", made, shard)


def _shard(text: str) -> tuple[int, int]:
    """The part, from 0, and the number of parts that `I/N` means."""
    from pipeline.errors import UserError

    part, _, parts = text.partition("/")
    if part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) <= 100_000:
        return int(part) - 1, int(parts)
    raise UserError(f"--shard {text!r} is not I/N with 1 <= I <= N, e.g. 2/4. Give it so.")


@app.command()
def predict(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN/ARM", help="A network of a run, or its file of weights."),
    ],
    frames: Annotated[
        Path,
        typer.Option("--input", metavar="FRAMES", help="Folder, video, image or data set's YAML."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the predictions.")],
    overlays: Annotated[
        bool,
        typer.Option("--overlay", help="Also draw them over the frames; of a video, as a video."),
    ] = False,
    save: Annotated[
        Literal["color", "train_ids", "label_ids"],
        typer.Option("--save", help="Class indices in colours or in grey, or Cityscapes' ids."),
    ] = "color",
    width: Annotated[
        int | None,
        typer.Option(
            "--width", min=16, max=65_535, help="Show frames at this width [as the run does]."
        ),
    ] = None,
    unreadable: Annotated[
        float, typer.Option("--unreadable", min=0, max=1, help="Share of unreadable frames.")
    ] = 0.1,
    shard: Shard = None,
) -> None:
    """Predict the classes of any frames with a trained network, at the frames' own size."""
    from flows.predictions import predict_any

    made = predict_any(
        source,
        frames,
        out,
        save=save,
        overlays=overlays,
        width=width,
        unreadable=unreadable,
        part=_shard(shard) if shard else None,
    )
    _tell("Predicted", made, shard)


def _tell(done: str, made: list[Path], shard: str | None) -> None:
    """Say what was made of frames."""
    if made:
        print(f"{done}: {', '.join(map(str, made))}")
    else:
        print(f"Shard {shard} is done. When all are, the same command without --shard ends it.")


@app.command("train-segmentation")
def train_segmentation(
    run: RunFolder, config: ConfigOption = None, settings: Settings = None
) -> None:
    """Train the segmentation networks of a run: every arm, every seed."""
    _run_stages(run, "train-segmentation", config, settings)


@app.command()
def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The run's folder. With --predictions also a configuration, a data set's YAML "
            "file, or the name of a known data set.",
        ),
    ],
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FOLDER", help="Score these PNGs, and no network."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of evaluation.json and official.json."),
    ] = None,
    encoding: Annotated[
        Literal["auto", "label_ids", "train_ids"],
        typer.Option("--encoding", help="What the PNGs hold; auto looks at their values."),
    ] = "auto",
    label_space: Annotated[
        str | None,
        typer.Option(
            "--label-space", metavar="NAME_OR_FILE", help="For a data set [cityscapes19]."
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Where the data set is.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of the data set.")] = None,
    settings: Settings = None,
) -> None:
    """Score the segmentation networks of a run, or predictions of whatever origin."""
    from pipeline.errors import UserError

    if predictions is None:
        if out or label_space or root or split or settings or encoding != "auto":
            raise UserError(
                "--out, --encoding, --label-space, --root, --split and --set go with --predictions "
                "FOLDER. Without it, the networks of a run are scored, as its configuration says."
            )
        _run_stages(Path(what), "evaluate")
        return
    if out is None:
        raise UserError("--predictions needs --out DIR: the folder in which scores are written.")
    from rich.console import Console

    from flows.scoring import ground_truth, show_scores
    from segmentation.score_files import score_files

    dataset, space = ground_truth(what, label_space, root, split, settings)
    result, notes = score_files(dataset, space, predictions, out, encoding)
    console = Console()
    show_scores(result, console)
    for note in notes:
        console.print(note, soft_wrap=True, markup=False, highlight=False)
    console.print(f"Scores: {out / 'evaluation.json'}", soft_wrap=True, markup=False)


@app.command()
def select(run: RunFolder) -> None:
    """Look at the networks of a run without labels of the target, to choose among them.

    Of a run whose configuration has `selection`; the report says what each criterion would choose.
    """
    _run_stages(run, "select")


@app.command("label-target")
def label_target(run: RunFolder) -> None:
    """Let networks of a run label the target's frames, for translations with `pseudo_labels`."""
    _run_stages(run, "label-target")


@app.command()
def gate(run: RunFolder) -> None:
    """Look whether labels still fit the translated frames of a run, also of one that is finished.

    Translations without a `gate` are looked at by the default one; their arms stay as they are.
    """
    _run_stages(run, "gate")


@app.command()
def report(run: RunFolder) -> None:
    """Write the report of a run; of one that is not whole, of what has been scored so far."""
    from flows.show import PARTIAL, show_result, write_partial_report

    partial = write_partial_report(run)
    if not partial:
        _run_stages(run, "report", anew=True)
    show_result(run, PARTIAL if partial else "report")


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A run (its generator), RUN/ARM (a segmentation network), or a file of weights.",
        ),
    ],
    to: Annotated[
        Path,
        typer.Option("--to", metavar="FILE", help="A .pth, .onnx or .pt2 file, or a folder."),
    ],
    backwards: Annotated[
        bool, typer.Option("--backwards", help="The generator from target to source.")
    ] = False,
    translation: Translation = "translated",
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="WIDTHxHEIGHT",
            help="Input of a segmentation network [of a run: its test frames; else its crops].",
        ),
    ] = None,
) -> None:
    """Write a generator or a segmentation network for other programs, checked against the original.

    Generators: .pth, as the reference implementation stores them, .onnx, or a folder for all
    networks of the file. Segmentation networks: .onnx, .pt2 (torch.export), or a folder with a
    model card; normalisation, names and colours of the classes are in the file.
    """
    from cyclegan.checkpoints import export as write
    from flows.plan import generator_file
    from flows.segmenters import export_segmenter, names_segmenter
    from pipeline.config.translation import TranslationConfig
    from pipeline.errors import UserError
    from pipeline.run.folder import read_run

    if names_segmenter(source):
        if backwards:
            raise UserError(f"--backwards is for generators; {source} is a segmentation network.")
        print(export_segmenter(source, to, size))
        return
    if size:
        raise UserError(f"--size is for segmentation networks; {source} is none: give RUN/ARM.")
    if backwards and not to.suffix:
        raise UserError(f"--backwards is for one generator, and folder {to} gets all networks.")
    path, batch_norm = source, TranslationConfig().batch_norm
    if source.is_dir():
        config = read_run(source)
        path = generator_file(config, source, translation)
        batch_norm = config.all_translations[translation].batch_norm
    print(write(path, to, "target_to_source" if backwards else "source_to_target", batch_norm))


@app.command()
def status(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the stages of a run: state, progress, time, what is left, who is at work.

    Of a folder of runs, each.
    """
    from flows.show import show_runs, show_status, write_status
    from pipeline.run.folder import CONFIG_FILE

    runs = sorted(path.parent for path in run.glob(f"*/{CONFIG_FILE}"))
    if as_json:
        write_status(run)
    elif runs and not (run / CONFIG_FILE).is_file():
        show_runs(runs)
    else:
        show_status(run)


@app.command()
def server(
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 4200,
) -> None:
    """Start a Prefect server for runs on workers; only this machine reaches it."""
    from flows.deploy import start_server

    start_server(host, port)


@app.command()
def deploy(
    lost_after: Annotated[
        int,
        typer.Option(
            "--lost-after",
            metavar="SECONDS",
            help="Without a sign of life for so long, a flow run counts as crashed.",
        ),
    ] = 300,
) -> None:
    """Tell the server at PREFECT_API_URL of pools, queues and deployments; repeat it at will."""
    from flows.deploy import deploy as make

    print("\n".join(make(lost_after)))


@app.command()
def worker(
    pool: Annotated[str, typer.Option("--pool", help="cpu: whole runs; gpu: their units.")],
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="N[,N...]", help="The GPUs that are its own [none]."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What status calls it [HOST-POOL-GPU].")
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option("--root", metavar="DIR", help="Where runs and data are [working folder]."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Flow runs at a time [cpu: 16, gpu: 1].")
    ] = None,
) -> None:
    """Start a worker of a pool on this machine; SIGTERM and Ctrl-C end it."""
    from flows.deploy import start_worker

    start_worker(pool, gpu, name, root or [Path.cwd()], limit)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the report.")],
) -> None:
    """Write one report over several runs."""
    from pipeline.errors import UserError
    from pipeline.run.folder import read_run
    from reports.report import write_comparison

    names = [folder.resolve().name for folder in runs]
    if len(set(names)) != len(names):
        raise UserError(f"Two runs share a folder name: {', '.join(names)}. Rename one.")
    pairs = zip(names, runs, strict=True)
    write_comparison({name: (read_run(folder), folder) for name, folder in pairs}, out)
    print(f"Report: {out / 'index.html'}")


@app.command()
def datasets() -> None:
    """List the data sets that are known by name, and what each lacks of the Cityscapes classes."""
    from flows.show import show_datasets

    show_datasets()


@app.command()
def check(
    what: Annotated[
        str,
        typer.Argument(
            metavar="DATASET_OR_CONFIG",
            help="A configuration, a data set's YAML file, or the name of a known data set.",
        ),
    ],
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Where the data set is.")
    ] = None,
    label_space: Annotated[
        str, typer.Option("--label-space", metavar="NAME_OR_FILE", help="For a data set.")
    ] = "cityscapes19",
    settings: Settings = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of check.html and check.json.")
    ] = Path("check"),
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Write the list of frames to leave out.")
    ] = False,
) -> None:
    """Look at every file of a data set, or of all that a configuration names; status 1: fix it.

    With a configuration, also what `run` checks before it starts.
    """
    from rich.console import Console

    from flows import doctor
    from pipeline.errors import UserError
    from reports.check import write_check

    target = doctor.check_target(what, root, label_space, settings)
    reports = doctor.check(target)
    console = Console()
    doctor.tell(reports, console)
    write_check(reports, out)
    wrong = doctor.must_fix(reports)
    if quarantine:
        for line in doctor.quarantine(target, reports, out):
            console.print(line, soft_wrap=True, markup=False)
    if target.config:
        from flows.prepare import preflight
        from flows.show import show_estimate

        try:
            preflight(target.config)
        except UserError as error:
            if not wrong:
                raise
            console.print(f"A run would not start: {error}", soft_wrap=True, markup=False)
        else:
            show_estimate(target.config, console)
    console.print(f"Pictures: {out / 'check.html'}", soft_wrap=True, markup=False)
    if wrong:
        raise typer.Exit(1)
    print(f"{what}: nothing in the way of a run.")


@app.command("new-dataset")
def new_dataset(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the data is.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The spec to write [NAME.yaml].")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--target",
            metavar="FOLDER",
            help="Real frames, labelled or not, or their YAML file: write the run's configuration.",
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            "--test", metavar="FOLDER", help="Labelled real frames [a split of the target]."
        ),
    ] = None,
) -> None:
    """Look at a folder of unknown layout and write a first spec of it, with pictures.

    With --target, write also the configuration of a first run, sized for this machine. What a
    person has to answer ends in a question mark in the files.
    """
    from pipeline.errors import UserError

    if target is not None:
        from flows.first_run import write_first_run

        print("\n".join(write_first_run(folder, target, test, out)))
        return
    if test is not None:
        raise UserError("--test FOLDER goes with --target FOLDER: together they make a run.")
    from pipeline.intake.discover import discover
    from pipeline.intake.first_spec import describe, write_first_spec

    discovery = discover(folder)
    path = out or Path(f"{discovery.name}.yaml")
    written = write_first_spec(discovery, path)
    print("\n".join(describe(discovery, path)))
    print(f"Written: {', '.join(str(item) for item in written)}")


def _guard_packages() -> None:
    """Stop when a foreign package of a name as common as ours is imported instead of ours."""
    from importlib.util import find_spec

    home = Path(__file__).parent.parent
    for name in ("pipeline", "cyclegan", "segmentation", "reports", "flows"):
        spec = find_spec(name)
        origin = Path(spec.origin) if spec and spec.origin else None
        if origin is None or origin.parent.parent != home:
            print(
                f"Package {name!r} is taken from {origin}, not from {home}. Use an environment "
                "of this project's own (make install).",
                file=sys.stderr,
            )
            sys.exit(2)


def main() -> None:
    """Run the command line; what the user can fix is one message and status 2."""
    _guard_packages()
    from pipeline.runtime.threads import choose_threads

    choose_threads()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names need not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    from pipeline.runtime.launch import torchrun

    if "--allow-code" in sys.argv:
        from pipeline.data.reading import ALLOW_CODE

        os.environ[ALLOW_CODE] = "1"  # also for the processes that this one starts
    if torchrun():
        _command_of_ranks()
    else:
        _command()


def _command_of_ranks() -> None:
    """Rank zero of torchrun does the command; the others join the stages that use all devices."""
    from flows.rank import follow_rank_zero
    from pipeline.errors import UserError
    from pipeline.runtime.distributed import connected

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with connected() as ranks:
        if ranks.is_rank_zero:
            try:
                _command()
            except SystemExit as end:
                if end.code:
                    raise
            ranks.broadcast()
            return
        try:
            follow_rank_zero(ranks)
        except UserError as error:
            time.sleep(1)  # where rank zero finds the same, its message is enough
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(2)


def _command() -> None:
    from pipeline.errors import UserError, explain

    # Not the default, so that bars, logs and files that are being written are closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    debug = "--debug" in sys.argv
    arguments = [text for text in sys.argv[1:] if text not in ("--debug", "--allow-code")]
    if arguments == ["--version"]:
        from importlib.metadata import version

        print(f"sim2real {version('sim2real')}")
        return
    first_word = Timer(_FIRST_WORD_SECONDS, _say, arguments[:1])
    first_word.daemon = True
    if arguments[:1] and arguments[0] not in _QUICK and "--help" not in arguments:
        first_word.start()
    try:
        app(args=arguments)
    except (UserError, OSError) as error:
        if debug:
            raise
        message = explain(error) if isinstance(error, OSError) else str(error)
        print(f"Error: {message}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C
            print(STOPPED, file=sys.stderr)
        raise
    finally:
        first_word.cancel()


def _say(command: str) -> None:
    """The first word of a command that has libraries to load."""
    print(f"{command}: loading libraries, then looking at the data", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
