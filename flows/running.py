"""A whole run, by Prefect's flow, and the stages of one command, without Prefect."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.ablate import take_over
from flows.plan import gate_plan, plan
from flows.prepare import prepare
from flows.server import prefect_server, use_named_server
from flows.show import show_result
from flows.signals import take_signals
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.errors import UserError
from pipeline.run.folder import locked, read_run
from pipeline.run.stage import check, is_done, named, remove, run_stage, scored_on_other_data

_HELPERS = {"train-segmentation", "label-target"}
"""Commands of stages that are done with the translator's training that reads them."""


def run_flow(
    config: Config,
    folder: Path,
    file: Path,
    *,
    forced: Sequence[str] = (),
    lender: Path | None = None,
    workers: bool = False,
    parts: int = 1,
) -> None:
    """Do what is left of a run, and show its result.

    Args:
        file: what the configuration was read from.
        forced: names of stages to make anew, with all that reads them.
        lender: another run, to take stages over from that it made from equal inputs.
        workers: let the workers of the named server do it.
        parts: into how many units workers divide each translation.
    """
    if workers:
        use_named_server()
    with locked(folder):
        stages = prepare(config, folder, list(forced), file, devices=not workers)
        if lender and (taken := take_over(config, folder, lender)):
            print(f"Taken over from {lender}: {', '.join(taken)}", file=sys.stderr, flush=True)
    if not all(is_done(folder, stage.name) for stage in stages):
        with _prefect(folder):
            from flows.adapt import adapt

            adapt(run=str(folder), workers=workers, parts=parts)
    show_result(folder)


@contextmanager
def _prefect(folder: Path) -> Iterator[None]:
    """Let flows run in this block, and one message say that their server is gone."""
    take_signals()
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


def run_stages(
    folder: Path,
    command: str,
    config: Path | None = None,
    settings: list[str] | None = None,
    *,
    anew: bool = False,
) -> None:
    """Do every stage of one command, without Prefect.

    Args:
        config: configure the run by this file first, with `settings` on top.
        anew: also the stages that are complete.
    """
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
        ready = [
            stage
            for stage in wanted
            if is_done(folder, stage.name)
            or all(is_done(folder, read) for read in stage.reads if read not in names)
        ]
    for stage in ready:
        if stage.name in outdated and not anew:
            print(f"{stage.name}: test files have changed; scored anew", file=sys.stderr)
        done = run_stage(folder, stage, inputs[stage.name], anew=stage.name in outdated)
        print(f"{stage.name}: {'done' if done else 'was complete'}", file=sys.stderr)
    if waiting := [stage for stage in wanted if stage not in ready]:
        first = waiting[0]
        missing = next(s for s in stages if s.name in first.reads and not is_done(folder, s.name))
        so_far = f"Done: {', '.join(stage.name for stage in ready)}. " if ready else ""
        raise UserError(
            f"{so_far}Stage {first.name} reads {missing.name}, which is not complete. Run "
            f"`sim2real {missing.command} {folder}` first, or `sim2real run`, which does all "
            "stages in order."
        )
