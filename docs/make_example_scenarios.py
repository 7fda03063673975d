"""Write the bundled scenarios, examples/scenarios/*.toml: `python docs/make_example_scenarios.py`.

Every number that neither the paper nor a cited source gives is stated as an assumption in the file itself.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from multispin.control import Cell, Device, Mode, Scenario, Verification, dump_scenario
from multispin.radio import db_to_ratio, path_loss_gain

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "scenarios"
PAPER = "arXiv 2606.04581"
FOLLOW_UP = "arXiv 2608.29618"
TASKS = {
    "llama": {"MBPP+": 0.8582, "GSM8K": 0.7390, "MT-Bench": 0.7393, "SQuAD": 0.7126},
    "qwen": {"MBPP+": 0.8100, "GSM8K": 0.9340, "MT-Bench": 0.9318, "SQuAD": 0.9650},
    "qwen2.5": {"HumanEval": 0.945, "GSM8K": 0.858, "MT-Bench": 0.851, "IFEval": 0.882},
}


def paper(pair: str, index_bits: int, mean_s: float, verifier: Verification, seed: int) -> Scenario:
    """The paper's experiment: 20 devices, 10 MHz, Rayleigh fading, one task per device."""
    random = np.random.default_rng(seed)
    devices = []
    for k in range(20):
        task = str(random.choice(list(TASKS[pair])))
        gain = random.exponential(random.uniform(0.2, 0.5))
        devices.append(
            Device(
                name=f"phone-{k + 1:02d}-{task.lower().rstrip('+')}",
                seconds_per_token=round(mean_s * random.uniform(0.85, 1.15), 6),
                spectral_efficiency=round(float(np.log2(1 + 10**2.4 * gain)), 4),
                acceptance_rate=TASKS[pair][task],
            )
        )
    return Scenario(Cell(10e6, 1024 * (16 + index_bits)), verifier, tuple(devices))


