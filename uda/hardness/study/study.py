"""The whole study from one config: trainings, correlations, degradation, trajectories, toy and the paper's claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from uda.core.errors import UserError, naming
from uda.core.typed_yaml import typed
from uda.core.yaml_files import ConfigError, dotted, find_config, merge, mistakes, parse_overrides, read_config
from uda.hardness.dynamics.config import SupervisedConfig
from uda.hardness.dynamics.dynamics import (
    HUMAN_SETTINGS,
    Groups,
    add_dynamics,
    human_of,
    load_history,
    require_comparable,
    run_name,
)
from uda.hardness.people.correlate import correlate
from uda.hardness.probes.degradations import DEGRADATIONS
from uda.hardness.probes.degrade import degrade
from uda.hardness.probes.image_paths import find_class
from uda.hardness.probes.pgd import Attack
from uda.hardness.probes.toy import load_digits, toy
from uda.hardness.probes.trajectory import trajectory
from uda.hardness.scoring.classifier import load_classifier
from uda.hardness.scoring.images import LabelledImages, load_images
from uda.hardness.scoring.score_table import read_scores
from uda.hardness.scoring.scores import SCORES
from uda.hardness.study import claims
from uda.hardness.study.config import StudyConfig, ToySettings
from uda.report.findings import Findings, Row
from uda.training.config import refuse_another_kind

#: The settings, in a study's config and in its runs' configs, for the options of the other commands.
STUDY_SETTINGS = HUMAN_SETTINGS | {
    "scores": "scores=[...]",
    "reference": "reference",
    "source": "trajectory.source",
    "target": "trajectory.target",
    "count": "trajectory.count",
    "steps": "trajectory.steps",
    "eps": "trajectory.eps",
    "norm": "trajectory.norm",
    "data": "data.test",
    "images": "degrade.images",
    "levels": "degrade.levels",
    "epochs": "toy.epochs",
}


def load_study(name: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read and validate a study's config. Raises ConfigError with every mistake, one per line."""
    path = find_config(name)
    content, origins = read_config(path)
    changes, problems = parse_overrides(overrides, StudyConfig)
    origins |= dict.fromkeys(dotted(changes), "command line")
    content.setdefault("name", path.stem)
    refuse_another_kind(StudyConfig, content, path)
    if isinstance(content.get("set"), list) and isinstance(changes.get("set"), list):
        changes["set"] = [*content["set"], *changes["set"]]
    config = None
    try:
        config = StudyConfig.model_validate(typed(merge(content, changes), StudyConfig))
    except ValidationError as error:
        told = mistakes(error, StudyConfig, origins, path.name)
        problems += [
            _of_the_runs(entry, origins, path.name) or line for entry, line in zip(error.errors(), told, strict=True)
        ]
    if config is not None:
        problems += _unfit_scores(config, path.name)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _of_the_runs(error: Mapping[str, Any], origins: Mapping[str, str], file: str) -> str | None:
    """The message for a setting of the runs that is among the settings of the study; None for other mistakes."""
    key = str(error["loc"][0])
    if len(error["loc"]) > 1 or key in StudyConfig.model_fields or key not in SupervisedConfig.model_fields:
        return None
    names = list(dotted({key: error["input"]}))
    words = ", ".join(f"{name}=..." for name in names if not any(other.startswith(f"{name}.") for other in names))
    return f"{origins.get(key, file)}: {key}: is a setting of the runs, not of the study; for all runs: set=[{words}]"


def _unfit_scores(config: StudyConfig, file: str) -> list[str]:
    problems = []
    for key, names in (("reference", [config.reference]), ("scores", config.scores or [])):
        for name in names:
            try:
                SCORES[name]
            except UserError as error:
                problems.append(f"{file}: {key}: {error}")
    if config.reference == "avh":
        problems.append(f"{file}: reference: 'avh' is compared with the reference; name another score")
    if config.scores is not None and "avh" not in config.scores:
        problems.append(f"{file}: scores: must include 'avh', because the claims are about AVH")
    return problems


def trainings(study: StudyConfig) -> list[SupervisedConfig]:
    """The configs of all runs of a study.

    Raises ConfigError. Raises UserError for mistakes that would stop the study after the trainings: runs with the same
    name or different test images, no human file, a model that is not a run, an unknown degradation, or no digits.
    """
    configs = [
        SupervisedConfig.load(runs.cfg, [*study.set, *runs.set, f"seed={seed}"])
        for runs in study.runs
        for seed in runs.seeds
    ]
    names = [run_name(config, configs) for config in configs]
    require_comparable(configs)
    first = configs[0]
    if first.human.file is None:
        raise UserError(
            f"{study.name}: {first.name} has no human.file; the study needs human labels of the test images: "
            "set=[human.file=...]"
        )
    for kind in (study.degrade.kinds or ()) if study.degrade else ():
        try:
            DEGRADATIONS[kind]
        except UserError as error:
            raise UserError(f"{study.name}: degrade.kinds: {error}") from None
    if study.toy:
        with naming({"data": "toy.data"}):
            load_digits(_digits(study.toy))
    for key, part in (("degrade", study.degrade), ("trajectory", study.trajectory)):
        for name in part.models if part else ():
            if name not in names:
                known = ", ".join(f'"{one}"' for one in names)
                raise UserError(f"{study.name}: {key}.models: '{name}' is not a run of the study (known: {known})")
    return configs


