"""What a checkpoint's ``model_index.json`` may say: the rules of the manifest that the export makes of it."""

import difflib
from collections.abc import Mapping
from typing import Any

from uid.bundles.declarations import LARGEST_GUIDANCE, LARGEST_SIDE, smallest_tile
from uid.bundles.names import name_rule
from uid.bundles.schedules import LONGEST_SCHEDULE
from uid.bundles.schema import presets_from
from uid.bundles.values import TEXT, TRUTH, Rule, one_of, real_rule, shown, whole_rule
from uid.errors import BundleError, CheckpointError, InputError
from uid.runtime.schedule import timesteps

Rules = Mapping[str, Rule]
REQUIRED = ("name", "trained", "tile")


def common_rules(index: Mapping[str, Any]) -> dict[str, Rule]:
    """The rules of every family's index: of keys that the export itself reads."""
    presets = index.get("qualities")
    known = one_of(list(presets) if isinstance(presets, dict) else [])
    return {
        "family": TEXT,
        "name": name_rule(),
        "trained": TRUTH,
        "tile": whole_rule(1, LARGEST_SIDE),
        "steps": whole_rule(1, LONGEST_SCHEDULE),
        "guidance": real_rule(LARGEST_GUIDANCE),
        "qualities": presets_rule(LONGEST_SCHEDULE if "steps" in index else None),
        "quality": Rule(f"null, or {known.expected}", lambda value: value is None or known.fits(value)),
    }


def presets_rule(most_steps: int | None) -> Rule:
    """Presets that a manifest may have; ``most_steps``: None without a denoising loop."""

    def fits(value: Any) -> bool:
        try:
            presets_from(value, most_steps)
        except BundleError:
            return False
        return True

    limits = f"steps (1 to {most_steps})" if most_steps else "steps (0)"
    return Rule(f"presets by name, each with {limits} and views (1 to 8)", fits)


def steps_rule(schedule: Mapping[str, Any]) -> Rule:
    """A number of steps that a schedule's sampler takes."""

    def fits(value: Any) -> bool:
        try:
            return type(value) is int and len(timesteps(schedule, value)) > 0
        except InputError:
            return False

    least = 1 if fits(1) else 2  # from the first timestep to the last it takes two
    return Rule(f"a whole number, {least} to {schedule['num_train_timesteps']}", fits)


def run_rules(schedule: Mapping[str, Any], size_multiple: int, min_side: int) -> dict[str, Rule]:
    """The narrower rules that follow from a model: from its schedule, and from the sizes that it takes."""
    rules = {"tile": whole_rule(smallest_tile(size_multiple, min_side), LARGEST_SIDE)}
    if schedule:
        rules |= {"steps": steps_rule(schedule), "qualities": presets_rule(schedule["num_train_timesteps"])}
    return rules


def check_values(index: Mapping[str, Any], rules: Rules, where: object) -> None:
    """Raise ``CheckpointError`` for the first value that breaks its rule; keys without a rule are passed over."""
    for key, rule in rules.items():
        if key in index and not rule.fits(index[key]):
            raise CheckpointError(f"{where} has {shown(index[key])} for {key!r}; expected {rule.expected}")


def check_index(index: Mapping[str, Any], rules: Rules, required: tuple[str, ...], where: object) -> None:
    """Raise ``CheckpointError`` for keys that are missing or unknown, and for values that break their rules."""
    for key in required:
        if key not in index:
            raise CheckpointError(f"{where} has nothing for {key!r}; expected {rules[key].expected}")
    for key in index:
        if key not in rules:
            (nearest,) = difflib.get_close_matches(key, rules, n=1, cutoff=0.0)
            raise CheckpointError(
                f"{where} has the unknown key {shown(key)}; expected one of {', '.join(rules)}: did you mean "
                f"{nearest!r}? Rename it, or leave it out"
            )
    check_values(index, rules, where)
