"""Local objectives: modules, tensors, losses and costs, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dglpipe.data import DataInfo, open_data
from dglpipe.errors import ConfigError
from dglpipe.methods.local.infopro import Decoder
from dglpipe.methods.local.man import ManHead
from dglpipe.methods.local.predsim import similarities
from dglpipe.models.branches import branch_costs
from dglpipe.partition.estimate import estimate
from dglpipe.pipeline.message import Direction
from dglpipe.pipeline.stage_module import LocalStep
from dglpipe.runtime.plan import make_plan, plan_run
from harness.configs import build_stages, in_test_all, layout, make_config


def staged(stages, *overrides, meta=False, rows=None):
    config = make_config(*overrides)
    info = open_data(config.data, config.seed, 3).info
    return build_stages(config, info, stages, meta, rows)


def planned(stages, *overrides):
    return make_plan(make_config(*overrides), layout(stages, 1))


class TestInfopro:
    def test_weights_go_linearly_over_the_stages_with_a_head(self):
        network = staged(4, "local=infopro", "local.reconstruction=[3.0,1.0]")
        assert [one.reconstruction for one in network.method.local] == [3.0, 2.0, 1.0, 0.0]

    @pytest.mark.parametrize(
        ("ends", "readers"), [("[5.0,1.0]", [True] * 2), ("[5.0,0.0]", [True, False])]
    )
    def test_the_image_goes_as_far_as_a_stage_needs_it(self, ends, readers):
        plan = planned(4, "local=infopro", f"local.reconstruction={ends}", "pipeline.split=[1,2,3]")
        images = [[field.name for field in plan.extras(link)] for link in range(3)]
        assert images == [["image"], ["image"] if all(readers) else [], []]
        assert plan.row_bytes(0) == plan.spec.row_bytes(0) + 8 * 8

    def test_a_stage_of_weight_zero_has_no_decoder(self):
        network = staged(3, "local=infopro")
        assert [sorted(network.auxiliary(j)) for j in range(3)] == [
            ["decoder", "head"],
            ["head"],
            [],
        ]

    def test_bytes_are_the_pixels(self):
        network = staged(2, "local=infopro")
        pixels = torch.arange(256, dtype=torch.uint8).view(4, 8, 8, 1)
        images = network.method.local[0].data.pixels(pixels)
        assert torch.equal(network.method.local[0]._bytes(images), pixels.permute(0, 3, 1, 2))

    def test_a_smaller_decoder_has_fewer_flops_and_the_plan_counts_them(self):
        found = []
        for words in ((), ("local=infopro",), ("local=infopro", "local.decoder_size=4")):
            network = staged(2, *words, "data.image_size=16", meta=True)
            found.append(estimate(network, rows=8)[0])
        task, whole, small = found
        assert task.head_flops_per_sample < small.head_flops_per_sample
        assert small.head_flops_per_sample < whole.head_flops_per_sample
        assert task.activation_bytes < small.activation_bytes < whole.activation_bytes

    def test_the_plan_counts_the_image_on_the_links(self):
        words = ("local=infopro", "local.reconstruction=[5.0,1.0]")
        task, infopro = (estimate(staged(3, *own, meta=True), 8) for own in ((), words))
        more = [
            b.link_bytes_per_sample - a.link_bytes_per_sample
            for a, b in zip(task, infopro, strict=True)
        ]
        assert more == [3 * 8 * 8, 0, 0]
        assert infopro[1].buffer_bytes > task[1].buffer_bytes

    def test_tokens_reconstruct_the_input_of_their_stage(self):
        model = ("model=torchvision", "model.name=vit_b_16", "data.image_size=32")
        network = staged(
            3, *model, "model.args={image_size:32}", "local=infopro",
            "local.reconstruction=[5.0,1.0]", "pipeline.split=[1,2]", meta=True,
        )  # fmt: skip
        assert "decoder" not in network.auxiliary(0)
        assert isinstance(network.auxiliary(1)["decoder"], nn.Linear)
        for link in range(2):
            assert network.method.extra_bytes(link, network.spec) == 0

    def test_a_decoder_larger_than_the_images_is_refused(self):
        with pytest.raises(ConfigError, match=r"local\.decoder_size: got 9; allowed: 1 to 8"):
            planned(2, "local=infopro", "local.decoder_size=9")

    def test_maps_that_are_channels_last_are_decoded(self):
        features = torch.randn(2, 4, 4, 6)
        decoder = Decoder(6, 12, 3, [8, 8])
        assert decoder(features.movedim(3, 1)).shape == (2, 3, 8, 8)

    def test_images_that_are_not_pixels_are_refused(self):
        words = ("data=custom", "data.target=harness.plug_ins:float_images")
        with pytest.raises(ConfigError, match=r"local\.name: got 'infopro'.*not pixels of 8 bits"):
            planned(2, *words, "local=infopro")


class TestMan:
    def test_the_copies_have_the_initial_weights_of_the_next_stage(self):
        network = staged(3, "local=man")
        head = network.auxiliary(0)["head"]
        named = dict(network.modules[1].named_parameters())
        for copy in (head.learned, head.average):
            for name, one in copy.named_parameters():
                assert torch.equal(one, named[name]) and one is not named[name]
        learned = {name for name, one in head.named_parameters() if one.requires_grad}
        assert "scale" in learned and "learned.layers.2.conv.weight" in learned
        assert not any(name.startswith("average") for name in learned)
        assert "scale" not in dict(staged(2, "local=man", "local.scale=fixed").auxiliary(0))

    def test_a_plan_has_the_message(self):
        words = ("local=man", "local.every=4", "batch_size=8")
        estimates = estimate(staged(3, *words, meta=True), 8)
        plan = planned(3, *words)
        form = plan.spec.following[1]
        count = sum(form.parameters.values())
        assert form.parameters["layers.4.conv.weight"] == 16 * 16 * 9
        (down,) = plan.formats(1, Direction.DOWN).values()
        assert down.nbytes(8) == down.nbytes(1) == 64 + 4 * count
        assert [plan.row_bytes_down(j) for j in (0, 2)] == [0, -(-4 * count // 32)]
        task = estimate(staged(3, "batch_size=8", "head.reads=output", meta=True), 8)
        more = [
            one.buffer_bytes - other.buffer_bytes
            for one, other in zip(estimates, task, strict=True)
        ]
        # A slot and a message under way, on either side: each n numbers.
        first, second = (4 * sum(plan.spec.following[j].parameters.values()) for j in (0, 1))
        assert more == [2 * first, 2 * first + 2 * second, 2 * second]
        assert [one.down_bytes_per_sample for one in estimates] == [
            plan.row_bytes_down(j) for j in range(3)
        ]

    def test_a_message_has_no_classifier(self):
        man, task = (
            estimate(staged(6, "head.reads=output", *own, meta=True), 8)
            for own in (("local=man",), ())
        )
        convolution, norm = 16 * 16 * 9, 2 * 16
        # A slot and two messages under way.
        assert man[5].buffer_bytes - task[5].buffer_bytes == 3 * 4 * (convolution + norm)

    def test_only_links_between_processes_wait(self):
        words = ("per_stage=[{local:{name:man,lag:0}},{},{}]",)
        method = staged(3, *words).method
        assert [method.utilization(layout(3, p)) for p in (1, 2, 3)] == [1.0, 1.0, 0.75]

    def test_it_costs_the_segment_twice_without_the_gradient_of_the_average(self):
        words = ("head.reads=output", "head=linear")
        task, man = (
            staged(2, *words, *own, meta=True).auxiliary_flops(0) for own in ((), ("local=man",))
        )
        convolution, linear = 2 * 9 * 8 * 16 * 2 * 2, 2 * 8 * 2 * 2 * 10
        assert task == 3 * linear
        assert man == convolution * (3 + 2) + 3 * 2 * linear

    @pytest.mark.parametrize("method", ["sequential", "dgl_async"])
    def test_methods_without_a_way_down_refuse_it(self, method):
        with pytest.raises(
            ConfigError, match=rf"local: got 'man'; allowed: task, .* with method={method}"
        ):
            planned(2, f"method={method}", "local=man")

    def test_a_method_with_another_runner_refuses_it(self):
        words = ("method=custom", "method.target=harness.plug_ins:RunnerMethod")
        with pytest.raises(ConfigError, match="local: got 'man'"):
            planned(2, *words, "local=man")

    @pytest.mark.parametrize("target", ["ForeignHeadMethod", "NothingDownMethod"])
    def test_methods_without_its_head_or_tensor_refuse_it(self, target):
        words = ("method=custom", f"method.target=harness.plug_ins:{target}")
        with pytest.raises(ConfigError, match=r"local\.name: got .*man"):
            planned(2, *words, "local=man")
        planned(2, *words)

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_segments_with_hooks_are_copied(self):
        words = ("model=custom", "model.target=harness.plug_ins:normed_network")
        head = staged(2, *words, "pipeline.split=[1]", "local=man").auxiliary(0)["head"]
        features = torch.rand(2, 4, 8, 8)
        before = head(features)
        with torch.no_grad():
            dict(head.learned.named_parameters())["2.weight_v"].add_(torch.rand(4, 4, 3, 3))
        assert not torch.equal(head(features), before)

    def test_segments_that_cannot_be_copied_are_refused(self):
        class Rigid(nn.ReLU):
            def __deepcopy__(self, memo):
                raise RuntimeError("rigid")

        with pytest.raises(ConfigError, match=r"local\.name: got 'man'.*cannot be copied.*rigid"):
            ManHead(Rigid(), nn.Identity(), True)

    def test_the_last_stage_alone_refuses_it(self):
        with pytest.raises(ConfigError, match=r"per_stage\[1\]\.local: got 'man'"):
            planned(2, "per_stage=[{},{local:man}]")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("local=man local.lag=8", r"local\.lag: got 8; allowed: 0 to 7"),
            ("local=man local.lag=5 local.every=4", r"local\.lag: got 5; allowed: 0 to 4"),
            ("local=man local.every=9", r"local\.every: got 9; allowed: 1 to 8"),
            (
                "per_stage=[{local:{name:man,lag:8}},{}]",
                r"per_stage\[0\]\.local\.lag: got 8; allowed: 0 to 7",
            ),
        ],
    )
    def test_weights_that_are_never_used_are_refused(self, words, message):
        with pytest.raises(ConfigError, match=message):
            planned(2, *words.split())

    def test_a_classifier_alone_above_the_stage_is_refused(self):
        words = ("model=custom", "model.target=harness.plug_ins:mlp_network", "local=man")
        with pytest.raises(ConfigError, match=r"pipeline\.split.*only the classifier"):
            planned(3, *words)
        planned(2, *words, "pipeline.split=auto")


class TestPredsim:
    def test_similarities_are_cosines_of_deviations(self):
        maps = torch.randn(5, 3, 4, 4)
        rows = maps.flatten(2).std(dim=2)
        rows = rows - rows.mean(dim=1, keepdim=True)
        for a in range(5):
            for b in range(5):
                cosine = torch.cosine_similarity(rows[a], rows[b], dim=0)
                assert similarities(maps)[a, b] == pytest.approx(float(cosine), abs=1e-5)

    def test_equal_classes_have_similarity_one(self):
        found = similarities(torch.eye(4)[torch.tensor([0, 1, 0])])
        assert found[0, 2] == pytest.approx(1) and found[0, 1] < 0

    def test_rows_of_zeros_have_finite_gradients(self):
        maps = torch.zeros(3, 2, 4, 4, requires_grad=True)
        similarities(maps).square().sum().backward()
        assert maps.grad.isfinite().all()


class TestAuglocal:
    def test_heads_become_smaller_up_the_chain(self):
        network = staged(6, "local=auglocal", "local.depth=4")
        assert [one.depth for one in network.method.local[:5]] == [4, 4, 3, 3, 2]
        convolutions = [
            sum(isinstance(one, nn.Conv2d) for one in network.auxiliary(j)["head"].modules())
            for j in range(5)
        ]
        assert convolutions == [4, 4, 3, 2, 1]  # no more than segments above the stage

    def test_a_residual_network_has_residual_heads(self):
        words = ("model=resnet50", "data.image_size=32", "local=auglocal")
        head = staged(2, *words, "pipeline.split=[2]", meta=True).auxiliary(0)["head"]
        assert [type(one).__name__ for one in head[:2]] == ["Bottleneck", "Bottleneck"]
        assert [one.conv3.out_channels for one in head[:2]] == [1024, 2048]
        assert [one.conv2.stride for one in head[:2]] == [(2, 2), (2, 2)]

    def test_tokens_have_linear_layers(self):
        model = ("model=torchvision", "model.name=vit_b_16", "data.image_size=32")
        words = (*model, "model.args={image_size:32}", "local=auglocal", "pipeline.split=[4]")
        head = staged(2, *words, meta=True).auxiliary(0)["head"]
        assert sum(isinstance(one, nn.Linear) for one in head.modules()) == 3

    @pytest.mark.parametrize("words", ["local.depth=5", "local.depth=1000"])
    def test_a_depth_without_segments_is_refused(self, words):
        with pytest.raises(
            ConfigError, match=r"local\.depth: got .*; allowed: 1 to 4, the segments"
        ):
            planned(2, "local=auglocal", words, "pipeline.split=[2]")

    def test_a_depth_of_one_stage_is_refused_too(self):
        own = "per_stage=[{},{local:{name:auglocal,depth:50}},{}]"
        with pytest.raises(ConfigError, match=r"local\.depth: got 50"):
            planned(3, own)

    def test_the_kinds_of_blocks_do_not_depend_on_the_objective(self):
        words = ("model=resnet18", "data.image_size=32", "batch_size=2")
        plain, watched = (
            staged(2, *words, *own, meta=True).spec.layers for own in ((), ("local=trgl",))
        )
        assert plain == watched
        assert [layer.kind for layer in plain] == ["plain", *["basic"] * 8]


class TestTrgl:
    @pytest.mark.parametrize("model", ["resnet18", in_test_all("resnet50")])
    def test_branches_are_those_of_the_blocks_and_outputs_are_equal(self, model):
        words = (f"model={model}", "data.image_size=32", "batch_size=2")
        plain, watched = (staged(2, *words, *own).learner(0) for own in ((), ("local=trgl",)))
        kept = []
        last = "bn2" if model == "resnet18" else "bn3"
        for name, module in watched.segments.named_modules():
            if name.endswith(last):
                module.register_forward_hook(
                    lambda _, __, out: kept.append(out.detach().square().mean())
                )
        batch = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
        assert torch.equal(plain.segments(batch), watched.segments(batch))
        costs = [one.take() for one in branch_costs(watched.segments)]
        assert len(costs) == len(kept) > 3
        assert [float(one.detach()) for one in costs] == [float(one) for one in kept]

    def test_nothing_is_measured_in_evaluation_or_without_gradients(self):
        learner = staged(2, "model=resnet20_cifar", "local=trgl").learner(0)
        batch = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            learner.segments(batch)
        learner.eval()
        learner.segments(batch)
        assert all(one._cost is None for one in branch_costs(learner.segments))

    def test_the_memory_of_the_branches_is_planned(self):
        words = ("model=resnet20_cifar", "batch_size=4")
        task, trgl = (
            estimate(staged(2, *words, *own, meta=True), 4)[0] for own in ((), ("local=trgl",))
        )
        branches = 4 * (3 * 16 * 8 * 8 + 32 * 4 * 4) * 4  # rows, maps of 4 blocks, bytes
        assert trgl.activation_bytes - task.activation_bytes == branches
        assert trgl.flops_per_sample == task.flops_per_sample

    def test_only_its_stages_measure(self):
        network = staged(2, "model=resnet20_cifar", "per_stage=[{},{local:trgl}]")
        assert [len(branch_costs(network.learner(j).segments)) for j in range(2)] == [0, 5]

    def test_networks_of_torchvision_are_accepted(self):
        planned(2, "model=resnet18", "data.image_size=32", "batch_size=2", "local=trgl")

    def test_a_network_without_branches_is_refused(self):
        with pytest.raises(ConfigError, match=r"local\.name: got 'trgl'; .* residual branches"):
            planned(2, "local=trgl")


def test_the_weight_scales_the_loss_of_the_head():
    network = staged(2, "per_stage=[{local:{weight:0.25}},{}]")
    learner = network.learner(0)
    batch, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    learning = network.method.learning(0, 0.0)
    loss, logits = LocalStep(learner, learning.loss, learning.objective)(batch, labels, {}, None)
    assert loss == 0.25 * cross_entropy(logits, labels)
    assert network.method.learning(1, 0.0).objective is None


@pytest.mark.parametrize(
    "method", ["backprop", "dni", in_test_all("ddg"), in_test_all("features_replay")]
)
def test_methods_without_a_local_loss_refuse_objectives(method):
    with pytest.raises(
        ConfigError, match=f"local.name: got 'predsim'; allowed: task with method={method}"
    ):
        planned(1 if method == "backprop" else 2, f"method={method}", "local=predsim")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("local.weight=0.5", r"local\.weight: got 0\.5; allowed: 1\.0 with method=backprop"),
        ("local.label_smoothing=0.5", r"local\.label_smoothing: got 0\.5; allowed: null"),
        ("local.head_warmup=1", r"local\.head_warmup: got 1; allowed: 0"),
    ],
)
def test_backprop_ignores_no_setting(words, message):
    with pytest.raises(ConfigError, match=message):
        planned(1, "method=backprop", words)


def test_an_objective_of_the_last_stage_alone_is_refused():
    with pytest.raises(
        ConfigError, match=r"per_stage\[1\]\.local: got 'predsim'; allowed: task or"
    ):
        planned(2, "per_stage=[{},{local:predsim}]")
    planned(2, "local=predsim", "per_stage=[{},{local:{weight:0.5}}]")


@pytest.mark.parametrize(
    ("target", "words", "message"),
    [
        ("Own", "local.weight=0.5", r"local\.weight: got 0\.5; allowed: 1\.0 with method=custom"),
        ("Own", "local=predsim", r"local\.name: got 'predsim'; allowed: task with method=custom"),
        (
            "Heads",
            "local=predsim",
            r"local\.name: got \"predsim, which needs 'similarity' in stage 0\"",
        ),
    ],
)
def test_methods_from_outside_ignore_no_setting(target, words, message):
    method = ("method=custom", f"method.target=harness.plug_ins:{target}Method")
    with pytest.raises(ConfigError, match=message):
        planned(2, *method, words)


def test_a_plan_refuses_what_a_run_refuses():
    with pytest.raises(ConfigError, match=r"local\.name: got 'trgl'"):
        plan_run(make_config("local=trgl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("local=infopro local.reconstruction=[1.0]", r"local\.reconstruction: got \[1\.0\]"),
        ("local=infopro local.task=[1.0,-1.0]", r"local\.task: got -1\.0"),
        ("local=infopro local.decoder_size=0", r"local\.decoder_size: got 0"),
        ("local=predsim local.similarity=1.1", r"local\.similarity: got 1\.1"),
        ("local=trgl local.tau=0.0", r"local\.tau: got 0\.0"),
        ("local=man local.every=0", r"local\.every: got 0"),
        ("local=man local.lag=-1", r"local\.lag: got -1"),
        ("local=man local.momentum=1.5", r"local\.momentum: got 1\.5"),
        ("local=man local.scale=none", r"local\.scale: got 'none'"),
        ("local=auglocal local.depth=0", r"local\.depth: got 0"),
        ("local.weight=-1.0", r"local\.weight: got -1\.0"),
        ("local.label_smoothing=1.0", r"local\.label_smoothing: got 1\.0"),
        ("local.head_warmup=-1", r"local\.head_warmup: got -1"),
        ("head.dropout=1.0", r"head\.dropout: got 1\.0; allowed: a number from 0 to below 1"),
        ("optimizer.head_lr_factor=0.0", r"optimizer\.head_lr_factor: got 0\.0"),
        ("optimizer.head_weight_decay=-1.0", r"optimizer\.head_weight_decay: got -1\.0"),
    ],
)
def test_values_out_of_range_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        make_config(*words.split())


def test_heads_that_learn_alone_in_every_step_are_refused():
    with pytest.raises(ConfigError, match=r"local\.head_warmup: got 8; allowed: 0 to 7"):
        planned(2, "local.head_warmup=8")


@pytest.mark.parametrize("head", ["linear", "mlp", "cnn_sr"])
def test_dropout_is_in_front_of_the_last_layer(head):
    plain, dropped = (
        staged(2, f"head={head}", *own).auxiliary(0)["head"] for own in ((), ("head.dropout=0.5",))
    )
    *_, dropout, last = dropped
    assert isinstance(dropout, nn.Dropout) and isinstance(last, nn.Linear)
    for one, other in zip(plain.parameters(), dropped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_data_info_survives_json():
    info = open_data(make_config().data, 0).info
    assert DataInfo.from_json(json.loads(json.dumps(asdict(info)))) == info
