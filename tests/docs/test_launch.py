"""The scripts of launch/."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dglpipe.config import from_yaml
from harness.configs import layout
from harness.paths import ROOT
from harness.training import train_world

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TORCHRUN = Path(sys.executable).parent / "torchrun"


def start(script: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return subprocess.Popen(
        [str(LAUNCH / script), *arguments],
        cwd=cwd,
        env={**own, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stand_in(folder: Path, name: str, text: str) -> Path:
    """A program of this name that does `text`."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_can_be_run_and_says_how_and_what_was_tested(script):
    assert script.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    header = script.read_text().partition("set -euo pipefail")[0]
    assert f"launch/{script.name}" in header
    assert "ested" in header


@pytest.mark.parametrize("arguments", [(), ("two",), ("0",)])
@pytest.mark.parametrize("script", ["torchrun_one_node.sh", "torchrun_nodes.sh"])
def test_wrong_arguments(script, arguments, tmp_path):
    process = start(script, *arguments, cwd=tmp_path, HEAD_NODE="localhost", NODES="2")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith("usage: ")


def test_one_node_keeps_to_loopback(tmp_path):
    """tests/faults/test_ports.py runs that line."""
    program = stand_in(tmp_path, "torchrun", 'printf "%s\\n" "$@" $GLOO_SOCKET_IFNAME')
    arguments = ("2", "run_dir=a b", "model.width=4")
    own = {"TORCHRUN": str(program), "PORT": "23456"}
    process = start("torchrun_one_node.sh", *arguments, cwd=tmp_path, **own)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out.splitlines() == [
        "--nnodes=1",
        "--node-rank=0",
        "--nproc-per-node=2",
        "--rdzv-backend=static",
        "--master-addr=127.0.0.1",
        "--master-port=23456",
        "--local-addr=127.0.0.1",
        *("-m", "dglpipe", "train", "run_dir=a b", "model.width=4"),
        "lo0" if sys.platform == "darwin" else "lo",
    ]


def test_one_node_chooses_a_free_port(tmp_path):
    program = stand_in(tmp_path, "torchrun", 'printf "%s\\n" "$6"')
    process = start("torchrun_one_node.sh", "2", cwd=tmp_path, TORCHRUN=str(program))
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    with socket.create_server(("127.0.0.1", int(out.removeprefix("--master-port=")))):
        pass


def test_machines_with_ranks_meet_in_a_static_rendezvous(tmp_path):
    program = stand_in(tmp_path, "torchrun", 'printf "%s\\n" "$@"')
    own = {"HEAD_NODE": "10.0.0.1", "NODES": "2", "NODE_RANK": "1", "LOCAL_ADDR": "10.0.0.2"}
    process = start("torchrun_nodes.sh", "4", cwd=tmp_path, TORCHRUN=str(program), **own)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "--rdzv-backend=static\n--node-rank=1\n--master-addr=10.0.0.1\n" in out
    assert "--master-port=29500\n--local-addr=10.0.0.2\n" in out
    assert "c10d" not in out


@pytest.mark.timeout(240)
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [False, True], ids=["c10d", "static"])
def test_two_machines_on_one(ranks, tmp_path):
    """The weights equal the weights of one process; K defaults to the world size."""
    settings = ("1", "run_dir=run", "max_steps=2", "model.width=4", "pipeline.threads=1")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    own = {"HEAD_NODE": "localhost", "NODES": "2", "PORT": port, "TORCHRUN": str(TORCHRUN)}
    more = [{"NODE_RANK": str(rank)} if ranks else {} for rank in range(2)]
    machines = [start("torchrun_nodes.sh", *settings, cwd=tmp_path, **own, **one) for one in more]
    try:
        outputs = [machine.communicate(timeout=200) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    workers = json.loads((tmp_path / "run" / "workers.json").read_text())
    assert [worker["stages"] for worker in workers] == [[0], [1]]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["stages"], summary["processes"]) == ("finished", 2, 2)
    config = from_yaml((tmp_path / "run" / "config.yaml").read_text())
    plain = train_world(config, layout(2, 1))
    assert [stage["weights_sha256"] for stage in summary["per_stage"]] == plain.hashes


def start_in_slurm(folder: Path, torchrun: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and error output of the batch script, with `torchrun` as the program."""
    stand_in(folder, "scontrol", 'printf "%s " "$@" >&2; echo "node7"; echo "node8"')
    stand_in(folder, "srun", 'shift; exec "$@"')
    slurm = {
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "4321",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_SUBMIT_DIR": str(LAUNCH.parent),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "TORCHRUN": str(stand_in(folder, "torchrun", torchrun)),
    }
    process = start("slurm.sh", *arguments, cwd=folder, **slurm)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("status", "words", "queued"),
    [
        ("preempted", ["resume=auto"], True),
        ("preempted", [], False),
        ("failed", ["resume=auto"], False),
    ],
)
def test_slurm_queues_a_preempted_run_again(status, words, queued, tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"status": status}, indent=2))
    words = ["pipeline.stages=8", f"run_dir={tmp_path}", *words]
    returncode, _, err = start_in_slurm(tmp_path, "exit 1", *words)
    assert returncode == 1
    assert ("requeue 4321" in err) == queued


def test_slurm_starts_one_torchrun_a_node(tmp_path):
    returncode, out, err = start_in_slurm(tmp_path, 'printf "%s\\n" "$@"', "pipeline.stages=8")
    assert returncode == 0, err
    assert "--nnodes=2\n--nproc-per-node=4\n" in out
    assert "--rdzv-endpoint=node7:29821\n--rdzv-id=4321\n" in out
    assert out.endswith("-m\ndglpipe\ntrain\npipeline.stages=8\n")
