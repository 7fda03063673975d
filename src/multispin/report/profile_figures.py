"""The measurements of `multispin profile`, as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from multispin.report.style import RC, canvas, legend_above

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#555555", "#A07000")
_MARKERS = "osD^vPX*"


def write_profile(path: Path, found: Mapping[str, Any]) -> None:
    """Draw measured and fitted verification latency, and acceptance by position of each drafter.

    Args:
        path: file of the picture; its ending says the format.
        found: the document that `multispin profile --json` prints.

    """
    verification = found["verification"]
    points = verification["points"]
    note = (
        f"{found['machine']}. Target {found['target']}, {found['engine']} engine, "
        f"{verification['context_tokens']} tokens of context, median of {verification['repeats']}. "
        f"Fit: {1e3 * verification['fixed_s']:.2f} ms + {1e3 * verification['per_device_s']:.2f} ms per device + "
        f"{1e3 * verification['per_token_s']:.3f} ms per token, relative error "
        f"{100 * verification['relative_rms_error']:.1f} % rms. Acceptance along the target's own text at temperature "
        f"{found['temperature']:g}, all task families."
    )
    with matplotlib.rc_context(RC):
        figure, axes = canvas("Verification latency and acceptance, measured here", note, 1, 2, 4.6, legend=1)
        latency, acceptance = axes[0]
        for k, devices in enumerate(sorted({point["devices"] for point in points})):
            own = sorted((p for p in points if p["devices"] == devices), key=lambda p: p["draft_length"])
            x = [point["draft_length"] for point in own]
            colour, marker = _COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)]
            latency.plot(x, [1e3 * p["seconds"] for p in own], marker, color=colour, label=f"K = {devices}, measured")
            latency.plot(x, [1e3 * p["fitted_s"] for p in own], "-", color=colour, linewidth=1)
        latency.plot([], [], "-", color="#555555", linewidth=1, label="fitted")
        latency.set_xlabel("draft length L of each device [tokens]")
        latency.set_ylabel("verification latency [ms]")
        latency.set_ylim(bottom=0)
        for k, drafter in enumerate(found["drafters"]):
            values = np.array(drafter["tasks"]["all"]["acceptance_profile"])
            acceptance.plot(
                np.arange(1, len(values) + 1), values, marker=_MARKERS[k % len(_MARKERS)], markersize=5,
                color=_COLOURS[k % len(_COLOURS)], label=f"{drafter['drafter']}",
            )  # fmt: skip
        acceptance.set_xlabel("position in the draft")
        acceptance.set_ylabel("accepted, given all before it were")
        acceptance.set_ylim(0, 1.02)
        legend_above(figure, latency)
        if found["drafters"]:
            acceptance.legend(loc="lower right", fontsize=9)
        figure.savefig(path)
