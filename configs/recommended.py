"""What forgets least with no earlier data kept, as found on real patients: docs/strategies.md."""

from configs import paper

# Of Muon; and what both rates are multiplied by from the second frame on.
RATES = {"pe_relu": (2e-2, 0.1), "siren": (3e-3, 0.18), "finer": (5e-3, 0.15)}


def get_config():
    config = paper.get_config()
    words = ["*:schedule=cosine", "*:warmup_steps=50", "diner:keep_optimiser=True"]
    for field, (muon_rate, later_factor) in RATES.items():
        words += [
            f"{field}:muon_rate={muon_rate}",
            f"{field}:learning_rate=2e-3",
            f"{field}:batch_size=3456",  # fewer, to pay for what Muon costs
            f"domain*-{field}-*:later_factor={later_factor}",
        ]
    for strategy in ("distillation", "joint"):
        words.append(f"domain*-{strategy}-*:{strategy}.weight=4")
        words += [f"signal*-{field}-{strategy}-*:{strategy}.weight=2000" for field in RATES]
    config.overrides = ",".join(words)
    return config
