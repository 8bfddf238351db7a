"""One self-contained page a run: what was learnt, what it cost, and how to repeat it."""

from cloze.report.page import write_report
from cloze.report.plots import save_loss_plot

__all__ = ["save_loss_plot", "write_report"]
