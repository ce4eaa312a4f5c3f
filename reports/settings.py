"""In which settings arms, and runs, are not alike."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.config.segmentation import ArmConfig
from pipeline.config.settings import BEFORE, IDEAL, Config
from reports.summary import Recipe

_NONE = "–"


def ordered_arms(config: Config) -> list[str]:
    """The arms from the lower end of the gap to its upper end."""
    return sorted(config.arms, key=lambda arm: (arm != BEFORE, arm == IDEAL))


def recipes(config: Config) -> dict[str, Recipe]:
    """Arm -> how its network was trained."""
    settings = {arm: _flat(config.recipe(arm).model_dump(mode="json")) for arm in config.arms}
    self_training = {
        arm: _flat({"self_training": own.self_training.model_dump(mode="json")})
        for arm, own in config.arms.items()
        if own.self_training
    }
    differing = _differing(settings) | _differing(self_training)
    return {
        arm: Recipe(
            train={kind: part / sum(own.weights.values()) for kind, part in own.weights.items()},
            frames=own.frames,
            start=_file_name(own.start) if own.start else None,
            self_training=own.self_training is not None,
            settings={key: _file_name(values.get(arm, _NONE)) for key, values in differing.items()},
        )
        for arm, own in ((arm, config.arms[arm]) for arm in ordered_arms(config))
    }


def settings_that_differ(configs: Mapping[str, Config]) -> dict[str, dict[str, str]]:
    """Setting -> run -> value, for the settings in which the runs are not alike.

    An arm that some runs lack is one entry, the frames that it trains on; its settings follow where
    the runs that have it are not alike.
    """
    flat = {run: _flat(config.model_dump(mode="json")) for run, config in configs.items()}
    changed = {
        key: values
        for key, values in _differing(flat).items()
        if key != "name" and not key.startswith(("compute.", "arms."))
    }
    for arm in dict.fromkeys(arm for config in configs.values() for arm in config.arms):
        having = {run: config.arms[arm] for run, config in configs.items() if arm in config.arms}
        if len(having) < len(configs):
            changed[f"arms.{arm}"] = {
                run: _frames(having[run]) if run in having else _NONE for run in configs
            }
        settings = {
            run: _flat({"arms": {arm: own.model_dump(mode="json")}}) for run, own in having.items()
        }
        for key, values in _differing(settings).items():
            changed[key] = {run: values.get(run, _NONE) for run in configs}
    return changed


def _frames(arm: ArmConfig) -> str:
    return " + ".join(
        f"{number} of {kind}" if (number := arm.frames.get(kind)) else kind for kind in arm.train
    )


def _differing(flat: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Setting -> name -> value, for the settings that are not equal for all names."""
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    table = {key: {name: flat[name].get(key, _NONE) for name in flat} for key in keys}
    return {key: values for key, values in table.items() if len(set(values.values())) > 1}


def _file_name(value: str) -> str:
    """A path without the folders of this machine; other texts stay."""
    return Path(value).name if Path(value).is_absolute() else value


def _flat(value: object, place: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{place}.{key}").items()
        }
    return {place.removeprefix("."): str(value)}
