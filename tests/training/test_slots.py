"""The table of what differs between slots: rates known ahead are those of each step."""

import torch

from wesar_sweep.training.slots import SlotTable


def test_rates_known_ahead_are_those_of_each_step(study_of, runs_of):
    study = study_of(space={"lr": {"choices": [1e-2, 3e-1]}, "schedule": ["cosine", "wsd"]})
    runs = runs_of(
        study,
        {"lr": 1e-2, "schedule": "cosine"},
        {"lr": 3e-1, "schedule": "wsd"},
        {"lr": 3e-1, "schedule": "cosine"},
    )
    table = SlotTable(3, width=12, device=torch.device("cpu"))
    table.load([0, 1, 2], runs)
    table.advance()
    ahead_SK = table.lr_SK(12)
    for rates_K in ahead_SK:
        now = table.adamw()
        assert torch.equal(now.lr_K, rates_K)
        given = table.adamw(rates_K)
        assert torch.equal(given.step_K, now.step_K) and given.lr_K is rates_K
        table.advance()
    # The control: rates change from step to step, and from run to run.
    assert len(ahead_SK.unique()) > 12
