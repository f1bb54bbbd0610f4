"""The replay buffer of asynchronous learning: the last M batches from below (Algorithm 2).

A generic container, independent of tensors, links and time. The *producer* is the stage below.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Entry(Generic[T]):
    """A batch in the buffer."""

    value: T
    number: int
    """Number of the producer's output, from 1; dropped outputs count."""
    reads: int = 0


class Read(NamedTuple, Generic[T]):
    """The result of a read."""

    value: T
    age: int
    """Known number of later outputs of the producer."""
    is_repeat: bool


@dataclass(slots=True)
class Usage:
    """Statistics of the writes and reads of a buffer."""

    written: int = 0
    reads: int = 0
    """Reads for learning."""
    repeats: int = 0
    """Reads for learning of batches that had been read before."""
    handed_on: int = 0
    """Reads of a stage that has made its updates and only computes outputs."""
    ages: Counter[int] = field(default_factory=Counter)
    """Age -> number of reads for learning."""
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Output numbers of the batches read for learning, in order."""
    reads_of_gone: Counter[int] = field(default_factory=Counter)
    """Number of reads -> number of batches, for the batches that have left the buffer."""

    def count(self, number: int, age: int, is_repeat: bool, learns: bool) -> None:
        """Counts a read of output `number`."""
        if not learns:
            self.handed_on += 1
            return
        self.reads += 1
        self.repeats += is_repeat
        self.ages[age] += 1
        self.numbers.append(number)


class Replay(Generic[T]):
    """A ring of M batches; a new batch overwrites the oldest.

    Read rules (`method.read_rule`) select among the batches that may be read:

    - `paper`: the newest of the least-read batches.
    - `authors`: the rule of the authors' code (eugenium/DGL, buffer class). The code intends the
      same rule, but wraps its ring index one step late: if the buffer is full and the oldest batch
      is one of the least-read batches, the code selects the oldest batch.

    Args:
        capacity: M, at least 1.
        rule: `paper` or `authors`.
        max_reuse: maximum number of reads of a batch; None: no limit.
        max_age: maximum age of a batch, in later outputs of the producer; None: no limit.
    """

    keeps = True
    """Whether a batch stays in the buffer after a read."""

    def __init__(
        self,
        capacity: int,
        rule: str = "paper",
        max_reuse: int | None = None,
        max_age: int | None = None,
    ) -> None:
        self.capacity = capacity
        self.usage = Usage()
        self.produced = 0
        """Number of outputs of the producer, including dropped outputs; 0 if unknown."""
        self._rule = rule
        self._max_reuse = max_reuse
        self._max_age = max_age
        self._entries: list[Entry[T]] = []
        """Entries, oldest first."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def newest(self) -> int:
        """Number of the newest batch; 0 before the first."""
        return self._entries[-1].number if self._entries else 0

    def write(self, value: T, number: int | None = None) -> T | None:
        """Adds a batch; returns the batch that it replaces, or None if the buffer was not full.

        Args:
            number: number of the producer's output; None: one more than the newest.

        Raises:
            ValueError: `number` is not larger than the number of the newest batch.
        """
        number = self.newest + 1 if number is None else number
        if number <= self.newest:
            raise ValueError(f"batch {number} was written after batch {self.newest}")
        replaced = self._entries.pop(0) if len(self._entries) == self.capacity else None
        self._entries.append(Entry(value, number))
        self.usage.written += 1
        if replaced is None:
            return None
        self.usage.reads_of_gone[replaced.reads] += 1
        return replaced.value

    def read(self, fresh: bool = False, learns: bool = True) -> Read[T] | None:
        """The batch that the read rule selects; None: no batch may be read.

        Args:
            fresh: select only among batches that have not been read yet.
            learns: whether the stage learns from the batch, or only computes its output.
        """
        entry = self._choose(1 if fresh else self._max_reuse)
        if entry is None:
            return None
        age = self._age(entry)
        read = Read(entry.value, age, entry.reads > 0)
        entry.reads += 1
        self.usage.count(entry.number, read.age, read.is_repeat, learns)
        return read

    def _choose(self, most: int | None) -> Entry[T] | None:
        allowed = [
            entry
            for entry in self._entries
            if (self._max_age is None or self._age(entry) <= self._max_age)
            and (most is None or entry.reads < most)
        ]
        if not allowed:
            return None
        least = min(entry.reads for entry in allowed)
        candidates = [entry for entry in allowed if entry.reads == least]
        is_full = len(self._entries) == self.capacity
        if self._rule == "authors" and is_full and candidates[0] is self._entries[0]:
            return candidates[0]
        return candidates[-1]

    def _age(self, entry: Entry[T]) -> int:
        return max(self.newest, self.produced) - entry.number

    def left(self) -> Counter[int]:
        """Number of reads -> number of batches, for the batches in the buffer."""
        return Counter(entry.reads for entry in self._entries)

    def reads_by_entry(self) -> Counter[int]:
        """Number of reads -> number of batches, for all batches ever written."""
        return self.usage.reads_of_gone + self.left()

    def values(self) -> list[T]:
        """The batches in the buffer, oldest first."""
        return [entry.value for entry in self._entries]


class InOrder(Generic[T]):
    """A queue: every batch is read once, in order of arrival, as in synchronous learning."""

    keeps = False

    def __init__(self) -> None:
        self.usage = Usage()
        self._waiting: deque[tuple[T, int]] = deque()
        self._newest = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def write(self, value: T, number: int) -> T | None:
        """Adds a batch; always returns None, because no batch is replaced."""
        self._waiting.append((value, number))
        self._newest = number
        self.usage.written += 1
        return None

    def read(self, fresh: bool = False, learns: bool = True) -> Read[T] | None:
        """Removes and returns the oldest batch; None: the queue is empty. `fresh` has no effect."""
        del fresh
        if not self._waiting:
            return None
        value, number = self._waiting.popleft()
        self.usage.count(number, self._newest - number, False, learns)
        self.usage.reads_of_gone[1] += 1
        return Read(value, self._newest - number, False)

    def left(self) -> Counter[int]:
        """{0: number of batches in the queue}: none of them has been read."""
        return Counter({0: len(self._waiting)})

    def reads_by_entry(self) -> Counter[int]:
        """Number of reads -> number of batches, for all batches ever written."""
        return self.usage.reads_of_gone + self.left()
