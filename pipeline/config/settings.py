"""The settings of a run, as one frozen value."""

from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.fields import FILES, FilePath, Name, NameOrFile, overlay
from pipeline.config.segmentation import (
    ArmConfig,
    EvaluationConfig,
    SegmentationConfig,
    SelectionConfig,
)
from pipeline.config.translation import (
    TRANSLATED,
    CycleGANConfig,
    SemanticsConfig,
    TranslationConfig,
    place,
)
from pipeline.data.spec import DatasetSpec, limited
from pipeline.errors import UserError
from pipeline.schema import Schema, near, parse


class ComputeConfig(Schema):
    """Where and how precisely to compute; no part of a stage's identity."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU when there is one."""
    devices: int = Field(1, ge=1, le=1024)
    """GPUs of this machine (on a CPU: processes) that train one network together, each on an equal
    part of every batch: each `batch_size` is that of all together and a multiple of this. No effect
    on results but for rounding and what is drawn in a step: dropout, and self-training's mixtures.
    Translation and evaluation use one. Under torchrun its processes are the
    devices, and this number is not read."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """`auto`: bf16-mixed on a GPU, 32-true on a CPU. Losses are always fp32."""
    compile: bool = False
    """Let torch.compile fuse networks for training and translation: a minute or more before the
    first step, then faster ones that round differently. Needs a C++ compiler."""
    strips: Literal["auto", "always", "never"] = "auto"
    """Translate large frames in strips of rows, with norms over the whole frame: slower, with a
    small part of the memory, and the same pictures within one grey level. `auto`: where the memory
    does not hold a frame whole."""
    workers: int = Field(0, ge=0, le=1024)
    """Processes that read frames ahead, for each data set that is read; 0 reads in the training
    process. No effect on results. With several `devices`, for each of them."""
    cache: FilePath | None = None
    """Folder in which frames and labels are kept decoded at their working size, so that training
    does not wait for large PNGs; 3 bytes a pixel and 1 for its label. No effect on results."""


BEFORE, AFTER, IDEAL = "source_only", "adapted", "oracle"
"""The usual arms; the gap is that between the first and the last."""

WITHOUT_TARGET_LABELS = {BEFORE: "source", AFTER: TRANSLATED}
"""What the usual arms learn from, but for the oracle."""


class Config(Schema):
    """A whole run: three data sets, a label space, and how each stage works."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is `runs/NAME`."""
    label_space: NameOrFile = "cityscapes19"
    """A built-in label space, or the path of a YAML file."""
    source: DatasetSpec
    """Labelled synthetic frames."""
    target: DatasetSpec
    """Real frames to adapt to. Their labels are read for arms that train on `target`, and
    for nothing else, unless `validation` names them."""
    test: DatasetSpec
    """Labelled real frames that every arm is scored on; no stage trains on them."""
    validation: DatasetSpec | None = None
    """Labelled frames, none of the test set's, on which each network in training is scored at its
    checkpoints, to draw a curve: 32 of them, evenly spaced, or as many as its `limit`. No effect
    on results, nor on what is chosen."""
    cyclegan: CycleGANConfig = CycleGANConfig()
    translation: TranslationConfig = TranslationConfig()
    """The translation that arms know as `translated`."""
    translations: dict[Name, TranslationConfig] = Field(default_factory=dict)
    """Further translations by name: of the source, or of one another. Those are made that an arm
    trains on, and those that they start or learn from."""
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    selection: SelectionConfig | None = None
    """Criteria that read no label of the target, beside the scores of the arms that learn from
    none: which arm or seed each would choose. None: they are not computed."""
    arms: dict[Name, ArmConfig] = Field(
        default_factory=lambda: {
            arm: ArmConfig(train={frames: 1})
            for arm, frames in (*WITHOUT_TARGET_LABELS.items(), (IDEAL, "target"))
        },
        min_length=1,
    )
    """Arm -> what its network is trained on. `oracle` learns from the target's labels: where there
    are none, write `arms: {source_only: source, adapted: translated}`."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    """Seeds of the segmentation training; each arm is trained once with each."""
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} hold one twice")
        return self

    @model_validator(mode="after")
    def _arms_work(self) -> Self:
        before: list[str] = []
        for name, arm in self.arms.items():
            if arm.start and not arm.start.endswith(FILES) and arm.start not in before:
                raise ValueError(
                    f"arms.{name}.start is {arm.start!r}; it must be an arm that is listed before "
                    f"it ({', '.join(before) or 'there is none'}) or the path of a .pt file"
                )
            teacher = arm.self_training and arm.self_training.teacher
            if teacher and teacher not in before:
                raise ValueError(
                    f"arms.{name}.self_training.teacher is {teacher!r}; it must be an arm that is "
                    f"listed before it ({', '.join(before) or 'there is none'})"
                )
            try:
                recipe = self.recipe(name)
            except UserError as error:
                raise ValueError(f"arms.{name}.segmentation: {error}") from error
            start = self.arms.get(arm.start or "")
            if start and recipe.network != self.recipe(str(arm.start)).network:
                raise ValueError(
                    f"arms.{name} starts from {arm.start}, whose network is another one; give both "
                    "the same architecture, encoder, options and, if one is lora, encoder_tuning "
                    "and lora_rank"
                )
            others = [other for other in self.arms if other != name]
            if arm.base is not None and arm.base not in others:
                raise ValueError(
                    f"arms.{name}.base is {arm.base!r}; it must be one of {', '.join(others)}"
                )
            before.append(name)
        return self

    @model_validator(mode="after")
    def _translations_work(self) -> Self:
        names = ["source", *self.all_translations]
        for taken in ("source", "target", TRANSLATED):
            if taken in self.translations:
                raise ValueError(f"translations.{taken}: this name has a meaning; take another one")
        for name, arm in self.arms.items():
            for frames in arm.train:
                if frames not in (*names, "target"):
                    raise ValueError(
                        f"arms.{name}.train: no frames {frames!r}.{near(frames, names)} Known: "
                        f"target, {', '.join(names)}"
                    )
        for name, translation in self.all_translations.items():
            if translation.source not in names:
                raise ValueError(
                    f"{place(name)}.source: no frames {translation.source!r}. Known: "
                    f"{', '.join(names)}. {self._graph}"
                )
            if translation.teacher not in (None, *self.all_translations):
                raise ValueError(
                    f"{place(name)}.teacher: no translation {translation.teacher!r}."
                    f"{near(str(translation.teacher), names)} Known: "
                    f"{', '.join(self.all_translations)}. {self._graph}"
                )
        try:
            list(self.used_translations)
        except CycleError as error:
            raise ValueError(
                f"translations start from one another in a circle: {' <- '.join(error.args[1])}. "
                f"{self._graph}"
            ) from error
        for name, translation in self.used_translations.items():
            try:
                recipe = self.cyclegan_recipe(name)
            except UserError as error:
                raise ValueError(f"{place(name)}.cyclegan: {error}") from error
            contrasts = "contrastive" in translation.translator.recipe
            if self.cyclegan.contrastive or (recipe.contrastive and not contrasts):
                raise ValueError(
                    f"{place(name)}: contrastive is what the methods cut and fastcut set. Take one "
                    "of them; what it sets is changed in `cyclegan` of the translation itself"
                )
            if translation.checkpoint == "best" and not recipe.semantics:
                raise ValueError(
                    f"{place(name)}.checkpoint is 'best', and no segmentation network scores the "
                    "checkpoints; set cyclegan.semantics, or take 'last'"
                )
            if translation.trains and recipe.semantics:
                self.semantics_arm(recipe.semantics)
            self._check_network("pseudo_labels", name, translation.pseudo_labels)
            if translation.gate:
                self._check_network("gate.arm", name, self.gate_arm(name))
            reads = translation.trains and recipe.reads_labels
            labeller = translation.pseudo_labels
            if translation.translator.trains and reads != (labeller is not None):
                raise ValueError(
                    f"{place(name)}.pseudo_labels is {labeller!r}, and its cyclegan has "
                    f"label_discriminators {recipe.label_discriminators} and matched_crops "
                    f"{recipe.matched_crops}; name the arm whose network labels the target for "
                    "these, e.g. source_only, or leave all of them out"
                )
            if translation.teacher:
                if not recipe.paired:
                    raise ValueError(
                        f"{place(name)}.cyclegan.paired is false, and a student learns from pairs; "
                        "leave it out"
                    )
            elif translation.trains and recipe.paired and translation.source != "source":
                raise ValueError(
                    f"{place(name)}: cyclegan.paired takes frames of equal name of `source` and "
                    f"`target`, and its source is {translation.source!r}; take source"
                )
        return self

    def _check_network(self, setting: str, translation: str, arm: str | None) -> None:
        if arm is None:
            return
        able = [name for name in self.arms if not self.sees_target_labels(name)]
        if arm not in able:
            raise ValueError(
                f"{place(translation)}.{setting} is {arm!r}; it must be an arm that learns "
                f"from no label of the target ({', '.join(able) or 'there is none'})"
            )

    def sees_target_labels(self, arm: str) -> bool:
        """Whether the network of an arm learns from labels of the target, or from a network that
        did."""
        own = self.arms[arm]
        return "target" in own.train or any(
            self.sees_target_labels(name) for name in own.networks if name in self.arms
        )

    @property
    def _graph(self) -> str:
        """The translations as a text."""
        return "Translations: " + "; ".join(
            f"{name} from {translation.source}"
            + (f" by pseudo-labels of {arm}" if (arm := translation.pseudo_labels) else "")
            + (f" as {teacher} makes it" if (teacher := translation.teacher) else "")
            + (f" gated by {gate.arm}" if (gate := translation.gate) and gate.arm else "")
            for name, translation in self.all_translations.items()
        )

    @model_validator(mode="after")
    def _shards_are_equal(self) -> Self:
        self.check_batches(self.compute.devices, "compute.devices")
        return self

    def check_batches(self, ranks: int, number: str) -> None:
        """Raise `ValueError` unless `ranks` processes can share every training batch equally.

        Args:
            number: what the user set to get so many.
        """
        batches = {
            f"{place(name)}.cyclegan" if own.cyclegan else "cyclegan": self.cyclegan_recipe(
                name
            ).batch_size
            for name, own in self.used_translations.items()
            if own.trains
        }
        for name, arm in self.arms.items():
            own_batch = "batch_size" in arm.segmentation
            where = f"arms.{name}.segmentation" if own_batch else "segmentation"
            batches[where] = self.recipe(name).batch_size
        for where, batch in batches.items():
            if batch % ranks:
                fitting = [n for n in range(1, batch + 1) if batch % n == 0]
                raise ValueError(
                    f"{where}.batch_size {batch} is that of all devices together and must be a "
                    f"multiple of {number}, {ranks}; make that one of {fitting}, or, in a new "
                    f"run, {where}.batch_size {batch + -batch % ranks}"
                )

    def recipe(self, arm: str) -> SegmentationConfig:
        """How the network of an arm is trained: `segmentation` with the arm's own settings."""
        own = self.arms[arm].segmentation
        if not own:
            return self.segmentation
        fields = overlay(self.segmentation.model_dump(), own)
        return parse(SegmentationConfig, fields, "settings")

    def cyclegan_recipe(self, translation: str) -> CycleGANConfig:
        """How networks are trained for a translation: `cyclegan` with the translation's own."""
        settings = self.all_translations[translation]
        own = overlay(settings.translator.recipe, settings.cyclegan)
        if not own:
            return self.cyclegan
        return parse(CycleGANConfig, overlay(self.cyclegan.model_dump(), own), "settings")

    @property
    def all_translations(self) -> dict[str, TranslationConfig]:
        """Name -> every translation that is written down."""
        return {TRANSLATED: self.translation, **self.translations}

    @property
    def used_translations(self) -> dict[str, TranslationConfig]:
        """Name -> the translations that arms need, each after those that it is made from.

        Raises:
            graphlib.CycleError: they start from one another in a circle.
        """
        known = self.all_translations
        gates = {name: own.gate.arm for name, own in known.items() if own.gate and own.gate.arm}
        graph: dict[str, list[str]] = {}
        todo = [frames for arm in self.arms.values() for frames in arm.train]
        todo += [f"arms.{name}" for name, arm in self.arms.items() if arm.train.keys() & gates]
        while todo:
            name = todo.pop(0)
            if name in graph:
                continue
            if name in known:
                arm, teacher = known[name].pseudo_labels, known[name].teacher
                taught = [teacher] if teacher else []
                graph[name] = [known[name].source, *taught, *([f"arms.{arm}"] if arm else [])]
            elif name.startswith("arms.") and (own := self.arms.get(name[5:])):
                graph[name] = [*own.train, *(f"arms.{n}" for n in own.networks if n in self.arms)]
                graph[name] += [f"gates.{frames}" for frames in own.train if frames in gates]
            elif name.startswith("gates."):
                graph[name] = [name[6:], f"arms.{gates[name[6:]]}"]
            todo.extend(graph.get(name, []))
        order = TopologicalSorter(graph).static_order()
        return {name: known[name] for name in order if name in known}

    def builds_on(self, arm: str) -> str | None:
        """The arm whose network labels the target for a translation that `arm` trains on, or that
        it starts or learns from, or that it adds a step to; None where there is none of these."""
        own, known = self.arms[arm], self.all_translations
        labellers = [known[frames].pseudo_labels for frames in own.train if frames in known]
        return next(
            (name for name in (*labellers, *own.networks, own.base) if name in self.arms), None
        )

    def labelled(self, frames: str, number: int | None = None) -> DatasetSpec:
        """The data set that training frames of a name take their labels from.

        Args:
            number: so many of its frames, evenly spaced; None: all.
        """
        return limited(self.target if frames == "target" else self.source, number)

    @property
    def datasets(self) -> dict[str, DatasetSpec]:
        """Part -> its data set; `validation` where it is given."""
        validation = {"validation": self.validation} if self.validation else {}
        return {"source": self.source, "target": self.target, **validation, "test": self.test}

    @property
    def labels_read(self) -> frozenset[str]:
        """The frames that some arm is trained on with their labels."""
        return frozenset(frames for arm in self.arms.values() for frames in arm.train)

    @property
    def without_target_labels(self) -> str:
        """Which arms read the target's labels, and how to go on without."""
        reading = ", ".join(name for name, arm in self.arms.items() if "target" in arm.train)
        arms = ", ".join(f"{name}: {frames}" for name, frames in WITHOUT_TARGET_LABELS.items())
        given = "arms" in self.model_fields_set
        without = f"remove {reading} from `arms`" if given else f"write `arms: {{{arms}}}`"
        return f"Of the target's labels learn: {reading}. If the target has none, {without}."

    def semantics_arm(self, semantics: SemanticsConfig) -> str:
        """The arm whose network, of the first seed, tells what translations show.

        Raises:
            ValueError: there is none.
        """
        able = self._source_arms
        if semantics.arm is not None and semantics.arm not in able:
            raise ValueError(
                f"cyclegan.semantics.arm is {semantics.arm!r}; it must be an arm that trains on "
                f"`source` alone ({', '.join(able) or 'there is none'})"
            )
        if not able:
            raise ValueError(
                "cyclegan.semantics needs a network that was trained on the source; give `arms` "
                "one, e.g. source_only: source"
            )
        return semantics.arm or able[0]

    def gate_arm(self, frames: str) -> str | None:
        """The arm whose network, of the first seed, looks at frames before arms train on them; None
        where none does.

        Raises:
            ValueError: there is none.
        """
        made = self.all_translations.get(frames)
        if made is None or made.gate is None:
            return None
        if not made.gate.arm and not self._source_arms:
            raise ValueError(
                f"{place(frames)}.gate needs a network that was trained on the source; give "
                "`arms` one, e.g. source_only: source"
            )
        return made.gate.arm or self._source_arms[0]

    @property
    def _source_arms(self) -> list[str]:
        """The arms that train on `source` alone."""
        return [name for name, arm in self.arms.items() if arm.only == "source"]
