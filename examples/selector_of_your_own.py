"""Your own selector compared with AVC in a short run on digits. Needs the extra `demo` and writes to runs/."""

import uda
from uda.selection.selectors import SELECTORS


# A selector returns scores (N, K), one per image and class. A higher score means more confidence. The largest score of
# a row must be above 0.
# The first line of the docstring is its description.
@SELECTORS.register("mine")
def mine(features, logits, weight):
    """Softmax probability times angular visual confidence."""
    return logits.softmax(dim=1) * uda.avc(features, weight)


# Small settings, so that a run takes seconds. Without them, it is the run of the config digits_avh.
SMALL = {
    "data.rendered_per_class": 50,
    "source.epochs": 2,
    "source.batch_size": 32,
    "self_training.rounds": 2,
    "self_training.steps": 20,
    "report.loggers": [],
}


def main() -> None:
    for selector in ("avc", "mine"):
        overrides = {**SMALL, "self_training.selector": selector, "output": f"runs/selector_{selector}"}
        run = uda.adapt("digits_avh", overrides=overrides, log=None)
        before, after = (run.results[model]["class_mean"] for model in ("source_only", "final"))
        print(f"{selector}: class mean {before:.3f} before, {after:.3f} after; report: {run.folder}/report.html")


if __name__ == "__main__":
    main()
