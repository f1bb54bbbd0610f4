"""The runs of the accuracy study, in the order in which they are made.

Every run is `dglpipe train` with the words of its setting and the best of three learning rates,
found with one seed and four epochs: for backprop, for both heads of the first study at K = 6 and
for every alternative. Other settings use the rate of the most similar of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SEEDS = (0, 1, 2)
RATES = (0.05, 0.1, 0.2)
"""Learning rates of the SGD settings."""
ADAM_RATES = (1e-4, 3e-4, 1e-3)
TUNING_EPOCHS = 4

BASE = (
    *("model=cnn6", "model.width=32", "batch_size=128", "optimizer=sgd", "optimizer.momentum=0.9"),
    *("optimizer.weight_decay=5.0e-4", "schedule=cosine", "epochs=10", "pipeline.split=even"),
)
BACKPROP = ("method=backprop", "pipeline.stages=1")
DNI = (
    *("model=dni_cnn", "model.width=32", "batch_size=128", "optimizer=adam", "schedule=cosine"),
    *("epochs=20", "pipeline.split=even"),
)
"""The network of the comparison with DNI, narrower (the paper: 128), with fewer epochs (2000), a
larger rate (3e-5, constant) and smaller batches (256)."""
FAST = ("experiment=cifar10_fastcnn", "model.width=32")
FAST_RATES = (0.75, 1.5, 3.0)
MEASURED = "mlp_sr K=6"
"""The setting whose convergence is measured, which changes no weight."""
PROBED = ("probe.every=50", "probe.batch_size=512")
HEADS = {
    "mlp_sr": ("head=mlp_sr",),
    "mlp": ("head=mlp",),
    "cnn": ("head=cnn",),
    "linear": ("head=linear",),
    "cnn_sr": ("head=cnn_sr",),
    "cnn_sr_8x2": ("head=cnn_sr", "head.side=8", "head.depth=2"),
}


@dataclass(frozen=True)
class Setting:
    """What is trained, apart from the seed.

    Attributes:
        study: the table that shows it.
        tuned: name of the setting whose learning rate it uses.
        rates: the rates to choose from.
        seeds: number of seeds.
    """

    study: str
    name: str
    words: tuple[str, ...]
    tuned: str
    rates: tuple[float, ...] = RATES
    seeds: int = len(SEEDS)


@dataclass(frozen=True)
class Run:
    """One training, with all its words."""

    key: str
    study: str
    setting: str
    seed: int
    words: tuple[str, ...]


def dgl(head: str, stages: int) -> tuple[str, ...]:
    return "method=dgl", f"pipeline.stages={stages}", *HEADS[head]


def settings() -> list[Setting]:
    """All settings, in order."""
    found = [Setting("stages", "backprop", (*BASE, *BACKPROP), tuned="backprop")]
    for stages in (6, 3, 2):
        for head in ("mlp_sr", "cnn_sr"):
            name = f"{head} K={stages}"
            words = (*BASE, *dgl(head, stages), *(PROBED if name == MEASURED else ()))
            found.append(Setting("stages", name, words, tuned=f"{head} K=6"))
    for head in HEADS:
        if head not in ("mlp_sr", "cnn_sr"):
            tuned = "cnn_sr K=6" if head.startswith("cnn") else "mlp_sr K=6"
            found.append(Setting("heads", f"{head} K=6", (*BASE, *dgl(head, 6)), tuned))
    sequential = ("method=sequential", "pipeline.stages=6", "head=mlp_sr")
    found += [
        Setting("sequential", "sequential, 10 epochs a layer", (*BASE, *sequential), "mlp_sr K=6"),
        Setting(
            "sequential",
            "sequential, 2 epochs a layer",
            _with(BASE, epochs=2) + sequential,
            "mlp_sr K=6",
        ),
        Setting(
            "sequential",
            "parallel, 12 epochs",
            _with(BASE, epochs=12) + dgl("mlp_sr", 6),
            "mlp_sr K=6",
        ),
    ]
    found += [_dni(name, words) for name, words in ALTERNATIVES.items()]
    found += _asynchronous()
    found += [
        Setting("objectives", name, (*BASE, *dgl("cnn_sr", 6), *words), "cnn_sr K=6", seeds=1)
        for name, words in OBJECTIVES.items()
    ]
    found += [
        Setting(
            "fastcnn", "fastcnn: backprop", (*FAST, *BACKPROP), "fastcnn: backprop", FAST_RATES
        ),
        *(
            Setting(
                "fastcnn", f"fastcnn: K={k}", (*FAST, *dgl("cnn_sr", k)), "fastcnn: K=4", FAST_RATES
            )
            for k in (4, 2)
        ),
    ]
    return found


OBJECTIVES: Mapping[str, tuple[str, ...]] = {
    "side 8": ("head.side=8",),
    "depth 2": ("head.depth=2",),
    "infopro": (
        *("local=infopro", "local.decoder_size=16"),
        *("local.reconstruction=[1.0,0.0]", "local.task=[1.0,1.0]"),
    ),
    "auglocal, depth 1": ("local=auglocal", "local.depth=1"),
    "auglocal, depth 2": ("local=auglocal",),
    "predsim": ("local=predsim", "local.similarity=0.5"),
    "man": ("local=man",),
    "label smoothing": ("label_smoothing=0.1",),
    "heads at twice the rate": ("optimizer.head_lr_factor=2.0",),
    "heads without decay": ("optimizer.head_weight_decay=0.0",),
    "dropout in heads": ("head.dropout=0.2",),
    "heads alone for an epoch": ("local.head_warmup=391",),
    "early stages slower": (
        "per_stage=[{local:{weight:0.3}},{local:{weight:0.5}},{local:{weight:0.7}},{},{},{}]",
    ),
}
"""Objectives and settings of heads at K = 6, with heads `cnn_sr`."""


ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "DGL": ("method=dgl", "pipeline.stages=3", "head=dni", "head.reads=output"),
    "backprop": BACKPROP,
    "Features Replay": ("method=features_replay", "pipeline.stages=3"),
    "DDG": ("method=ddg", "pipeline.stages=3"),
    "cDNI": ("method=dni", "pipeline.stages=3", "method.delay=0", "method.context=labels"),
    "DNI": ("method=dni", "pipeline.stages=3", "method.delay=0"),
}


def _dni(name: str, words: tuple[str, ...]) -> Setting:
    own = f"alternatives: {name}"
    return Setting("alternatives", own, (*DNI, *words), tuned=own, rates=ADAM_RATES)


def _asynchronous() -> list[Setting]:
    """Simulated with one slow stage and by the size of the buffers, and in real processes."""
    own = ("method=dgl_async", "pipeline.stages=6", "head=mlp_sr", "method.simulate=true")
    tuned = "mlp_sr K=6"
    found = []

    def add(name: str, buffer: int, stage: int | None, slowdown: float, seeds: int) -> None:
        factors = [slowdown if j == stage else 1.0 for j in range(6)]
        words = (f"method.buffer={buffer}", f"method.slowdown={factors}")
        found.append(Setting("asynchronous", name, (*BASE, *own, *words), tuned, seeds=seeds))

    for slowdown in (1.0, 1.2, 1.5, 2.0):
        add(f"S={slowdown:g} M=50", 50, 2, slowdown, len(SEEDS))
    for buffer in (1, 5, 20):
        add(f"S=1.2 M={buffer}", buffer, 2, 1.2, len(SEEDS))
    for stage in (0, 1, 3, 4, 5):
        add(f"S=1.2 M=50, stage {stage}", 50, stage, 1.2, 1)
    real = ("method=dgl_async", "pipeline.stages=2", "head=mlp_sr", "method.buffer=50")
    for slowdown in (1.0, 1.5):
        words = (*BASE, *real, f"method.slowdown=[1.0,{slowdown}]")
        name = f"real K=2, S={slowdown:g}"
        found.append(Setting("asynchronous", name, words, "mlp_sr K=6", seeds=1))
    return found


def _with(words: Sequence[str], **values: object) -> tuple[str, ...]:
    """`words` with other values of some keys."""
    kept = (word for word in words if word.partition("=")[0] not in values)
    return (*kept, *(f"{key}={value}" for key, value in values.items()))


def tuning_runs(setting: Setting) -> list[Run]:
    """The runs that find the learning rate of a setting."""
    return [
        Run(
            f"tuning/{setting.name}/{rate:g}",
            "tuning",
            setting.name,
            SEEDS[0],
            (
                *_with(setting.words, epochs=TUNING_EPOCHS),
                f"optimizer.lr={rate:g}",
                f"seed={SEEDS[0]}",
            ),
        )
        for rate in setting.rates
    ]


def next_runs(done: Mapping[str, float]) -> list[Run]:
    """The runs that can be made now: the first seed of every setting, study after study, then the
    second.

    Args:
        done: key of a run -> accuracy of its last exit.
    """
    found: list[Run] = []
    by_name = {setting.name: setting for setting in settings()}
    for setting in by_name.values():
        tuned = by_name[setting.tuned]
        missing = [run for run in tuning_runs(tuned) if run.key not in done]
        if missing:
            found += [run for run in missing if run not in found]
            continue
        words = (*setting.words, f"optimizer.lr={best_rate(tuned, done):g}")
        for seed in SEEDS[: setting.seeds]:
            key = f"{setting.study}/{setting.name}/{seed}"
            run = Run(key, setting.study, setting.name, seed, (*words, f"seed={seed}"))
            if key not in done:
                found.append(run)
    studies = list(dict.fromkeys(setting.study for setting in by_name.values()))
    return sorted(found, key=lambda run: (run.seed, studies.index(by_name[run.setting].study)))


def best_rate(setting: Setting, done: Mapping[str, float]) -> float:
    """The rate of the tuning run with the best last exit."""
    by_rate = {
        rate: done[run.key] for rate, run in zip(setting.rates, tuning_runs(setting), strict=True)
    }
    return max(by_rate, key=by_rate.__getitem__)
