"""A queue that is fair between tenants: deficit round robin (Shreedhar and Varghese 1995).

Each tenant has a line of its own, and lines are served in turn. A line that is visited may spend a quantum, and what it
does not spend it keeps while it waits, so that lines of long and of short items get the same share of the work.

While two tenants both wait, the costs served to them differ by at most one quantum and one item of each.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Line(Generic[T]):
    items: deque[tuple[T, int]] = field(default_factory=deque)
    cost: int = 0
    deficit: int = 0


class FairQueue(Generic[T]):
    """Items by tenant, each with a cost; not safe between threads, whoever uses it holds a lock."""

    def __init__(self, *, quantum: int) -> None:
        """Start empty.

        Args:
            quantum: What a line may spend at a visit, in units of cost; about the cost of a long item.
        """
        self._quantum = quantum
        self._lines: OrderedDict[str, _Line[T]] = OrderedDict()  # the first one is visited next
        self._cost = 0

    def __len__(self) -> int:
        """How many items wait."""
        return sum(len(line.items) for line in self._lines.values())

    @property
    def cost(self) -> int:
        """Of all that wait."""
        return self._cost

    def cost_of(self, tenant: str) -> int:
        """Of what waits in one line."""
        return self._lines[tenant].cost if tenant in self._lines else 0

    def push(self, item: T, *, tenant: str, cost: int) -> None:
        """Put an item at the end of its tenant's line.

        Args:
            item: To be taken later.
            tenant: Whose line; a new line is visited last.
            cost: At least 1.
        """
        line = self._lines.setdefault(tenant, _Line())
        line.items.append((item, cost))
        line.cost += cost
        self._cost += cost

    def take(self, *, budget: int) -> list[T]:
        """The next items in fair order, at least one if any waits, of a total cost within the budget otherwise."""
        taken: list[T] = []
        spent = 0
        while self._lines:
            tenant, line = next(iter(self._lines.items()))
            item, cost = line.items[0]
            if taken and spent + cost > budget:
                return taken  # the same line is visited first next time, and has its deficit still
            if cost > line.deficit:
                line.deficit += self._quantum
                self._lines.move_to_end(tenant)
                continue
            line.items.popleft()
            line.deficit -= cost
            line.cost -= cost
            self._cost -= cost
            spent += cost
            taken.append(item)
            if not line.items:
                del self._lines[tenant]  # its deficit goes with it: who does not wait saves nothing up
        return taken

    def tenants(self) -> list[str]:
        """Who waits, the one that is visited next first."""
        return list(self._lines)

    def take_of(self, tenant: str) -> tuple[T, int]:
        """The next item of one line and its cost, for who shares out something else than costs; the line goes last."""
        line = self._lines[tenant]
        item, cost = line.items.popleft()
        line.cost -= cost
        self._cost -= cost
        self._lines.move_to_end(tenant)
        if not line.items:
            del self._lines[tenant]
        return item, cost

    def remove(self, unwanted: Callable[[T], bool], *, tenant: str) -> None:
        """Take items out of a line without serving them."""
        if tenant not in self._lines:
            return
        line = self._lines[tenant]
        kept = deque((item, cost) for item, cost in line.items if not unwanted(item))
        cost = sum(cost for _, cost in kept)
        self._cost += cost - line.cost
        line.items, line.cost = kept, cost
        if not kept:
            del self._lines[tenant]

    def clear(self) -> list[T]:
        """Take everything out, in no particular order."""
        items = [item for line in self._lines.values() for item, _ in line.items]
        self._lines.clear()
        self._cost = 0
        return items
