"""Eight bytes at a time for compiled functions, at any place of a buffer (SIMD within a register).

The first byte of a word is its lowest. A caller keeps eight bytes behind the last that it looks at:
no bound is checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from flows.events.compiling import compiled

Word = np.uint64

PADDING = bytes(8)
"""Behind a buffer that is read by words."""
_LOW, _HIGH = Word(0x0101010101010101), Word(0x8080808080808080)
_QUOTES, _BACKSLASHES, _SPACES = (_LOW * Word(ord(char)) for char in '"\\ ')
_ZEROS, _TO_HIGH = _LOW * Word(ord("0")), _LOW * Word(0x80 - 10)
_BYTES, _PAIRS, _FOURS = (
    Word(0x0F0F0F0F0F0F0F0F),
    Word(0x00FF00FF00FF00FF),
    Word(0x0000FFFF0000FFFF),
)
_BY_10, _BY_100, _BY_10000 = Word(10 << 8 | 1), Word(100 << 16 | 1), Word(10_000 << 32 | 1)
_8, _16, _32, _64 = map(Word, (8, 16, 32, 64))


@intrinsic
def start(_context: Any, array: Any) -> Any:
    """Pointer to an array's first value; indexing it costs no count of references and no check."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), build


@intrinsic
def load(_context: Any, data: Any, at: Any) -> Any:
    """The word at a place behind a pointer to bytes."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load(_word_at(builder, *args), align=1)

    return types.uint64(data, at), build


@intrinsic
def store(_context: Any, data: Any, at: Any, word: Any) -> Any:
    """Write a word to a place behind a pointer to bytes."""

    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[2], _word_at(builder, *args[:2]), align=1)
        return context.get_dummy_value()

    return types.void(data, at, word), build


def _word_at(builder: Any, data: Any, at: Any) -> Any:
    return builder.bitcast(builder.gep(data, [at]), ir.IntType(64).as_pointer())


@intrinsic
def _trailing_zeros(_context: Any, word: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(word), build


@compiled
def _bytes_before(marks: Word) -> int:
    """How many bytes stand before the first whose highest bit is set, 8 if there is none."""
    num: int = _trailing_zeros(marks) >> 3
    return num


@compiled
def plain_letters(word: Word) -> int:
    """How many letters of a JSON string come before a quote, a backslash or a control byte."""
    quotes, backslashes = word ^ _QUOTES, word ^ _BACKSLASHES
    ends = (quotes - _LOW & ~quotes) | (backslashes - _LOW & ~backslashes)
    return _bytes_before((ends | (word - _SPACES & ~word)) & _HIGH)


@compiled
def digits(word: Word) -> tuple[int, np.int64]:
    """How many decimal digits come first, and their value."""
    values = word ^ _ZEROS
    num = _bytes_before((values + _TO_HIGH | values) & _HIGH)
    if num == 0:
        return 0, np.int64(0)
    values <<= _64 - Word(num) * _8
    values = (values & _BYTES) * _BY_10 >> _8
    values = (values & _PAIRS) * _BY_100 >> _16
    return num, np.int64((values & _FOURS) * _BY_10000 >> _32)
