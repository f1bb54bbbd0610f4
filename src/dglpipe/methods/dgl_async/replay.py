"""What a stage reads in asynchronous learning: the last M batches from below (Algorithm 2).

A pure container: it knows nothing of tensors, links or time.
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
    """Of the producer's output, from 1; outputs that were dropped on the way count."""
    reads: int = 0


class Read(NamedTuple, Generic[T]):
    """What a read gave."""

    value: T
    age: int
    """Outputs of the producer since this one, as far as they are known of."""
    is_repeat: bool


@dataclass(slots=True)
class Usage:
    """What has become of the batches of a buffer."""

    written: int = 0
    reads: int = 0
    """To learn from."""
    repeats: int = 0
    """Of these, of batches that had been read before."""
    handed_on: int = 0
    """Reads of a stage that no longer learns."""
    ages: Counter[int] = field(default_factory=Counter)
    """Number of reads of each age."""
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """What was read to learn from, in order: numbers of the producer's outputs."""
    reads_of_gone: Counter[int] = field(default_factory=Counter)
    """How many of the batches that are no longer there were read how often."""

    def count(self, number: int, age: int, is_repeat: bool, learns: bool) -> None:
        """Notes a read of output `number`."""
        if not learns:
            self.handed_on += 1
            return
        self.reads += 1
        self.repeats += is_repeat
        self.ages[age] += 1
        self.numbers.append(number)


class Replay(Generic[T]):
    """A ring of M batches; a new batch overwrites the oldest.

    Read rules (`method.read_rule`), among the batches that may be read:

    - `paper`: of those read least often, the newest.
    - `authors`: as their code does. It means the same, but its ring index is wrapped one step
      late: once the buffer is full, the batch that is next to be overwritten, the oldest, is
      taken if it is among those read least often (eugenium/DGL, the class of the buffer).

    Args:
        capacity: M, at least 1.
        rule: `paper` or `authors`.
        max_reuse: how often a batch may be read; None: as often as the rule wants.
        max_age: the oldest that may be read, in outputs of the producer; None: any.
    """

    keeps = True
    """Whether a batch that was read stays."""

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
        """Outputs of the producer, where it is known better than by what has come."""
        self._rule = rule
        self._max_reuse = max_reuse
        self._max_age = max_age
        self._entries: list[Entry[T]] = []
        """Oldest first."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def newest(self) -> int:
        """Number of the newest batch; 0 before the first."""
        return self._entries[-1].number if self._entries else 0

    def write(self, value: T, number: int | None = None) -> T | None:
        """Puts a batch in; returns the one that had to go, None while there is room.

        Args:
            number: of the producer's output, larger than those before; None: the next one.

        Raises:
            ValueError: numbers that do not rise.
        """
        number = self.newest + 1 if number is None else number
        if number <= self.newest:
            raise ValueError(f"batch {number} came behind batch {self.newest}")
        gone = self._entries.pop(0) if len(self._entries) == self.capacity else None
        self._entries.append(Entry(value, number))
        self.usage.written += 1
        if gone is None:
            return None
        self.usage.reads_of_gone[gone.reads] += 1
        return gone.value

    def read(self, fresh: bool = False, learns: bool = True) -> Read[T] | None:
        """A batch by the read rule; None: there is none that may be read.

        Args:
            fresh: only one that has not been read yet.
            learns: whether it is learnt from, or only handed on.
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
        """How many of the batches that are still here were read how often."""
        return Counter(entry.reads for entry in self._entries)

    def reads_by_entry(self) -> Counter[int]:
        """How many batches were read how often, gone or here."""
        return self.usage.reads_of_gone + self.left()

    def values(self) -> list[T]:
        """What is in the buffer, oldest first."""
        return [entry.value for entry in self._entries]


class InOrder(Generic[T]):
    """Every batch once, in the order in which it came: synchronous learning."""

    keeps = False

    def __init__(self) -> None:
        self.usage = Usage()
        self._waiting: deque[tuple[T, int]] = deque()
        self._newest = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def write(self, value: T, number: int) -> T | None:
        """Puts a batch in; none has to go."""
        self._waiting.append((value, number))
        self._newest = number
        self.usage.written += 1
        return None

    def read(self, fresh: bool = False, learns: bool = True) -> Read[T] | None:
        """The batch that came first; None: there is none. All are fresh."""
        del fresh
        if not self._waiting:
            return None
        value, number = self._waiting.popleft()
        self.usage.count(number, self._newest - number, False, learns)
        self.usage.reads_of_gone[1] += 1
        return Read(value, self._newest - number, False)

    def left(self) -> Counter[int]:
        """Number of batches that were not read yet."""
        return Counter({0: len(self._waiting)})

    def reads_by_entry(self) -> Counter[int]:
        """How many batches were read how often, gone or here."""
        return self.usage.reads_of_gone + self.left()
