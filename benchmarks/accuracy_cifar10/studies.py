"""The runs of the accuracy study, in the order in which they are made.

Every run is `dglpipe train` with the words of its setting. A setting that is tuned uses the best of
three learning rates, found with one seed and four epochs.
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
        tuned: name of the setting whose learning rate it uses; None: `words` have the rate.
        rates: the rates to choose from.
        seeds: number of seeds.
    """

    study: str
    name: str
    words: tuple[str, ...]
    tuned: str | None = None
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
            found.append(Setting("stages", name, words, tuned=name))
    for head in HEADS:
        name = f"{head} K=6"
        if head not in ("mlp_sr", "cnn_sr"):
            found.append(Setting("heads", name, (*BASE, *dgl(head, 6)), tuned=name))
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
    return found


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
        found.append(Setting("asynchronous", name, words, "mlp_sr K=2", seeds=1))
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
    """The runs that can be made now: study after study, within a study the first seed of every
    setting before the second.

    Args:
        done: key of a run -> accuracy of its last exit.
    """
    found: list[Run] = []
    by_name = {setting.name: setting for setting in settings()}
    for setting in by_name.values():
        words = setting.words
        if setting.tuned is not None:
            tuning = tuning_runs(by_name[setting.tuned])
            missing = [run for run in tuning if run.key not in done and run not in found]
            if any(run.key not in done for run in tuning):
                found += missing
                continue
            words = (*words, f"optimizer.lr={best_rate(by_name[setting.tuned], done):g}")
        for seed in SEEDS[: setting.seeds]:
            key = f"{setting.study}/{setting.name}/{seed}"
            run = Run(key, setting.study, setting.name, seed, (*words, f"seed={seed}"))
            if key not in done:
                found.append(run)
    studies = list(dict.fromkeys(setting.study for setting in by_name.values()))
    return sorted(found, key=lambda run: (studies.index(by_name[run.setting].study), run.seed))


def best_rate(setting: Setting, done: Mapping[str, float]) -> float:
    """The rate of the tuning run with the best last exit."""
    by_rate = {
        rate: done[run.key] for rate, run in zip(setting.rates, tuning_runs(setting), strict=True)
    }
    return max(by_rate, key=by_rate.__getitem__)