def with_modes(scenario: Scenario, band_hz: float) -> Scenario:
    """The scenario with three acceptance rules for each device to choose from, on another band."""
    bits = int(scenario.cell.bits_per_token)
    devices = tuple(
        Device(
            name=device.name,
            seconds_per_token=device.seconds_per_token,
            spectral_efficiency=device.spectral_efficiency,
            modes=(
                Mode("rejection", device.acceptance_rate),
                Mode("rejection-up", device.acceptance_rate, bits_per_token=bits // 1024, bits_per_rejection=bits),
                Mode("coupled", coupled(device.acceptance_rate or 0.0), bits_per_token=bits // 1024 - 16),
            ),
        )
        for device in scenario.devices
    )
    return replace(scenario, cell=replace(scenario.cell, bandwidth_hz=band_hz), devices=devices)


def coupled(rejection_rate: float) -> float:
    """Acceptance that Gumbel coupling guarantees, (1 - TV) / (1 + TV), where rejection sampling has 1 - TV."""
    return round(rejection_rate / (2 - rejection_rate), 4)


def follow_up() -> Scenario:
    """The follow-up's cell: 20 devices around a server, with path loss, fading and a noise density."""
    random = np.random.default_rng(5)
    devices = []
    for k in range(20):
        task = str(random.choice(list(TASKS["qwen2.5"])))
        gain = path_loss_gain(random.uniform(100, 500), 3.5, db_to_ratio(-30)) * random.exponential()
        snr_hz = gain * db_to_ratio(random.uniform(10, 15) + 169)
        devices.append(
            Device(
                name=f"phone-{k + 1:02d}-{task.lower()}",
                seconds_per_token=round(0.0152 * random.uniform(1.0, 1.15), 6),
                snr_hz=round(float(snr_hz)),
                acceptance_rate=TASKS["qwen2.5"][task],
            )
        )
    return Scenario(Cell(10e6, 1024 * (16 + 18)), Verification(0.0428, 0.0076), tuple(devices))


def classroom() -> Scenario:
    """22 Raspberry Pis and 2 laptops without a drafter on a slow shared uplink."""
    random = np.random.default_rng(3)
    devices = []
    for k in range(24):
        kind, seconds = (("pi5", 0.055), ("pi4", 0.128))[k % 3 == 2]
        drafter = k < 22
        devices.append(
            Device(
                name=f"{kind}-{k + 1:02d}" if drafter else f"laptop-{k + 1:02d}",
                seconds_per_token=round(seconds * random.uniform(0.95, 1.1), 5),
                spectral_efficiency=round(float(random.uniform(1.5, 5.0)), 3),
                acceptance_rate=round(float(random.uniform(0.62, 0.76)), 3) if drafter else 0.0,
                max_draft_length=None if drafter else 0,
            )
        )
    verifier = Verification(0.07507, 0.01978, draft_seconds_per_token=0.01)
    return Scenario(Cell(1e6, 64 * (16 + 18), min_draft_length=0), verifier, tuple(devices))


def phones() -> Scenario:
    """1,000 phones, one large packed batch."""
    random = np.random.default_rng(4)
    kinds = (("pixel", 0.042), ("iphone", 0.020), ("tablet", 0.013))
    devices = []
    for k in range(1000):
        kind, seconds = kinds[int(random.choice(3, p=(0.5, 0.35, 0.15)))]
        devices.append(
            Device(
                name=f"{kind}-{k + 1:04d}",
                seconds_per_token=round(seconds * random.uniform(0.85, 1.3), 5),
                spectral_efficiency=round(float(np.log2(1 + 10**2.0 * random.exponential(0.35))), 3) + 0.01,
                acceptance_rate=round(float(random.uniform(0.65, 0.9)), 3),
            )
        )
    verifier = Verification(0.05, 3e-4, per_token_s=3e-5)
    return Scenario(Cell(40e6, 64 * (16 + 17), min_draft_length=0), verifier, tuple(devices))


HEADS = {
    "paper-llama": f"""# The paper's first pair ({PAPER}, section VI): TinyLlama-1.1B drafts, Llama-2-7B verifies.
# From the paper: K, band, payload 1024·(16 + 15) bit, acceptance rates (Table I), verification latency (Fig. 5),
# drafting speed spread of ±15 %, Rayleigh fading with mean gain U(0.2, 0.5).
# Assumed, because the paper does not print them: transmit power over noise 24 dB, mean drafting time 8 ms per token,
# 43 ms per token for drafting on the server (its verification latency times 1.1 / 7, the models' sizes; only the
# policy centralized uses it). One draw of the random numbers.
""",
    "paper-qwen": f"""# The paper's second pair ({PAPER}, section VI): Qwen3.5-0.8B drafts, Qwen3.5-27B verifies.
# From the paper: K, band, payload 1024·(16 + 18) bit, acceptance rates (Table I), verification latency (Fig. 5),
# drafting speed spread of ±15 %, Rayleigh fading with mean gain U(0.2, 0.5).
# Assumed, because the paper does not print them: transmit power over noise 24 dB, mean drafting time 13 ms per token,
# 14 ms per token for drafting on the server (its verification latency times 0.8 / 27, the models' sizes; only the
# policy centralized uses it). One draw of the random numbers.
""",
    "modes-llama": f"""# The devices of paper-llama.toml on 1 MHz, each free to choose its acceptance rule.
# rejection: whole distributions go up, 1024 (16 + 15) bit per drafted token ({PAPER}). rejection-up: token and
# probability, 31 bit, and a distribution for each refused draft ({FOLLOW_UP}). coupled: the token, 15 bit (arXiv 2408.07978).
# Assumed beside what paper-llama.toml assumes: rejection accepts 1 - TV at the paper's rates, and coupled no more than
# it guarantees, (1 - TV) / (1 + TV). What it reaches in practice is higher.
""",
    "followup-qwen": f"""# The follow-up's cell ({FOLLOW_UP}): Qwen2.5-0.5B drafts, Qwen2.5-14B verifies.
# Noise is a density.
# From the paper: K, band, drafting and verification times on an A100, acceptance rates, path loss (-30 dB at 1 m,
# exponent 3.5, 100 to 500 m), noise of -169 dBm/Hz at the server, 1024 retained probabilities of 16 + 18 bit.
# Assumed: transmit powers uniform in the printed 10 to 15 dBm, distances uniform, tasks drawn alike, one draw of the
# Rayleigh fading, longest draft 25. Whole distributions go up with every drafted token, as in arXiv 2606.04581 and unlike the
# follow-up itself, which sends one distribution per rejection.
""",
    "raspberry-classroom": f"""# A classroom: 22 Raspberry Pis draft with Qwen3-0.6B; 2 laptops have no drafter.
# From sources: Q4_K_M drafting time of Qwen3-0.6B, 55 ms per token on a Pi 5 and 128 ms on a Pi 4B, and an acceptance
# rate near 0.69 for Qwen3-0.6B with Qwen3-32B (both derived from arXiv 2604.09722); verification latency of
# Qwen3.5-27B on an A100, standing in for Qwen3-32B ({PAPER}, Fig. 5).
# Assumed: 1 MHz of shared uplink, 1.5 to 5 bit/s/Hz, the 64 likeliest tokens sent per position, 10 ms per token for
# drafting on the server (its verification latency times 0.6 / 32).
# min_draft_length = 0: whoever gains nothing by drafting decodes plainly in the batch.
""",
    "thousand-phones": """# A thousand phones in one packed batch, drafting with Llama-3.2-1B-Instruct.
# From sources: drafting time 42 ms per token on a Pixel 10 Pro and 13 ms on an Apple M3, acceptance rate near 0.81 with
# Llama-3.1-70B (both derived from arXiv 2604.09722).
# Assumed: the speeds between and their spread, 40 MHz of uplink, the 64 likeliest tokens sent per position, a server
# that takes 50 ms, 0.3 ms per device (long contexts to read) and 0.03 ms per verified token.
""",
}


def main() -> None:
    """Write all files."""
    llama = Verification(0.02268, 0.01272, draft_seconds_per_token=0.043)
    qwen = Verification(0.07507, 0.01978, draft_seconds_per_token=0.014)
    scenarios = {
        "paper-llama": paper("llama", 15, 0.008, llama, seed=1),
        "paper-qwen": paper("qwen", 18, 0.013, qwen, seed=2),
        "modes-llama": with_modes(paper("llama", 15, 0.008, replace(llama, draft_seconds_per_token=None), seed=1), 1e6),
        "followup-qwen": follow_up(),
        "raspberry-classroom": classroom(),
        "thousand-phones": phones(),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, scenario in scenarios.items():
        text = HEADS[name] + "# Written by docs/make_example_scenarios.py.\n\n" + dump_scenario(scenario)
        (FOLDER / f"{name}.toml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
