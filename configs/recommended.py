"""What forgets least with no earlier data kept, as found on real patients: docs/strategies.md."""

from configs import paper

# Of each field that takes coordinates: Muon's rate; what both rates are multiplied by from the
# second frame on; the weight of distillation while the mask is learned.
RECIPES = {"pe_relu": (2e-2, 0.1, 200), "siren": (3e-3, 0.18, 2000), "finer": (5e-3, 0.15, 2000)}


def get_config():
    config = paper.get_config()
    config.strategies = ",".join(paper.METHOD)
    words = ["*:schedule=cosine", "*:warmup_steps=50", "diner:keep_optimiser=True"]
    for field, (muon_rate, later_factor, _) in RECIPES.items():
        words += [
            f"{field}:muon_rate={muon_rate}",
            f"{field}:learning_rate=2e-3",
            f"{field}:batch_size=3456",  # fewer, to pay for what Muon costs
            f"domain*-{field}-*:later_factor={later_factor}",
        ]
    for strategy in ("distillation", "joint"):  # joint training is then its mark
        words.append(f"domain*-{strategy}-*:{strategy}.weight=4")
        words += [
            f"signal*-{field}-{strategy}-*:{strategy}.weight={weight}"
            for field, (*_, weight) in RECIPES.items()
        ]
    config.overrides = ",".join(words)
    return config
