"""Optuna's part of a search: the next values (TPE, Bergstra et al., NeurIPS 2011), and whether a trial is pruned.

The trials' records are the only state. Optuna's study is made from them anew for each trial, and its random generator
is seeded by the search's seed and the trial's number. So a search that was killed goes on as if nothing had happened.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from uda.core.errors import UserError
from uda.searches.space import Space
from uda.searches.trials import Trial

#: Trials with random values, before TPE proposes any. Trial 0 counts.
RANDOM_TRIALS = 6
#: Finished trials before any is pruned, and the first report at which one may be. Report 0 is the source model.
BEFORE_PRUNING, FIRST_PRUNED_REPORT = 5, 1


def check_installed() -> None:
    """Raise UserError if Optuna is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError(
            'uda search needs the package optuna: pip install "uda-toolkit[search]", or pip install -e ".[search]" in '
            "a checkout"
        ) from None


def propose(space: Space, trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    """Values for the next trial, whose number is that of trials so far."""
    import optuna

    generator = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=generator, n_startup_trials=RANDOM_TRIALS)
    distributions = {setting.key: setting.distribution() for setting in space.settings}
    with _quiet():
        # A trial whose values the space lacks, as those of 0 may be, teaches TPE nothing.
        study = _study(space, [trial for trial in trials if _drawn(space, trial)], sampler)
        drawn = study.ask(distributions).params
    return {setting.key: setting.value(drawn[setting.key]) for setting in space.settings}


def is_hopeless(space: Space, trials: Sequence[Trial], trial: Trial) -> bool:
    """Whether to prune a running trial: its best score so far is below the median of others at the same report."""
    import optuna

    pruner = optuna.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING, n_warmup_steps=FIRST_PRUNED_REPORT)
    if not trial.scores or trial.score is None:
        return False
    with _quiet():
        study = _study(space, [other for other in trials if other.number != trial.number], None)
        running = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, intermediate_values=_steps(trial), params={}, distributions={}
        )
        return pruner.prune(study, running)


def _study(space: Space, trials: Sequence[Trial], sampler: Any) -> Any:
    """Optuna's study of the trials that have ended."""
    import optuna

    states = {"finished": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
    study = optuna.create_study(direction="maximize", sampler=sampler or optuna.samplers.RandomSampler(seed=0))
    for trial in trials:
        if trial.state not in states or trial.score is None:
            continue
        drawn = _drawn(space, trial)
        study.add_trial(
            optuna.trial.create_trial(
                state=states[trial.state],
                value=trial.score if trial.state == "finished" else None,
                params=drawn,
                distributions={setting.key: setting.distribution() for setting in space.settings if drawn},
                intermediate_values=_steps(trial),
            )
        )
    return study


def _drawn(space: Space, trial: Trial) -> dict[str, Any]:
    """What Optuna must draw for a trial's values; empty if the space lacks one of them."""
    drawn = {setting.key: setting.drawn(trial.values[setting.key]) for setting in space.settings}
    return {} if None in drawn.values() else drawn


def _steps(trial: Trial) -> dict[int, float]:
    return {step: score for step, score in enumerate(trial.scores) if score is not None}


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without Optuna's own lines. The caller's setting is restored."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
