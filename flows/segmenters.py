"""Trained segmentation networks by the names that users give them: RUN/ARM, or a file."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.settings import Config
from pipeline.data.images import UInt8, read_rgb
from pipeline.data.labels import LabelSpace, load_label_space
from pipeline.data.listing import list_samples
from pipeline.data.reading import working_size
from pipeline.errors import UserError
from pipeline.run.folder import CONFIG_FILE, check_results, network_folder, read_run
from pipeline.run.stage import is_done
from pipeline.scoring.evaluation import Evaluation

# What needs torch is imported when called: names are looked up without it.


@dataclass(frozen=True)
class ArmOfRun:
    """The network of an arm and seed of a run."""

    run: Path
    config: Config
    arm: str
    seed: int

    @property
    def checkpoint(self) -> Path:
        """The file of its weights; it may not be there yet."""
        return self.run / self._stage("segmentation") / "checkpoints" / "last.pt"

    @property
    def space(self) -> LabelSpace:
        """Its classes."""
        return load_label_space(self.config.label_space)

    @property
    def evaluation(self) -> Evaluation | None:
        """Its scores; None: it has not been scored."""
        stage = self._stage("evaluation")
        return Evaluation.read(self.run / stage, self.space) if is_done(self.run, stage) else None

    def check(self) -> None:
        """Say when it is not trained to the end.

        Raises:
            UserError: it has not been trained, or was damaged since.
        """
        if not self.checkpoint.is_file():
            raise UserError(
                f"{self.run}: the network of arm {self.arm}, seed {self.seed}, is not trained yet. "
                f"Run `sim2real train-segmentation {self.run}` first."
            )
        stage = self._stage("segmentation")
        if is_done(self.run, stage):
            check_results(self.run, stage)
        else:
            print(f"Note: {stage} of {self.run} is not trained to its end.", file=sys.stderr)

    def test_frame(self) -> UInt8 | None:
        """The first frame of the test set as it is stored; None: it is not here."""
        try:
            return read_rgb(list_samples(self.config.test, labelled=False)[0].image)
        except UserError:
            return None

    def _stage(self, kind: str) -> str:
        return network_folder(kind, self.arm, self.seed)


def arm_of_run(source: Path) -> ArmOfRun | None:
    """What RUN/ARM, RUN/ARM/seed-N or a checkpoint within a run means; None: something else.

    Raises:
        UserError: the run has no such arm or seed.
    """
    run = next((above for above in source.parents if (above / CONFIG_FILE).is_file()), None)
    parts = source.relative_to(run).parts if run else ()
    if not run or (source.is_file() and (parts[0], source.name) != ("segmentation", "last.pt")):
        return None
    config = read_run(run)
    inside = {"segmentation", "checkpoints", "last.pt"}
    arm, *rest = [part for part in parts if part not in inside] or [""]
    seeds = {f"seed-{seed}": seed for seed in config.seeds}
    if arm not in config.arms or (rest and (len(rest) > 1 or rest[0] not in seeds)):
        raise UserError(
            f"{run} has no network {'/'.join([arm, *rest])!r}. Give {run}/ARM, or {run}/ARM/SEED. "
            f"Its arms: {', '.join(config.arms)}; seeds: {', '.join(seeds)}."
        )
    return ArmOfRun(run, config, arm, seeds[rest[0]] if rest else config.seeds[0])


def names_segmenter(source: Path) -> bool:
    """Whether what a user names is a segmentation network; of a file its content tells.

    Raises:
        UserError: as `arm_of_run`.
    """
    from pipeline.runtime.checkpoint import is_segmenter, read_tensors

    if (source / CONFIG_FILE).is_file():
        return False
    if arm_of_run(source):
        return True
    with suppress(Exception):  # what is wrong with it is said by whoever loads it
        return source.is_file() and is_segmenter(read_tensors(source))
    return False


def export_segmenter(source: Path, out: Path, size: tuple[int, int] | None) -> str:
    """Write a segmentation network as `out` says; what was written, for the user.

    Args:
        source: RUN/ARM, or a checkpoint.
        size: (width, height) of its input; None: that of a run's test frames as the network is
            shown them, else of the training crops.

    Raises:
        UserError: as `segmentation.export.export`.
    """
    from segmentation.export import export

    if not (arm := arm_of_run(source)):
        return export(source, out, size)
    arm.check()
    frame, test = arm.test_frame(), arm.config.test
    if frame is not None and size is None:
        size = working_size(test, (frame.shape[1], frame.shape[0]))
    return export(
        arm.checkpoint,
        out,
        size,
        frame=frame,
        width=test.width,
        space=arm.space,
        title=f"{arm.arm} (seed {arm.seed}) of {arm.config.name}",
        evaluation=arm.evaluation,
    )
