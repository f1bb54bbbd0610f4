"""The figures of the documents come from the result files."""

from __future__ import annotations

import re

import pytest

from benchmarks import figures
from harness.paths import BENCHMARKS


@pytest.mark.parametrize(("document", "table"), figures.documents().items(), ids=str)
def test_the_documents_have_the_figures_of_the_result_files(document, table):
    _, begin, rest = document.read_text().partition(figures.BEGIN)
    found, end, _ = rest.partition(figures.END)
    assert begin and end
    assert found == table, "python benchmarks/figures.py --write"


def test_the_overview_has_at_most_six_rows():
    assert len(figures.overview()) - 2 <= 6


def test_a_baseline_that_underperforms_gives_no_ratio():
    ratio = "DGL / best pipeline"
    row = {
        "ratios": {ratio: "baseline underperforms", "best pipeline / its bound": [0.7, 0.8, 0.6]}
    }
    assert figures.ratio(row, ratio) == "it underperforms: 0.70 of its bound"
    row["ratios"][ratio] = [1.2, 1.1, 1.3]
    assert figures.ratio(row, ratio) == "1.20 (1.10-1.30)"
    assert figures.ratio(row, "DGL / as planned") == "not measured"


def test_a_seed_that_does_not_reach_the_accuracy_is_in_the_range():
    runs = [{"rate": 0.1, "seconds": one} for one in (2.0, None, 1.0)]
    row = {"rate": 0.1, "runs": [*runs, {"rate": 0.2, "seconds": 9.0}]}
    assert figures.spread(figures.seconds(row)) == "2.00 (1.00-inf)"


def test_result_files_name_no_folder_of_a_machine():
    files = sorted(BENCHMARKS.glob("*/results/*.json"))
    assert files
    for file in files:
        text = file.read_text().replace("=/nowhere/", "")  # a path that a case makes up
        assert not re.search(r"[ ='\"]/\w", text), file
