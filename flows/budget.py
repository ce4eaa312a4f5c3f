"""`run --budget`: a configuration whose arms show what synthetic frames are worth in labels."""

from collections.abc import Sequence

from pipeline.config.settings import Config
from pipeline.errors import UserError
from pipeline.schema import parse
from reports.sentences import main_of, ours
from reports.settings import recipes


def with_budget(config: Config, numbers: Sequence[int]) -> Config:
    """A configuration with arms that train on so many labelled frames of the target.

    For each number, `target_N` trains on these frames alone, and `ARM_target_N` is the arm that
    stands for the adaptation (`adapted`, or else the first that reads no label of the target) with
    half of its draws from these frames. All arms of the configuration stay beside them.

    Raises:
        UserError: no arm adapts, or one has such a name.
    """
    main = main_of(ours(recipes(config)))
    if main is None:
        raise UserError(
            "--budget compares labelled frames with an arm that adapts without them, and there is "
            "none. Add one to `arms`, e.g. `adapted: translated`."
        )
    fields = config.model_dump(mode="json")
    arms, own = fields["arms"], fields["arms"][main]
    half = sum(config.arms[main].weights.values())
    for frames in numbers:
        mixture = {**own["train"], "target": {"frames": frames, "weight": half}}
        for name, arm in (
            (f"target_{frames}", {"train": {"target": {"frames": frames}}}),
            (f"{main}_target_{frames}", own | {"train": mixture, "title": None, "base": None}),
        ):
            if name in arms:
                raise UserError(f"--budget makes an arm {name}, and `arms` has one. Rename yours.")
            arms[name] = arm
    fields["name"] = f"{config.name}-budget"
    return parse(Config, fields, "the configuration of --budget")
