"""The commands. Libraries are imported where they are used: `--help` answers at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from flows.options import (
    UNREADABLE,
    LabelSpace,
    Part,
    Root,
    RunFolder,
    SetConfig,
    Settings,
    Shard,
    Size,
    Translation,
    Unreadable,
    frame_counts,
)
from pipeline.errors import UserError

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


@app.command()
def run(
    config: Annotated[Path, Argument(metavar="CONFIG", help="A YAML configuration.")],
    run_folder: Annotated[
        Path | None, Option("--run", metavar="DIR", help="Run folder [runs/NAME].")
    ] = None,
    settings: Settings = None,
    force: Annotated[
        list[str] | None, Option(metavar="STAGE", help="Make a stage and what reads it anew.")
    ] = None,
    ablate: Annotated[
        bool, Option("--ablate", help="Show what each step brings instead [runs/NAME-ablation].")
    ] = False,
    budget: Annotated[
        Sequence[int] | None,
        Option(
            metavar="N,N,...",
            parser=frame_counts,
            help="Show what the synthetic frames are worth in labelled ones, with arms that have N "
            "of these [runs/NAME-budget].",
        ),
    ] = None,
    workers: Annotated[
        bool, Option("--workers", help="Let the workers of the server at PREFECT_API_URL do it.")
    ] = False,
    parts: Annotated[int, Option(min=1, max=1024, help="Parts of a translation, for workers.")] = 1,
) -> None:
    """Run the whole chain as a Prefect flow; continue it where it was interrupted.

    With --ablate, show what each step brings: source only, simple translators, CycleGAN, semantic
    consistency, self-training, rare class sampling, masking, oracle; one table over all.

    With --budget 1,4,16,64, train beside the configuration's arms on so many labelled frames of the
    target, alone and with the frames of the adapted arm: how many is the adaptation worth?
    """
    if (config / "config.yaml").is_file():
        raise UserError(
            f"{config} is the folder of a run. Continue it: sim2real run {config}/config.yaml "
            f"--run {config}"
        )
    if ablate and budget:
        raise UserError("--ablate and --budget make a run each: give one of them.")
    from flows.ablate import ablation
    from flows.budget import with_budget
    from flows.running import run_flow
    from pipeline.config.load import load_config

    plain = derived = load_config(config, settings)
    if ablate:
        derived = ablation(plain)
    elif budget:
        derived = with_budget(plain, budget)
    run_flow(
        derived,
        run_folder or Path("runs") / derived.name,
        config,
        forced=force or [],
        lender=Path("runs") / plain.name if derived is not plain else None,
        workers=workers,
        parts=parts,
    )


@app.command()
def demo(
    out: Annotated[Path, Option(metavar="DIR", help="Run folder.")] = Path("runs/demo"),
    settings: Settings = None,
) -> None:
    """Draw a toy world and run the whole chain on it: minutes on two CPU cores."""
    from flows.running import run_flow
    from pipeline.config.load import load_config
    from pipeline.files import write_text
    from pipeline.toyworld.writing import write_toy_world

    shipped, config = Path(__file__).parent / "demo.yaml", out / "demo.yaml"
    load_config(shipped, settings)  # a misspelt setting is said before anything is drawn
    write_toy_world(out / "data")
    write_text(config, shipped.read_text(encoding="utf-8"))
    run_flow(load_config(config, settings), out, config)


@app.command("train-cyclegan")
def train_cyclegan(run: RunFolder, config: SetConfig = None, settings: Settings = None) -> None:
    """Train the translator of a run."""
    _run_stages(run, "train-cyclegan", config, settings)


def _run_stages(
    run: Path, command: str, config: Path | None = None, settings: list[str] | None = None
) -> None:
    from flows.running import run_stages

    run_stages(run, command, config, settings)


@app.command()
def translate(
    source: Annotated[
        Path,
        Argument(
            metavar="RUN", help="A run; with --input also RUN/TRANSLATION or a file of weights."
        ),
    ],
    frames: Annotated[
        Path | None,
        Option(
            "--input",
            metavar="FRAMES",
            help="Translate this folder, video, image or data set's YAML instead.",
        ),
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Folder of the translated frames, or a video.")
    ] = None,
    translation: Translation = None,
    format: Annotated[
        Literal["png", "jpg", "webp"] | None,
        Option(help="Of the images; png and webp lose nothing [png]."),
    ] = None,
    width: Annotated[
        int | None, Option(min=16, max=65_535, help="Translate at this width [their own].")
    ] = None,
    precision: Annotated[
        Literal["32-true", "bf16-mixed"] | None,
        Option(help="bf16-mixed is faster where there is hardware for it."),
    ] = None,
    strips: Annotated[
        Literal["auto", "always", "never"] | None,
        Option(help="Large frames in strips of rows, to save memory [auto]."),
    ] = None,
    unreadable: Unreadable = UNREADABLE,
    shard: Part = None,
    config: SetConfig = None,
    settings: Settings = None,
) -> None:
    """Translate the source frames of a run, or any frames with its generator; labels or not."""
    if frames is not None and (config or settings):
        raise UserError("--config and --set are for the stages of a run, --input for any frames.")
    if frames is None and out is None:
        given = (translation, format, width, precision, strips, shard)
        if any(option is not None for option in given) or unreadable != UNREADABLE:
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
    from flows.frames import translate_any

    made = translate_any(
        source,
        frames,
        out,
        translation=translation,
        format=format,
        width=width,
        precision=precision,
        strips=strips,
        unreadable=unreadable,
        part=shard,
    )
    _tell("Translated", made, shard)


def _tell(done: str, made: list[Path], shard: Shard | None) -> None:
    """Say what was made of frames."""
    if made:
        print(f"{done}: {', '.join(map(str, made))}")
    else:
        print(f"Shard {shard} is done. When all are, the same command without --shard ends it.")


@app.command()
def predict(
    source: Annotated[
        Path, Argument(metavar="RUN/ARM", help="A network of a run, or its file of weights.")
    ],
    frames: Annotated[
        Path, Option("--input", metavar="FRAMES", help="Folder, video, image or data set's YAML.")
    ],
    out: Annotated[Path, Option(metavar="DIR", help="Folder of the predictions.")],
    overlays: Annotated[
        bool, Option("--overlay", help="Also draw them over the frames; of a video, as a video.")
    ] = False,
    save: Annotated[
        Literal["color", "train_ids", "label_ids"],
        Option(help="Class indices in colours or in grey, or Cityscapes' ids."),
    ] = "color",
    width: Annotated[
        int | None, Option(min=16, max=65_535, help="Show frames at this width [as the run does].")
    ] = None,
    unreadable: Unreadable = UNREADABLE,
    shard: Part = None,
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
        part=shard,
    )
    _tell("Predicted", made, shard)


@app.command("train-segmentation")
def train_segmentation(run: RunFolder, config: SetConfig = None, settings: Settings = None) -> None:
    """Train the segmentation networks of a run: every arm, every seed."""
    _run_stages(run, "train-segmentation", config, settings)


@app.command()
def evaluate(
    what: Annotated[
        str,
        Argument(
            metavar="RUN",
            help="The run's folder. With --predictions also a configuration, a data set's YAML "
            "file, or the name of a known data set.",
        ),
    ],
    predictions: Annotated[
        Path | None, Option(metavar="FOLDER", help="Score these PNGs, and no network.")
    ] = None,
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Folder of evaluation.json and official.json.")
    ] = None,
    encoding: Annotated[
        Literal["auto", "label_ids", "train_ids"],
        Option(help="What the PNGs hold; auto looks at their values."),
    ] = "auto",
    label_space: LabelSpace = None,
    root: Root = None,
    split: Annotated[str | None, Option(help="Of the data set.")] = None,
    settings: Settings = None,
) -> None:
    """Score the segmentation networks of a run, or predictions of whatever origin."""
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
    from flows.scoring import ground_truth, show_scores
    from segmentation.score_files import score_files

    dataset, space = ground_truth(what, label_space, root, split, settings)
    result, notes = score_files(dataset, space, predictions, out, encoding)
    show_scores(result)
    print(*notes, f"Scores: {out / 'evaluation.json'}", sep="\n")


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
    from flows.running import run_stages
    from flows.show import PARTIAL, show_result, write_partial_report

    partial = write_partial_report(run)
    if not partial:
        run_stages(run, "report", anew=True)
    show_result(run, PARTIAL if partial else "report")


@app.command()
def export(
    source: Annotated[
        Path,
        Argument(
            metavar="SOURCE",
            help="A run (its generator), RUN/ARM (a segmentation network), or a file of weights.",
        ),
    ],
    to: Annotated[Path, Option(metavar="FILE", help="A .pth, .onnx or .pt2 file, or a folder.")],
    backwards: Annotated[
        bool, Option("--backwards", help="The generator from target to source.")
    ] = False,
    translation: Translation = None,
    size: Annotated[
        Size | None,
        Option(
            metavar="WIDTHxHEIGHT",
            parser=Size.parse,
            help="Input of a segmentation network [of a run: its test frames; else its crops].",
        ),
    ] = None,
) -> None:
    """Write a generator or a segmentation network for other programs, checked against the original.

    Generators: .pth, as the reference implementation stores them, .onnx, or a folder for all
    networks of the file. Segmentation networks: .onnx, .pt2 (torch.export), or a folder with a
    model card; normalisation, names and colours of the classes are in the file.
    """
    from flows.segmenters import export_segmenter, names_segmenter

    if names_segmenter(source):
        if backwards:
            raise UserError(f"--backwards is for generators; {source} is a segmentation network.")
        print(export_segmenter(source, to, size))
        return
    if size:
        raise UserError(f"--size is for segmentation networks; {source} is none: give RUN/ARM.")
    if backwards and not to.suffix:
        raise UserError(f"--backwards is for one generator, and folder {to} gets all networks.")
    from cyclegan.checkpoints import export as write
    from flows.plan import generator_file
    from pipeline.config.translation import TRANSLATED, TranslationConfig
    from pipeline.run.folder import read_run

    path, batch_norm = source, TranslationConfig().batch_norm
    if source.is_dir():
        config, name = read_run(source), translation or TRANSLATED
        path = generator_file(config, source, name)
        batch_norm = config.all_translations[name].batch_norm
    print(write(path, to, "target_to_source" if backwards else "source_to_target", batch_norm))


@app.command()
def status(
    run: RunFolder, as_json: Annotated[bool, Option("--json", help="For programs.")] = False
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
    host: Annotated[str, Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535)] = 4200,
) -> None:
    """Start a Prefect server for runs on workers; only this machine reaches it."""
    from flows.deploy import start_server

    start_server(host, port)


@app.command()
def deploy(
    lost_after: Annotated[
        int,
        Option(
            metavar="SECONDS",
            help="Without a sign of life for so long, a flow run counts as crashed.",
        ),
    ] = 300,  # several heartbeats and a restart of the server: a run that lives is not lost
) -> None:
    """Tell the server at PREFECT_API_URL of pools, queues and deployments; repeat it at will."""
    from flows.deploy import deploy as make

    print("\n".join(make(lost_after)))


@app.command()
def worker(
    pool: Annotated[Literal["cpu", "gpu"], Option(help="cpu: whole runs; gpu: their units.")],
    gpu: Annotated[
        str | None, Option(metavar="N[,N...]", help="The GPUs that are its own [none].")
    ] = None,
    name: Annotated[str | None, Option(help="What status calls it [HOST-POOL-GPU].")] = None,
    root: Annotated[
        list[Path] | None,
        Option(metavar="DIR", help="Where runs and data are [working folder]."),
    ] = None,
    limit: Annotated[
        int | None, Option(min=1, help="Flow runs at a time [cpu: 16, gpu: 1].")
    ] = None,
) -> None:
    """Start a worker of a pool on this machine; SIGTERM and Ctrl-C end it."""
    from flows.deploy import start_worker

    start_worker(pool, gpu, name, root or [Path.cwd()], limit)


@app.command()
def compare(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path, Option(metavar="DIR", help="Folder of the report.")],
) -> None:
    """Write one report over several runs."""
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
        Argument(
            metavar="DATASET_OR_CONFIG",
            help="A configuration, a data set's YAML file, or the name of a known data set.",
        ),
    ],
    root: Root = None,
    label_space: LabelSpace = None,
    settings: Settings = None,
    out: Annotated[Path, Option(metavar="DIR", help="Of check.html and check.json.")] = Path(
        "check"
    ),
    quarantine: Annotated[
        bool, Option("--quarantine", help="Write the list of frames to leave out.")
    ] = False,
) -> None:
    """Look at every file of a data set, or of all that a configuration names; status 1: fix it.

    With a configuration, also what `run` checks before it starts.
    """
    from flows import doctor
    from flows.prepare import preflight
    from flows.show import show_estimate
    from reports.check import write_check

    target = doctor.check_target(what, root, label_space, settings)
    reports = doctor.check(target)
    doctor.tell(reports)
    write_check(reports, out)
    wrong = any(report.must_fix for report in reports.values())
    if quarantine:
        print(*doctor.quarantine(target, reports, out), sep="\n")
    if target.config:
        try:
            preflight(target.config)
        except UserError as error:
            if not wrong:
                raise
            print(f"A run would not start: {error}")
        else:
            show_estimate(target.config)
    print(f"Pictures: {out / 'check.html'}")
    if wrong:
        raise typer.Exit(1)
    print(f"{what}: nothing in the way of a run.")


@app.command("new-dataset")
def new_dataset(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Where the data is.")],
    out: Annotated[
        Path | None, Option(metavar="FILE", help="The spec to write [NAME.yaml].")
    ] = None,
    target: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="Real frames, labelled or not, or their YAML file: write the run's configuration.",
        ),
    ] = None,
    test: Annotated[
        Path | None, Option(metavar="FOLDER", help="Labelled real frames [a split of the target].")
    ] = None,
) -> None:
    """Look at a folder of unknown layout and write a first spec of it, with pictures.

    With --target, write also the configuration of a first run, sized for this machine. What a
    person has to answer ends in a question mark in the files.
    """
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
    print(f"Written: {', '.join(map(str, written))}")
