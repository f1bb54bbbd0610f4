"""Faults: wrong overrides end with status 2 and a message, before anything is started.

    python benchmarks/faults/overrides.py --output FILE.json

Values of the wrong kind, extreme numbers, odd texts and contradictions, for every key of the
schema, drawn by a seed. Each case is `dglpipe train` up to the start of its processes, in a forked
process with limits of time and memory. Prints the number of cases by outcome, every case that is
not refused, and with --run the outcome of two steps of each accepted case.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import common
from benchmarks.common import log
from dglpipe.config.schema import CHOICES, SINGLE, Config

TIME_LIMIT_S = 20.0
"""Time of one case; the slowest right one builds a network of torchvision in 3 seconds."""
MEMORY_LIMIT = 2**30
"""Resident memory that a case may add to the process, in bytes."""
RUN_LIMIT_S = 120.0
"""Time of a run of an accepted case."""
REFUSED, ACCEPTED, FAILED = "refused", "accepted", "failed"
TRACEBACK, HANG, MEMORY, FILES = "traceback", "over time", "over memory", "left files"
OUTCOMES = (REFUSED, ACCEPTED, FAILED, TRACEBACK, HANG, MEMORY, FILES)
STATUS = {0: ACCEPTED, 1: FAILED, 2: REFUSED}
"""Exit status -> outcome."""

NUMBERS = (
    *("0", "-1", "0.5", "1.5", "-0.0", "1e-9", "1e-300", "5e-324", "1e12", "1e30", "1e300"),
    *("-1e300", "inf", "-inf", "nan", "2147483648", "9223372036854775808", "1000000000"),
    *("100000000", "1000000", "100000", "9" * 400, "0x10", "1_000"),
)
KINDS = ("null", "true", "[]", "[null]", "[1,2]", "[[1]]", "[a,b]", "{}", "{a:1}", "{name:x}")
TEXTS = (
    *("abc", "''", "' '", "???", "'${b}'", "${b}", "'a${b'", "${oc.env:NO_SUCH}", "'a\\${b}c'"),
    *("a" * 300, "'" + "a/" * 2500 + "'", "a\udcffb", "ü", "~nobody_here/x", "'%s{}'"),
    *(
        "'a\nb'",
        "/dev/zero",
        "/proc/self/mem",
        "1e5",
        "'null'",
        "a,b",
        "null,null",
        "=",
        "'",
        "[",
        "{",
    ),
)
GROUP_VALUES = (
    *("null", "true", "1", "1.5", "nan", "[]", "[null]", "[cnn4,cnn6]", "[sgd,adam]", "{}"),
    *("{name:custom,target:a.b}", "{_target_:os.system}", "{lr:0.1}", "''", "custom", "../x"),
    *("a\udcffb", "a" * 300, "${b}", "???", "a,b", "a/b", "NULL", ".", "config"),
)
WHOLE = (
    *(("optimizer=null",), ("schedule=true",), ("model=[null]",), ("model=1",), ("+hydra=1",)),
    *(("model=[cnn4,cnn6]",), ("method=sequential", "method.name=dgl"), ("run_dir=a", "run_dir=b")),
    *(("run_dir=a", "+run_dir=b"), ("run_dir=a${b}c",), ("run_dir=a\udcffb",), ("run_dir=???",)),
    *(("run_dir=" + "a" * 300,), ("run_dir=" + "a/" * 2500,), ("run_dir=/dev/null/x",)),
    *(("run_dir=/proc/x",), ("run_dir=~nobody_here/x",), ("run_dir=a${oc.env:HOME}",)),
    *(("hydra=x",), ("hydra.run.dir=[1]",), ("hydra.job.chdir=true",), ("hydra.searchpath=5",)),
    *(("hydra.searchpath=[1]",), ("hydra.searchpath=[file:///nowhere]",), ("hydra/launcher=x",)),
    *(("hydra.verbose=true",), ("+hydra.a.b=1",), ("~hydra",), ("hydra=null",), ("++hydra=null",)),
    *(("hydra.mode=MULTIRUN",), ("hydra.mode=x",), ("hydra.overrides.task=[a]",)),
    *(("~optimizer",), ("~epochs",), ("~pipeline.stages",), ("~optimizer=sgd",), ("~model.width",)),
    *(("+optimizer=adam",), ("++optimizer=adam",), ("optimizer@schedule=sgd",)),
    *(("optimizer@x=sgd",), ("+x=1",), ("++x.y=1",), ("+model.widht=1",), ("model@=cnn4",)),
    *(("optimizer=sgd", "optimizer.name=adam"), ("model=cnn4", "model.name=cnn6")),
    *(("model=cnn4", "model.family=vgg"), ("data=digits", "data.name=synthetic")),
    *(("schedule=cosine", "schedule.name=step"), ("head=cnn", "head.name=mlp")),
    *(("precision=bf16", "precision.name=fp32"), ("method=dgl", "method.name=custom")),
    *(("head.name=custom", "+head.target=a.b"), ("head={name:custom,target:a.b}",)),
    *(("model={name:cnn4,family:cnn}",), ("data={name:synthetic}",), ("method={name:dgl}",)),
    *(("experiment=[debug,debug]",), ("experiment=1",), ("experiment={a:1}",), ("experiment=x",)),
    *(("--config-name=x",), ("--config-name=model/cnn4",), ("--config-name=",)),
    *(("--config-name=" + "a" * 300,), ("--config-dir=" + "a" * 300,), ("--config-dir=a\udcffb",)),
    *(
        ("-m", "epochs=0,1"),
        ("-m", "model=cnn4,1"),
        ("-m", "model=null,cnn4"),
        ("-m", "a=range(3)"),
    ),
    *(("-m", "epochs=choice()"), ("-m", "epochs=range(1,1e9)"), ("-m", "epochs=range(0,0)")),
    *(("-m", "seed=range(0,2000000000)"), ("-m", "hydra.sweeper.params=3"), ("-m", "+hydra=1")),
    *(
        ("-m", "run_dir=" + "a" * 300, "seed=0,1"),
        ("-m", "epochs=glob(*)"),
        ("-m", "seed=shuffle(1)"),
    ),
    *(
        ("[" * 3000,),
        ("epochs=" + "[" * 500 + "]" * 500,),
        ("per_stage=" + "{a:" * 400 + "1" + "}" * 400,),
    ),
    *(
        ("",),
        ("=",),
        ("=1",),
        ("a.b",),
        (".=1",),
        ("epochs.x=1",),
        ("epochs",),
        ("model.width.a=1",),
    ),
    *(("pipeline={stages:2}",), ("pipeline=null",), ("pipeline=[1]",), ("link=null",), ("link=1",)),
    *(("evaluate=true",), ("checkpoint={every:1,keep:0}",), ("checkpoint=[]",), ("defaults=[]",)),
    *(("pipeline.times={segments:[1],input_gradients:[1],heads:[]}",), ("pipeline.times=[[1]]",)),
    *(
        ("pipeline.times={segments:3,input_gradients:[],heads:[]}",),
        ("pipeline.times=[null,null]",),
    ),
    *(("pipeline.times={segments:[],input_gradients:[],heads:[]}", "pipeline.cost=time"),),
    *(("pipeline.times=[]", "pipeline.cost=time"), ("pipeline.times={}", "pipeline.cost=time")),
    *(
        ("pipeline.cost=time", "pipeline.threads=100000"),
        ("pipeline.cost=time", "model.width=100000"),
    ),
    *(("per_stage=[null,null]",), ("per_stage=[{},{optimizer:null}]",), ("per_stage=[{},{}, {}]",)),
    *(("per_stage=[{optimizer:[]},{}]",), ("per_stage=[{optimizer:{lr:1e300}},{}]",)),
    *(
        ("per_stage=[{schedule:{name:step,every:0}},{}]",),
        ("per_stage=[{precision:{name:fp8}},{}]",),
    ),
    *(("per_stage=[{head:{name:custom}},{}]",), ("per_stage=[{head:{target:a.b}},{}]",)),
    *(
        ("per_stage=[{optimizer:{name:null}},{}]",),
        ("per_stage=[{1:2},{}]",),
        ("per_stage=[{a:1}]",),
    ),
    *(("method.loss={target:fuzz_plug_in:loss,args:{a:nan}}",), ("method.loss={target:null}",)),
    *(
        ("method.loss={target:3}",),
        ("method.loss={target:[a]}",),
        ("method.loss={target:a.b,args:3}",),
    ),
    *(
        ("method.loss={_target_:os.system,command:true}",),
        ("method.loss={a:1}",),
        ("method.loss=[]",),
    ),
    *(("model=custom", "model.target=fuzz_plug_in:network", "model.args={width:nan}"),),
    *(("model=custom", "model.target=fuzz_plug_in:network", "model.args={width:1000000000}"),),
    *(("model=custom", "model.target=fuzz_plug_in:network", "model.args={width:a\udcff}"),),
    *(("model=custom", "model.target=fuzz_plug_in:network", "model.args=[1]"),),
    *(("model=custom", "model.target=fuzz_plug_in:network", "model.args={1:2}"),),
    *(
        ("model=custom", "model.target=os.system"),
        ("model=custom", "model.target=fuzz_plug_in:leave"),
    ),
    *(("head=custom", "head.target=fuzz_plug_in:leave"), ("data=custom", "data.target=os.getcwd")),
    *(("data=custom", "data.target=fuzz_plug_in:leave"), ("method.loss={target:sys.exit}",)),
    *(("data=synthetic", "data.samples=1000000000"), ("data=synthetic", "data.samples=100000000")),
    *(("data=synthetic", "data.channels=100000000"), ("data=synthetic", "data.noise=1e200")),
    *(("data=synthetic", "data.classes=1000000000"), ("data=synthetic", "data.classes=100000000")),
    *(("data=synthetic", "data.samples=100000", "data.image_size=2000"),),
    *(("data=synthetic", "data.samples=1000000", "batch_size=1000000", "model.width=256"),),
    *(("data.image_size=2147483648",), ("data.image_size=16000",), ("model.width=100000000",)),
    *(("model.width=8000",), ("model.width=30000",), ("pipeline.depth=1000000000",)),
    *(
        ("pipeline.depth=1000000",),
        ("pipeline.replicas=64",),
        ("pipeline.replicas=700", "batch_size=1437"),
    ),
    *(
        ("pipeline.stages=1000000000",),
        ("pipeline.processes=1000000000", "pipeline.stages=1000000000"),
    ),
    *(
        ("method=dgl_async", "method.buffer=1000000000"),
        ("method=dgl_async", "method.buffer=100000"),
    ),
    *(("method=dgl_async", "epochs=1000000000"), ("method=sequential", "epochs=1000000000")),
    *(
        (
            "method=dgl_async",
            "method.reset_optimizer=true",
            "schedule=step",
            "pipeline.stages=1000000000",
        ),
    ),
    *(("method=dgl_async", "method.slowdown=[1,1e300]"), ("method=dgl_async", "method.policy=[1]")),
    *(
        ("method=backprop", "method.microbatches=1000000000"),
        ("method=backprop", "method.schedule=[]"),
    ),
    *(
        ("optimizer.lr=1e30",),
        ("optimizer.weight_decay=1e300",),
        ("label_smoothing=1",),
        ("timeout_s=1e300",),
    ),
    *(
        ("timeout_s=1e-9",),
        ("link.bandwidth_mbps=1e-300",),
        ("link.delay_ms=1e300",),
        ("epochs=1000000000",),
    ),
    *(("pipeline.memory_limit=" + "9" * 400 + "GB",), ("pipeline.memory_limit=1e300",)),
    *(("model=torchvision", "model.name=vit_b_16", "model.args={image_size:1000000}"),),
    *(("model=torchvision", "model.name=vit_b_16", "model.args={hidden_dim:10000000}"),),
    *(("model=torchvision", "model.name=resnet18", "model.args={width_per_group:10000000}"),),
    *(
        ("model=torchvision", "model.name=[resnet18]"),
        ("model=timm", "model.name=x", "model.args=3"),
    ),
    *(
        ("model.weights=/dev/zero",),
        ("model.weights=ResNet18_Weights.DEFAULT",),
        ("model.weights=.",),
    ),
)
"""Overrides that belong together."""
WORKER = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {"TORCHELASTIC_RUN_ID": "none"},
    {"TORCHELASTIC_RUN_ID": "none", "RANK": "0"},
    {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"},
    {"TORCHELASTIC_RUN_ID": "none", **WORKER},
    {"TORCHELASTIC_RUN_ID": "none", **WORKER, "RANK": "two"},
    {"TORCHELASTIC_RUN_ID": "none", **WORKER, "RANK": "2"},
    {"TORCHELASTIC_RUN_ID": "none", **WORKER, "RANK": "-1"},
    {"TORCHELASTIC_RUN_ID": "none", **WORKER, "WORLD_SIZE": "0"},
    {"TORCHELASTIC_RUN_ID": "none", **WORKER, "LOCAL_WORLD_SIZE": "3"},
    {"TORCHELASTIC_RUN_ID": "none", **WORKER, "LOCAL_RANK": ""},
    {"TORCHELASTIC_RUN_ID": "none", **WORKER, "MASTER_ADDR": "localhost", "MASTER_PORT": "x"},
    {"TORCHELASTIC_RUN_ID": "none", **WORKER, "MASTER_ADDR": "localhost", "MASTER_PORT": "0"},
    {"RANK": "0"},
    {"RANK": "x", "WORLD_SIZE": "", "LOCAL_RANK": "-3", "MASTER_PORT": "y"},
    {"TORCHELASTIC_RESTART_COUNT": "x", "TORCHELASTIC_MAX_RESTARTS": "y"},
    {"TORCHELASTIC_ERROR_FILE": "/nowhere/x", "TORCHELASTIC_USE_AGENT_STORE": "True"},
)
"""Variables that a launcher left behind, whole or in part."""
PLUG_IN = """
import os
import sys