def require_classes(study: StudyConfig, classes: Sequence[str]) -> None:
    """Raise UserError if the trajectory's classes are not classes of the runs."""
    if study.trajectory:
        for key in ("source", "target"):
            find_class(getattr(study.trajectory, key), classes, f"{study.name}: trajectory.{key}")


@dataclass(frozen=True)
class Outcome:
    """The results of a study, as rows."""

    claims: list[Row]
    correlations: list[Row]
    by_bin: list[Row]
    final: list[Row]
    plateaus: list[Row]
    degraded: list[Row]
    """How well scores keep the order of the levels of degradation; empty without `degrade`."""


@naming(STUDY_SETTINGS)
def add_study(
    study: StudyConfig,
    configs: Sequence[SupervisedConfig],
    findings: Findings,
    log: Callable[[str], None] = print,
) -> Outcome:
    """Put the results of a study with finished runs on a page.

    Raises:
        UserError: a run is not finished, the runs have different test images, there is no human file, or a part of the
            study cannot use the scores or the images.
    """
    names = [run_name(config, configs) for config in configs]
    first = configs[0]
    histories = [load_history(config.folder, name) for config, name in zip(configs, names, strict=True)]
    tables = {name: read_scores(config.folder / "scores.csv") for config, name in zip(configs, names, strict=True)}
    people = human_of(first, histories[0].ids, tables[names[0]].labels, log)
    if people is None:
        raise UserError(f"{first.name}: human.file: the study needs human labels of the test images")
    groups = Groups.by_frequency(people.frequency, first.human.bins)
    correlations = correlate(
        tables, people.human, first.human.bins, study.reference, findings,
        scores=study.scores, allow_missing=first.human.allow_missing, seed=study.seed,
    )  # fmt: skip
    findings.section("Scores during training", "Every run scored all test images before training and after each epoch.")
    moved = add_dynamics(histories, groups, findings)
    degraded = _add_degraded(study, configs, names, findings, log)
    _add_trajectories(study, configs, names, findings, log)
    if study.toy:
        with naming({"data": "toy.data"}):
            part = study.toy
            toy(findings, data=_digits(part), epochs=part.epochs, seed=study.seed, runtime=study.runtime, log=log)
    found = [
        claims.stronger_than(study.reference, correlations.overall),
        claims.plateaus_first(moved["plateaus"]),
        claims.better_models(moved["pairs"]),
        claims.norm_is_inconsistent(moved["norms"], moved["correlations"]),
        claims.holds_throughout(moved["correlations"]),
    ]
    findings.table(
        "claims",
        "The paper's claims",
        found,
        "A case is a run or a pair of runs. A claim holds if every case agrees with its rule. It holds partly if at "
        "least half agree and more agree than disagree. Tests are two-sided at 5 % over all cases of a claim "
        "(Bonferroni). If a rule says 95 %, the interval is that of each case. Tests resample images, not trainings.",
        first=True,
    )
    return Outcome(found, correlations.overall, correlations.by_bin, moved["final"], moved["plateaus"], degraded)


def _digits(part: ToySettings) -> Path | None:
    return None if part.data is None else Path(part.data)


def _classifiers(configs: Sequence[SupervisedConfig], names: Sequence[str], wanted: Sequence[str]):
    folders = dict(zip(names, (config.folder for config in configs), strict=True))
    return [replace(load_classifier(str(folders[name])), name=name) for name in wanted]


def _images(config: SupervisedConfig, log: Callable[[str], None]) -> LabelledImages:
    data = config.data
    place = f"{data.dataset}:{data.test}" if data.dataset else data.test
    return load_images(place, data, log, config.seed)


def _add_degraded(study, configs, names, findings: Findings, log) -> list[Row]:
    part = study.degrade
    if part is None:
        return []
    found = degrade(
        _classifiers(configs, names, part.models),
        _images(configs[0], log),
        findings,
        images=part.images,
        levels=part.levels,
        kinds=part.kinds,
        seed=study.seed,
        runtime=study.runtime,
        log=log,
    )
    return found["order"]


def _add_trajectories(study, configs, names, findings: Findings, log) -> None:
    part = study.trajectory
    if part is None:
        return
    attack = Attack(part.norm, part.steps, None, part.eps)
    for number, classifier in enumerate(_classifiers(configs, names, part.models)):
        trajectory(
            classifier,
            _images(configs[0], log),
            findings,
            source=part.source,
            target=part.target,
            attack=attack,
            count=part.count,
            seed=study.seed,
            runtime=study.runtime,
            log=log,
            name="trajectory" + f"_{number + 1}" * (len(part.models) > 1),
        )


def tables_of(study: StudyConfig) -> tuple[str, ...]:
    """The names of the tables that `results_of` will return for this study."""
    names = ("hardness", "hardness_bins", "hardness_claims", "hardness_training", "hardness_plateaus")
    return (*names, "hardness_degraded") if study.degrade else names


def results_of(outcome: Outcome) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The rows to keep in a repository, by the name of their CSV."""
    return {
        "hardness": outcome.correlations,
        "hardness_bins": outcome.by_bin,
        "hardness_claims": outcome.claims,
        "hardness_training": outcome.final,
        "hardness_plateaus": outcome.plateaus,
        **({"hardness_degraded": outcome.degraded} if outcome.degraded else {}),
    }
