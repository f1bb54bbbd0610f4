"""The buffer of a message, and its views by phase and number of rows."""

from __future__ import annotations

import pytest
import torch

from dglpipe.data.batch_schedule import Phase
from dglpipe.pipeline.message import ACTIVATIONS, HEADER, LABELS, MessageFormat, contiguous_field
from dglpipe.pipeline.transport import Header, Slot

ROWS = {Phase.TRAIN: 4, Phase.TEST: 9, Phase.PROBE: 9}
FIELDS = (
    contiguous_field(LABELS, torch.int64, ()),
    contiguous_field(ACTIVATIONS, torch.float32, (2, 3)),
)


def make_slot():
    formats = {phase: MessageFormat(rows, FIELDS) for phase, rows in ROWS.items()}
    return Slot(formats, torch.device("cpu"))


def header(phase=Phase.TRAIN, rows=4, number=1):
    return Header(phase, number, rows)


def test_the_buffer_holds_the_largest_message():
    slot = make_slot()
    sizes = [MessageFormat(rows, FIELDS).nbytes(rows) for rows in ROWS.values()]
    assert len(slot.buffer) == max(sizes)
    assert slot.buffer.dtype is torch.uint8


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_views_lie_over_the_message(phase, rows):
    slot = make_slot()
    views, message = slot.views(header(phase, rows)), slot.message(header(phase, rows))
    assert views[LABELS].shape == (rows,)
    assert views[ACTIVATIONS].shape == (rows, 2, 3)
    slot.buffer.zero_()
    for name in (LABELS, ACTIVATIONS):
        views[name].fill_(1)
    last = views[ACTIVATIONS].flatten()[-1:]
    assert message.data_ptr() == slot.buffer.data_ptr()
    assert message.data_ptr() + len(message) == last.data_ptr() + last.element_size()
    assert not slot.buffer[len(message) :].any()


def test_labels_and_activations_begin_on_64_byte_boundaries():
    slot = make_slot()
    start = slot.buffer.data_ptr()
    for tensor in slot.views(header()).values():
        assert (tensor.data_ptr() - start) % 64 == 0


def test_the_header_is_the_first_part():
    slot = make_slot()
    for word, value in zip(slot.header, (1, 5, 3), strict=True):
        word.fill_(value)
    assert slot.views(header())[HEADER].tolist() == slot.words.tolist() == [1, 5, 3]


def test_views_and_messages_are_made_once():
    slot = make_slot()
    assert slot.views(header(number=1)) is slot.views(header(number=2))
    assert slot.message(header(number=1)) is slot.message(header(number=2))
    assert slot.views(header()) is not slot.views(header(rows=3))
    assert slot.views(header()) is not slot.views(header(Phase.TEST))


def test_a_header_reads_as_a_batch():
    assert str(header(Phase.TEST, 3, 12)) == "test batch 12 of 3 rows"
