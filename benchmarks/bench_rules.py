"""What each acceptance rule accepts, costs on the air, and would give in the paper's cell, for the shipped drafters.

    python benchmarks/bench_rules.py [--plot docs/images/rules.png]

Acceptance is the one measured on held-out prompts when the drafters were made (their cards), at temperature 1: that of
the first token of a draft. bench_block.py says what `rejection` accepts of longer ones; the planner does not know it.
The cell is that of arXiv 2606.04581: K = 20, its Llama-2-7B verification latency, drafting speeds and p/N₀ as
calibrated for `multispin reproduce`, Rayleigh blocks; all 20 devices have the same drafter. Bits are those of
SmolLM2's vocabulary of 49,152 ids with V̂ = 1024, Q_B = 16. `best of all` lets the planner choose rule and draft
length per device. Plain decoding, in which nobody drafts, stands beside. Prints a table in Markdown.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from multispin.control import Mode, plan
from multispin.models.drafter_card import read_card
from multispin.models.drafter_name import SHIPPED, shipped_folder
from multispin.paper.cell import CALIBRATED, PAIRS, realise, scenario
from multispin.speculation import DistributionFormat, Rule, bits_per_token, uplink_bits_per_rejection

FORM = DistributionFormat(49_152, 1024, 16)
BANDS_HZ = (1e6, 5e6, 20e6)
RULES = (Rule.COUPLED, Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN)
BEST = "best of all"
PLAIN = "plain decoding"
REALISATIONS, BLOCKS = 5, 4


def acceptance_of(name):
    """Acceptance rate at T = 1 by rule, from a shipped drafter's card."""
    found = read_card(shipped_folder(name)).results["all"]
    rates = {rule: found[rule]["acceptance_rate"] for rule in ("coupled", "rejection", "rejection-down")}
    return {**rates, "rejection-up": rates["rejection"]}


def mode(rule, rate):
    return Mode(str(rule), rate, None, bits_per_token(rule, FORM), uplink_bits_per_rejection(rule, FORM))


def goodput(rates, band_hz):
    """Mean τ over realisations by rule, and with the planner's choice [tokens/s]."""
    found = {name: [] for name in (*RULES, BEST)}
    for index in range(REALISATIONS):
        drawn = realise(1, index, BLOCKS)
        for block in range(BLOCKS):
            seen = scenario(PAIRS["llama"], CALIBRATED["llama"], drawn, block, bandwidth_hz=band_hz)
            for name in found:
                modes = tuple(mode(rule, rates[rule]) for rule in (RULES if name == BEST else (name,)))
                devices = tuple(replace(d, acceptance_rate=None, modes=modes) for d in seen.devices)
                made = plan(replace(seen, devices=devices), "heterogeneous", relative_gap=1e-3)
                found[name].append(made.goodput_tokens_per_s)
    return {name: float(np.mean(values)) for name, values in found.items()}


def plain(band_hz):
    """Goodput if nobody drafts, which no band and no draw changes [tokens/s]."""
    seen = scenario(PAIRS["llama"], CALIBRATED["llama"], realise(1, 0, 1), 0, bandwidth_hz=band_hz)
    return plan(seen, "plain").goodput_tokens_per_s


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found = {}
    print("| drafter | rule | acceptance | bits per token | bits per refusal (up) | 1 MHz | 5 MHz | 20 MHz |")
    print("|---|---|---|---|---|---|---|---|")
    for name in SHIPPED:
        rates = acceptance_of(name)
        cells = [goodput(rates, band) for band in BANDS_HZ]
        for rule in (*RULES, BEST):
            found[name, rule] = [cell[rule] for cell in cells]
            numbers = " | ".join(f"{value:.1f}" for value in found[name, rule])
            facts = "| | |"
            if rule != BEST:
                up = uplink_bits_per_rejection(rule, FORM)
                facts = f"{rates[rule]:.3f} | {bits_per_token(rule, FORM):,} | {up:,} |"
            print(f"| {name} | {rule} | {facts} {numbers} |", flush=True)
    numbers = " | ".join(f"{plain(band):.1f}" for band in BANDS_HZ)
    print(f"| none | {PLAIN} | | 0 | 0 | {numbers} |")
    if options.plot:
        draw(found, options.plot)


def draw(found, path):
    import matplotlib

    from multispin.report.style import RC, canvas, legend_above

    colours = dict(zip((*RULES, BEST), ("#0072B2", "#555555", "#E69F00", "#009E73", "#CC79A7"), strict=True))
    with matplotlib.rc_context(RC):
        figure, axes = canvas(
            "Goodput of each acceptance rule in the paper's cell, by drafter and band",
            "K = 20, verification of Llama-2-7B on an A100 (arXiv 2606.04581, Fig. 5), drafting speeds and p/N₀ as "
            "calibrated; acceptance measured at temperature 1 on held-out prompts with the drafters of "
            "SmolLM2-135M-Instruct; V = 49,152, V̂ = 1024, Q_B = 16. The downlink is neglected, as in the paper.",
            1, 3, 4.2, legend=True,
        )  # fmt: skip
        for panel, name in zip(axes[0], SHIPPED, strict=True):
            for k, (rule, colour) in enumerate(colours.items()):
                at = np.arange(len(BANDS_HZ)) + 0.16 * (k - 2)
                panel.bar(at, found[name, rule], width=0.15, color=colour, label=str(rule))
            panel.axhline(plain(BANDS_HZ[0]), color="k", ls=":", lw=1.5, label=PLAIN)
            panel.set_xticks(range(len(BANDS_HZ)), [f"{band / 1e6:g}" for band in BANDS_HZ])
            panel.set_xlabel("shared band B [MHz]")
            panel.set_ylabel("sum goodput [tokens/s]")
            panel.set_title(f"drafter {name}", fontsize=11)
            panel.grid(axis="x", visible=False)
        legend_above(figure, axes[0][0])
        figure.savefig(path)


if __name__ == "__main__":
    main()
