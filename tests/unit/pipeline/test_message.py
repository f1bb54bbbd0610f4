import pytest
import torch

from dglpipe.pipeline.message import (
    ACTIVATIONS,
    ALIGNMENT,
    HEADER,
    LABELS,
    MessageFormat,
    contiguous_field,
    recorded_field,
)


def maps(rows, channels=3, side=4):
    batch = torch.arange(rows * channels * side * side, dtype=torch.float32)
    return batch.view(rows, channels, side, side).to(memory_format=torch.channels_last)


@pytest.fixture
def layout():
    labels = contiguous_field(LABELS, torch.int64, ())
    return MessageFormat(5, (labels, recorded_field(ACTIVATIONS, torch.bfloat16, maps(2))))


def test_every_part_lies_on_a_boundary(layout):
    assert layout.offsets() == {LABELS: ALIGNMENT, ACTIVATIONS: 2 * ALIGNMENT}
    assert layout.nbytes(5) == 2 * ALIGNMENT + 5 * 48 * 2


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_batch_of_fewer_rows_is_a_prefix(layout, rows):
    buffer = torch.zeros(layout.nbytes(5), dtype=torch.uint8)
    views = layout.views(buffer, rows)
    views[HEADER].copy_(torch.tensor([0, 7, rows]))
    views[LABELS].copy_(torch.arange(rows))
    views[ACTIVATIONS].copy_(maps(rows))
    arrived = torch.zeros_like(buffer)
    arrived[: layout.nbytes(rows)] = buffer[: layout.nbytes(rows)]
    other = layout.views(arrived, rows)
    assert other[HEADER].tolist() == [0, 7, rows]
    assert other[LABELS].tolist() == list(range(rows))
    assert torch.equal(other[ACTIVATIONS], maps(rows).bfloat16())
    assert not arrived[layout.nbytes(rows) :].any()


def test_the_memory_format_is_kept(layout):
    buffer = torch.zeros(layout.nbytes(5), dtype=torch.uint8)
    activations = layout.views(buffer, 4)[ACTIVATIONS]
    assert activations.shape == (4, 3, 4, 4)
    assert activations.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "batch",
    [
        maps(3),
        maps(3).contiguous(),
        maps(3, channels=1),
        maps(3, side=1),
        torch.randn(3, 7),
        torch.randn(5, 3, 7).transpose(0, 1),  # rows are not adjacent
        torch.randn(3, 4, 10)[:, :, ::2],  # rows with gaps
        torch.randn(3, 7, 5).transpose(1, 2),
    ],
)
def test_a_normalised_tensor_equals_the_sent_tensor(batch):
    """Over a link and within a process a tensor keeps the same values and strides."""
    field = recorded_field(ACTIVATIONS, torch.float32, batch)
    layout = MessageFormat(len(batch), (field,))
    view = layout.views(torch.zeros(layout.nbytes(len(batch)), dtype=torch.uint8), len(batch))
    sent = view[ACTIVATIONS].copy_(batch)
    kept = field.normalise(batch)
    assert sent.stride() == kept.stride()
    assert torch.equal(sent, kept)
    assert torch.equal(kept, batch)


def test_a_tensor_in_the_right_format_is_not_copied():
    batch = maps(3).requires_grad_()
    field = recorded_field(ACTIVATIONS, torch.float32, batch)
    kept = field.normalise(batch)
    assert kept.data_ptr() == batch.data_ptr()
    assert not kept.requires_grad
    assert recorded_field(ACTIVATIONS, torch.bfloat16, batch).normalise(batch).dtype is (
        torch.bfloat16
    )
