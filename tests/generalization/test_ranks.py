"""Domain generalisation in a job of two processes."""

import json

from tests.forked import forked_job

SCRIPT = """\
import json, sys
import torch
from uda.core.distributed import start
from uda.generalization.config import GeneralizationConfig
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.generalization.run import GeneralizationRun

config, folder = sys.argv[1:]
with start() as ranks:
    found = {}
    for name in GENERALIZATION_METHODS:
        words = [f"method={name}", f"output={folder}/{name}"]
        run = GeneralizationRun(GeneralizationConfig.load(config, words), ranks=ranks)
        run.execute()
        tensors = [*run.engine.network.state_dict().values(), *run.method.modules.state_dict().values()]
        found[name] = torch.cat([tensor.double().flatten() for tensor in tensors]).tolist()
    with open(f"{folder}/{ranks.rank}.json", "w") as file:
        json.dump(found, file)
"""


def test_every_method_has_the_same_networks_on_both_processes_in_the_end(tiny, tmp_path):
    """Meta-test domains and inner steps are each process's own; what is learnt of them is everyone's."""
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    codes, output = forked_job(2, script, tiny, tmp_path)
    assert codes == [0, 0], output
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first.keys() >= {"erm", "mldg", "metareg", "feature_critic"}
    for name, weights in first.items():
        assert weights == second[name], name
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert results["final"]["overall"] is not None
