"""What a panic of Bytewax means, where several processes run a flow.

When one of them is gone, the threads that talk to it panic in the others. They do so, too, in the
one whose own step has failed, and the error of the step is lost. So steps remember what they raise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LOST_PEER = re.compile("(Send|Recv) thread panic|timely-dataflow|timely communication error")
"""What Bytewax says of such threads, and of others that wait for them."""
_errors: list[Exception] = []


class Disbanded(RuntimeError):
    """Another process of the flow is gone; the message says what to do."""

    def __init__(self, hint: str = "") -> None:
        super().__init__(
            "another process of this flow is gone: killed, unreachable, or ended by an error that "
            f"it tells; start all of them again, nothing is lost{hint}"
        )


def remembering(step: Callable[P, R]) -> Callable[P, R]:
    """A step of a flow that does the same, and remembers the error that it raises."""

    @wraps(step)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return step(*args, **kwargs)
        except StopIteration:  # the end of an input
            raise
        except Exception as error:
            _errors.append(error)
            raise

    return remembered


@contextmanager
def telling_whose_fault() -> Iterator[None]:
    """Inside, a process that ends since another is gone says so, or what its own step raised.

    Raises:
        Disbanded: no step of this process has failed.
    """
    _errors.clear()
    try:
        yield
        return
    except BaseException as error:  # a panic is no Exception
        if not LOST_PEER.search(str(error)):
            raise
    raise _errors[0] if _errors else Disbanded
