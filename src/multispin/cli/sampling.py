"""The options that every command shares for sampling parameters, the end of a text, and the acceptance rule."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from multispin.cli.options import together
from multispin.errors import InputError
from multispin.protocol.limits import MAX_RETAINED
from multispin.speculation.rule import MAX_PROBABILITY_BITS, Rule

if TYPE_CHECKING:
    from multispin.speculation import SamplingParams

sampling_options = together(  # --help lists the last one first
    click.option(
        "--probability-bits",
        type=click.IntRange(2, MAX_PROBABILITY_BITS),
        default=16,
        show_default=True,
        help="Under the rejection rules: bits per sent probability.",
    ),
    click.option(
        "--retained",
        type=click.IntRange(1, MAX_RETAINED),
        default=1024,
        show_default=True,
        help="Under the rejection rules: most tokens of a sent distribution.",
    ),
    click.option(
        "--rule",
        type=click.Choice([rule.value for rule in Rule]),
        show_default="greedy at temperature 0, else coupled",
        help="Acceptance rule; docs/losslessness.md compares them.",
    ),
    click.option(
        "--logit-bias",
        "biases",
        multiple=True,
        metavar="ID=BIAS",
        help="Number added to the logit of a token id, −100 … 100; repeatable.",
    ),
    click.option(
        "--stop", "stops", multiple=True, help="Generation ends at this text, which is cut from the output; repeatable."
    ),
    click.option(
        "--min-tokens",
        type=click.IntRange(0, 2**20),
        default=0,
        help="Fewest tokens of an answer.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the sampling noise; the text depends on it."
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        default=1.0,
        show_default=True,
        help="Number that divides the logits of tokens in the prompt or the text.",
    ),
    click.option(
        "--frequency-penalty",
        type=float,
        default=0.0,
        help="Number subtracted from a token's logit for each time that it was generated; −2 … 2.",
    ),
    click.option(
        "--presence-penalty",
        type=float,
        default=0.0,
        help="Number subtracted from the logits of all tokens generated before; −2 … 2.",
    ),
    click.option(
        "--min-p",
        type=float,
        default=0.0,
        help="Keep tokens with at least this share of the likeliest token's probability.",
    ),
    click.option("--top-k", type=click.IntRange(0), default=0, show_default="all", help="Keep the K likeliest tokens."),
    click.option(
        "--top-p",
        type=float,
        default=1.0,
        show_default=True,
        help="Keep the likeliest tokens that together have this probability.",
    ),
    click.option(
        "--temperature", type=float, default=0.0, show_default=True, help="Sampling temperature; 0 is greedy decoding."
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(1, 2**20),
        default=96,
        show_default=True,
        help="Most tokens of an answer.",
    ),
)
"""Options for the sampling parameters, the end of a text, and the acceptance rule."""


def sampling_and_rule(options: Mapping[str, Any], seed: int) -> "tuple[SamplingParams, Rule]":
    """The sampling parameters and the acceptance rule of the options; InputError if they do not fit."""
    from multispin.speculation import SamplingParams, check_stop_strings, rule_for  # loads numpy

    biases = tuple(_bias(text) for text in options["biases"])
    params = SamplingParams(
        options["temperature"],
        options["top_k"],
        options["top_p"],
        seed,
        biases,
        min_p=options["min_p"],
        presence_penalty=options["presence_penalty"],
        frequency_penalty=options["frequency_penalty"],
        repetition_penalty=options["repetition_penalty"],
    )
    check_stop_strings(options["stops"])
    return params, rule_for(params, Rule(options["rule"]) if options["rule"] else None)


def sampling_arguments(options: Mapping[str, Any]) -> list[str]:
    """The options without the seed, as arguments for another process."""
    return [
        *("--max-tokens", str(options["max_tokens"]), "--min-tokens", str(options["min_tokens"])),
        *("--temperature", str(options["temperature"])),
        *("--top-p", str(options["top_p"]), "--top-k", str(options["top_k"])),
        *("--min-p", str(options["min_p"]), f"--presence-penalty={options['presence_penalty']}"),
        f"--frequency-penalty={options['frequency_penalty']}",
        *("--repetition-penalty", str(options["repetition_penalty"])),
        *("--retained", str(options["retained"]), "--probability-bits", str(options["probability_bits"])),
        *(f"--stop={text}" for text in options["stops"]),
        *(f"--logit-bias={text}" for text in options["biases"]),
        *(["--rule", options["rule"]] if options["rule"] else []),
    ]


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise InputError(f"--logit-bias {text!r} is not of the form ID=BIAS: write, for example, 284=-100") from None