from torch import nn


def network(channels, classes, width=4):
    layers = [nn.Conv2d(channels, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16 * width, classes))


def head(channels, classes, width=4):
    layers = [nn.Conv2d(channels, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def loss(a=0):
    return nn.CrossEntropyLoss()


def leave(**anything):
    sys.exit(0)
"""
REQUIRED: dict[tuple[str, str], tuple[str, ...]] = {
    ("model", "torchvision"): ("model.name=resnet18", "data.image_size=32"),
    ("model", "custom"): ("model.target=fuzz_plug_in:network",),
    ("head", "custom"): ("head.target=fuzz_plug_in:head",),
    ("method", "custom"): ("method.target=dglpipe.methods:Dgl",),
    ("data", "image_folder"): ("data.root=images", "batch_size=2"),
    ("model", "vgg"): ("data.image_size=32",),
    ("model", "resnet"): ("data.image_size=32",),
}
"""Settings that a choice needs."""
OPTION = {"cnn": "cnn6", "vgg": "vgg11_bn", "resnet": "resnet18", "resnet_cifar": "resnet20_cifar"}
"""Family of networks -> a name of the family."""
BASE = ("model.width=4", "pipeline.threads=1", "max_steps=2", "evaluate.every=0")


@dataclass(frozen=True)
class Case:
    """Arguments of `dglpipe train`, and environment variables."""

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [*(f"{key}={value}" for key, value in self.environment.items()), *self.words]
        text = " ".join(
            word if len(word) <= 60 else f"{word[:50]}...({len(word)})" for word in words
        )
        return ascii(text)[1:-1]


@dataclass(frozen=True)
class Outcome:
    """What became of a case: one of `OUTCOMES`, and the last text on standard error."""

    kind: str
    text: str
    seconds: float = 0.0


# ---------------------------------------------------------------- cases


def make_cases(count: int, seed: int) -> list[Case]:
    """All cases of `WHOLE` and `ENVIRONMENTS`, and values drawn for every key of the schema."""
    fixed = [Case(words) for words in WHOLE]
    fixed += [Case((), environment) for environment in ENVIRONMENTS]
    drawn = list(_drawn(random.Random(seed), max(0, count - len(fixed))))
    return [*fixed, *drawn] if count >= len(fixed) else random.Random(seed).sample(fixed, count)


def _drawn(generator: random.Random, count: int) -> Iterator[Case]:
    """One value for each key in turn, without repeats."""
    places = list(_keys())
    values = [*NUMBERS, *KINDS, *TEXTS]
    orders = [generator.sample(values, len(values)) for _ in places]
    for at in range(count):
        turn, place = divmod(at, len(places))
        words, key = places[place]
        of_group = GROUP_VALUES if key in CHOICES or key == "precision" else orders[place]
        value = of_group[turn % len(of_group)]
        if key == "data.download" and value in ("true", "1"):
            value = "null"  # no network
        yield Case((*words, f"{key}={value}"))


def _keys() -> Iterator[tuple[tuple[str, ...], str]]:
    """(overrides that select the choice, key) of the whole schema."""
    for group, schemas in CHOICES.items():
        yield (), group
        names = [*schemas, "custom"] if group in ("model", "head", "data") else list(schemas)
        names = [name for name in names if name != "timm"]
        for name in names:
            base = tuple(
                word for word in BASE if group != "model" or name == "cnn" or word != BASE[0]
            )
            words = (*base, f"{group}={OPTION.get(name, name)}", *REQUIRED.get((group, name), ()))
            for key in _fields(schemas.get(name)):
                yield words, f"{group}.{key}"
    for group, schema in SINGLE.items():
        for item in dataclasses.fields(schema):
            yield BASE, f"{group}.{item.name}"
    for item in dataclasses.fields(Config):
        if item.name not in CHOICES and item.name not in SINGLE:
            yield BASE, item.name


def _fields(schema: type[Any] | None) -> list[str]:
    if schema is None:
        return ["target", "args", "name"]
    return [item.name for item in dataclasses.fields(schema)]


# ---------------------------------------------------------------- one case


def attempt(case: Case) -> Outcome:
    """Runs a case up to the start of its processes, in this process and its folder."""
    import dglpipe.runtime.run
    from dglpipe.cli.main import run
    from dglpipe.host import peak_resident_bytes

    before, start = _files(), time.monotonic()
    errors, memory = io.StringIO(), peak_resident_bytes()
    try:
        with (
            contextlib.redirect_stderr(errors),
            contextlib.redirect_stdout(io.StringIO()),
            patch.dict(os.environ, case.environment),
            patch.object(dglpipe.runtime.run, "launch", _no_launch),
        ):
            kind = STATUS.get(run(["train", *case.words]), FAILED)
    except Exception:
        kind = TRACEBACK
        errors.write(traceback.format_exc())
    except SystemExit as error:
        kind = TRACEBACK
        errors.write(f"SystemExit({error.code})")
    text, seconds = errors.getvalue(), time.monotonic() - start
    if "Traceback" in text:
        kind = TRACEBACK
    elif kind == REFUSED and _files() != before:
        kind = FILES
    elif peak_resident_bytes() - memory > MEMORY_LIMIT:
        kind = MEMORY
    return Outcome(kind, text, seconds)


def _no_launch(plan: Any, run_dir: Any) -> dict[str, Any]:
    """Stands for the launcher: the plan is accepted."""
    return {}


def _files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts}


def isolated(case: Case, template: Path) -> Outcome:
    """`attempt` in a forked process with limits, in a copy of the folder `template`."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "here"
        shutil.copytree(template, place)
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(case, place, sender))
        child.start()
        sender.close()
        found = None
        if receiver.poll(TIME_LIMIT_S):
            with contextlib.suppress(EOFError):
                found = receiver.recv()
        child.join(1)
        if child.exitcode is None:
            child.kill()
            child.join()
            return found or Outcome(HANG, "", TIME_LIMIT_S)
        return found or Outcome(TRACEBACK, f"the process ended with status {child.exitcode}")


def _child(case: Case, place: Path, sender: Any) -> None:
    os.chdir(place)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = size + 8 * MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sender.send(attempt(case))
    os._exit(0)


def make_folder(folder: Path) -> None:
    """Plug-ins and a tiny image folder."""
    (folder / "fuzz_plug_in.py").write_text(PLUG_IN)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            target = folder / "images" / split / name
            target.mkdir(parents=True)
            for number in range(2):
                (target / f"{number}.png").write_bytes(_png(8))


def _png(side: int) -> bytes:
    """A black RGB image; torchvision takes seconds to load."""
    rows = zlib.compress(bytes(side * (1 + 3 * side)))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def warm_up(folder: Path) -> None:
    """Runs a right case in this process, so that the forks begin with loaded libraries."""
    import torch

    torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
    outcome = attempt(Case((*BASE, f"run_dir={folder / 'run'}")))
    assert outcome.kind == ACCEPTED, outcome.text


def run_accepted(case: Case, template: Path) -> Outcome:
    """Two steps of an accepted case, as users start it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "here"
        shutil.copytree(template, place)
        steps = () if any("max_steps" in word for word in case.words) else ("max_steps=2",)
        command = [sys.executable, "-m", "dglpipe", "train", *case.words, *steps]
        environment = {**os.environ, **case.environment}
        process = subprocess.Popen(
            [os.fsencode(word) for word in command],
            cwd=place,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        start = time.monotonic()
        try:
            _, errors = process.communicate(timeout=RUN_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            return Outcome(HANG, "", RUN_LIMIT_S)
        text = errors.decode(errors="replace")
        kind = TRACEBACK if "Traceback" in text else STATUS.get(process.returncode, FAILED)
        return Outcome(kind, text, time.monotonic() - start)


# ---------------------------------------------------------------- command


def main() -> None:
    arguments = parse()
    common.prepare(arguments.output)
    import dglpipe.cli.train
    import dglpipe.runtime.run  # noqa: F401  loaded once, before the forks

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder)
        make_folder(template)
        for case in make_cases(arguments.count, arguments.seed):
            if arguments.only and arguments.only not in str(case):
                continue
            outcome = isolated(case, template)
            rows.append(_row(case, outcome))
            if arguments.verbose or outcome.kind != REFUSED:
                log(_line(case, outcome))
            if arguments.run and outcome.kind == ACCEPTED:
                outcome = run_accepted(case, template)
                rows[-1]["run"] = outcome.kind
                log(f"    run: {_line(case, outcome)}")
    counts = Counter(row["outcome"] for row in rows)
    log(*(f"{counts[kind]:4} {kind}" for kind in OUTCOMES))
    kept = [row for row in rows if row["outcome"] != REFUSED]
    common.store(arguments.output, counts=dict(counts), cases=kept)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = common.parser_of(__doc__)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="cases that contain this text")
    parser.add_argument("--run", action="store_true", help="run accepted cases for two steps")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    return parser.parse_args(words)


def _row(case: Case, outcome: Outcome) -> dict[str, Any]:
    message = ascii(outcome.text.strip().splitlines()[-1] if outcome.text.strip() else "")[1:-1]
    return {"case": str(case), "outcome": outcome.kind, "message": message[:300]}


def _line(case: Case, outcome: Outcome) -> str:
    row = _row(case, outcome)
    return f"{outcome.kind:10} {outcome.seconds:5.1f} s  {row['case']}  ->  {row['message']}"


if __name__ == "__main__":
    main()
