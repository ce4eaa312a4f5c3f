"""The Prefect flow: each stage of a run is a task.

Prefect schedules, shows and limits; whether a stage is done is read from the run folder alone,
so nothing is cached here.
"""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.plan import plan
from flows.prepare import prepare
from flows.signals import take_signals
from pipeline.config.load import load_config
from pipeline.run.folder import locked, read_run
from pipeline.run.stage import check, run_stage
from pipeline.runtime.threads import choose_threads


@flow(name="adapt", flow_run_name="{run}")
def adapt(
    run: str,
    config: str | None = None,
    settings: list[str] | None = None,
    force: list[str] | None = None,
) -> str:
    """Run a whole adaptation, from CycleGAN training to the report.

    Args:
        run: the run folder, on storage that every worker sees.
        config: path of a configuration; none continues the run as it was configured.
        settings: `a.b=value` texts that win over the configuration.
        force: names of stages to make anew.

    Returns:
        The path of the report.
    """
    choose_threads()
    take_signals()
    folder = Path(run).absolute()
    with locked(folder):
        if config:
            prepare(load_config(Path(config), settings), folder, force or [])
        stages = plan(read_run(folder), folder)
        inputs = check(folder, stages)

        @task(task_run_name="{name}", cache_policy=NO_CACHE)
        def stage(name: str) -> bool:
            """Do what is left of one stage; False when it was complete already."""
            return run_stage(folder, next(s for s in stages if s.name == name), inputs[name])

        for item in stages:
            stage(item.name)
    return str(folder / "report" / "index.html")
