"""Control experiment: the teacher scores another row of the same domain, never the row itself.

It keeps the distribution of the teacher's predictions within a domain, and takes away what they say
about the impression. A student that still gains has gained from something else. The other row is
the previous one of the same domain in the same partition, which no batch boundary or restart moves.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


class PreviousRows:
    """The last row of each domain that one partition has seen."""

    def __init__(self, state: bytes | None) -> None:
        self._last: pa.Table | None = None
        if state is not None:
            self._last = pa.ipc.open_stream(state).read_all()

    def of(self, table: pa.Table) -> pa.Table:
        """For each row the previous one of its domain; the very first stands for itself."""
        if not table.num_rows:
            return table
        rows = pa.concat_tables([self._last, table]) if self._last is not None else table
        rows = rows.combine_chunks()
        domains = rows["domain"].combine_chunks().dictionary_encode().indices.to_numpy()
        order = np.argsort(domains, kind="stable")
        first_of_domain = np.ones(len(order), dtype=bool)
        first_of_domain[1:] = domains[order][1:] != domains[order][:-1]
        before = np.where(first_of_domain, order, np.roll(order, 1))
        previous = np.empty_like(order)
        previous[order] = before
        last_of_domain = np.roll(first_of_domain, -1)
        last_of_domain[-1] = True
        self._last = rows.take(pa.array(np.sort(order[last_of_domain])))
        return rows.take(pa.array(previous[rows.num_rows - table.num_rows :]))

    def state(self) -> bytes | None:
        """Plain data from which another process goes on."""
        if self._last is None:
            return None
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._last.schema) as writer:
            writer.write_table(self._last)
        return bytes(sink.getvalue())
