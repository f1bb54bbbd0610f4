"""Progress of a run: plain lines and the live table."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from dglpipe.data.batch_schedule import BatchSchedule
from dglpipe.monitoring.metrics import Line, ProbeLine
from dglpipe.monitoring.progress import LiveProgress, PlainProgress

PLAN = BatchSchedule(8, 4, 4, 4, 1, 2, None, 1)


LINES = [
    Line("train", 1, 1, 0, 1.0, 0.25, 0.1, 100.0),
    ProbeLine("probe", 1, 2, 0, 3.0, None),
    Line("train", 1, 2, 0, 0.5, 0.5, 0.1, 100.0),
    Line("train", 1, 2, 1, 0.4, 0.625, 0.1, 100.0),
    Line("test", 1, 2, 0, 0.4, 0.75),
    Line("test", 1, 2, 1, 0.3, 0.8125),
    Line("test", 1, 2, "ensemble", None, 0.875),
]


def test_plain_lines_show_every_stage_once_an_epoch(capsys):
    display = PlainProgress(PLAN)
    for line in LINES:
        display.line(line)
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert "stage 0: loss 0.5000 accuracy 50.00%" in lines[0]
    assert "ensemble: loss - accuracy 87.50%" in lines[-1]


def test_the_live_table_shows_loss_and_accuracy_of_every_stage():
    out = StringIO()
    display = LiveProgress(PLAN, 2, Console(file=out, force_terminal=True, width=100))
    for line in LINES:
        display.line(line)
    display.close()
    for text in ("0.5000", "62.50%", "75.00%", "81.25%", "2/4"):
        assert text in out.getvalue()
