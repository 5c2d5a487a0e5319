"""A plot of what precisions give: speed against the neighbours that a search keeps."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from serve_app.command.precision_comparison import Choice

_KINDS = ("queries", "documents")


def draw(model: str, choices: Sequence[Choice], path: Path) -> None:
    """Writes a plot of the measured choices of a model."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    figure.suptitle(model)
    axes = figure.subplots(1, len(_KINDS), sharey=True)
    axes[0].invert_yaxis()
    for kind, axis in zip(_KINDS, axes, strict=True):
        speeds = [median(getattr(choice, kind)) for choice in choices]
        bars = axis.barh([choice.name for choice in choices], speeds, color="#4878a8")
        axis.bar_label(bars, [_label(choice, v) for choice, v in zip(choices, speeds, strict=True)])
        axis.set_xlabel(f"{kind}/s")
        axis.set_xlim(0, 1.8 * max(speeds))  # with room for the labels
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _label(choice: Choice, speed: float) -> str:
    loss = choice.parity and choice.parity.quantization_loss
    return f" {speed:,.0f}" + (f", {loss.kept:.1%} of top 10" if loss else "")
