"""The Prefect flow of a run: each unit of work is a task, and the plan says what waits for what.

Prefect schedules, shows and limits; whether something is done is read from the run folder alone,
so nothing is cached here.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.dispatch import dispatch
from flows.plan import plan
from flows.prepare import prepare
from flows.roots import check_roots, files_named
from flows.signals import take_signals
from flows.units import do, units
from flows.work import key
from pipeline.config.load import load_config
from pipeline.config.settings import Config
from pipeline.errors import UserError
from pipeline.files import stats
from pipeline.run.folder import locked, read_run
from pipeline.run.stage import check
from pipeline.runtime.cost import WORKER
from pipeline.runtime.threads import choose_threads
from pipeline.scoring.metrics import headline
from pipeline.text import number
from reports.pages import cell
from reports.summary import read_headline

_SIDE_BY_SIDE: Any = ThreadPoolTaskRunner(max_workers=256)
"""So many units may be waited for at a time."""


def _name() -> str:
    return Path(str(flow_run.parameters["run"])).name


@flow(name="adapt", flow_run_name=_name, task_runner=_SIDE_BY_SIDE)
def adapt(
    run: str,
    config: str | None = None,
    settings: list[str] | None = None,
    force: list[str] | None = None,
    whole: Config | None = None,
    workers: bool = False,
    parts: Annotated[int, Field(ge=1, le=1024)] = 1,
) -> str:
    """Run a whole adaptation, from CycleGAN training to the report.

    Args:
        run: the run folder, on storage that every worker sees.
        config: path of a configuration; none continues the run as it was configured.
        settings: `a.b=value` texts that win over the configuration.
        force: names of stages to make anew.
        whole: a configuration with every data set written out, in place of the path of one.
        workers: let the workers of the pool `gpu` do what needs an accelerator, side by side; else
            one unit after the other is done here.
        parts: into how many units each translation is divided.

    Returns:
        The path of the report.
    """
    choose_threads()
    take_signals(at_once=workers and WORKER not in os.environ)
    folder = Path(run).absolute()
    check_roots([folder, *([Path(config)] if config else [])])
    with locked(folder):
        if config or whole:
            loaded = whole or load_config(Path(str(config)), settings)
            check_roots(files_named(loaded))
            prepare(
                loaded, folder, force or [], Path(config) if config else None, devices=not workers
            )
        stages = plan(read_run(folder), folder)
        inputs = check(folder, stages)

    @task(task_run_name="{name}", cache_policy=NO_CACHE)
    def unit(name: str) -> bool:
        """Do what is left of a unit; False when it was complete already."""
        return do(folder, stages, graph[name], inputs)

    graph = {item.name: item for item in units(stages, parts if workers else 1)}
    done: dict[str, Any] = {}  # states, or futures of what is submitted
    for name, item in graph.items():
        before = [done[other] for other in item.reads]
        if not workers:
            done[name] = unit(name, wait_for=before, return_state=True)
            done[name].result()  # raises what the task has raised
        elif item.light:
            done[name] = unit.submit(name, wait_for=before, return_state=False)
        else:
            done[name] = dispatch(folder, item, parts, str(flow_run.id), before)
    if workers:
        _gather(done)
        _show(folder)
    return str(folder / "report" / "index.html")


def _gather(futures: dict[str, PrefectFuture[Any]]) -> None:
    """Wait for all units.

    Raises:
        UserError: some have failed; names each and says why.
    """
    problems = []
    for future in futures.values():
        future.wait()
        if future.state.is_failed() or future.state.is_crashed():
            error = future.result(raise_on_failure=False)
            if not isinstance(error, UserError | OSError):
                future.result()
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def _show(run: Path) -> None:
    """Leave the headline, the scores, those of the classes, the newest samples and the report in
    Prefect's UI."""
    path = run / "report" / "report.json"
    report, metrics = read_headline(path), headline()
    rows = [
        {"arm": arm}
        | {m.title: number(values[m.key].mean, m.unit) for m in metrics if m.key in values}
        for arm, values in report.arms.items()
    ]
    create_table_artifact(rows, key=key(run.name, "scores"), description=f"Scores of {run.name}")
    if report.headline:
        lines = [f"**{cell(report.headline)}**"]
        lines += [f"- **{one.severity}**: {cell(one.text)}" for one in report.warnings]
        lines += [f"Next: {cell(report.advice)}"] if report.advice else []
        create_markdown_artifact("\n\n".join(lines), key=key(run.name, "headline"))
    if report.class_iou:
        names = next(iter(report.class_iou.values()))
        classes = [
            {"class": name} | {arm: number(of[name]) for arm, of in report.class_iou.items()}
            for name in names
        ]
        about = f"IoU of the classes of {run.name}"
        create_table_artifact(classes, key=key(run.name, "classes"), description=about)
    create_link_artifact(
        path.with_name("index.html").as_uri(),
        key=key(run.name, "report"),
        link_text=str(path.with_name("index.html")),
        description=f"Report of {run.name}",
    )
    samples = stats(run, "cyclegan*/**/samples/*.png")
    if samples:
        newest = max(samples, key=lambda path: samples[path].st_mtime)
        create_link_artifact(
            newest.as_uri(),
            key=key(run.name, "samples"),
            link_text=str(newest),
            description="Newest translated samples",
        )
