"""Every writer of a run directory names the file that it cannot write."""

from __future__ import annotations

import pytest

from dglpipe.errors import StorageError
from dglpipe.methods.dgl_async.staleness import draw_staleness
from dglpipe.monitoring.metrics import JsonLines
from dglpipe.monitoring.tensorboard import TensorBoard
from dglpipe.monitoring.trace import write_part
from dglpipe.pipeline.weights import save
from dglpipe.runtime.log_file import LogFile
from dglpipe.runtime.run_dir import RunDir
from harness.configs import in_test_all

ENTRY = {"reads": 1, "ages": {"0": 1}, "reads_by_entry": {"1": 1}, "mean_age": 0.0}
WRITERS = {
    "weights": lambda run_dir: save(run_dir.final(0), {}),
    "timeline": lambda run_dir: write_part(run_dir.timeline_part(0), 0, "rank 0", []),
    "metrics": lambda run_dir: JsonLines(run_dir.metrics),
    "log": lambda run_dir: LogFile(run_dir.log(0)),
    "tensorboard": lambda run_dir: TensorBoard(run_dir.tensorboard),
    "picture": lambda run_dir: draw_staleness([ENTRY], run_dir.staleness),
}
SLOW = ("tensorboard", "picture")
"""Their libraries take a second to import."""


@pytest.mark.parametrize("name", [in_test_all(one) if one in SLOW else one for one in WRITERS])
def test_a_file_that_cannot_be_written_is_named(name, tmp_path):
    (tmp_path / "file").write_text("")
    run_dir = RunDir(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match=rf"^Not a directory: {run_dir.path}/") as caught:
        WRITERS[name](run_dir)
    assert isinstance(caught.value.__cause__, OSError)
