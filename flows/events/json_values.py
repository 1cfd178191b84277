"""Values of JSON, read by compiled functions that go from a position to the one behind the value.

Positions are relative to a pointer. NO stands for one where something else than a plain value was
found, be it wrong or just rare: the newline before the lines. No bound is checked: each line ends
in a newline, which no value holds, and PADDING follows the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flows.events.compiling import compiled
from flows.events.words import Word, digits, load, plain_letters, store

NO = 0

TENS = np.array([float(f"1e{power}") for power in range(61)])
"""Powers of ten, each the nearest float64."""
TENS_REST = np.array([float(10**power - int(ten)) for power, ten in enumerate(TENS)])
"""What these lack."""
TENS_OF_WORD = np.array([10**num for num in range(9)])
"""By the number of digits in a word."""
MASKS = np.array([(1 << 8 * num) - 1 for num in range(9)], np.uint64)
"""By the number of bytes of a word that count."""
MOST_DIGITS = 18
"""Always within an int64."""
SLACK = 1e-15
"""Bounds the relative error of digits / TENS: three roundings of 2**-53."""
OFF_SLACK = 1e-14
"""Bounds that of the second part of a number, of which the first is the nearest float64 or so."""
LEAST_FLOAT, MOST_FLOAT = 1.2e-38, 3.4e38
"""Within the normal range of float32."""

SPACE, QUOTE, COMMA, OPEN_LIST, CLOSE_LIST = b' ",[]'
_PLUS, _MINUS, _DOT, _SLASH, _BACKSLASH, _ZERO, _COLON = b"+-./\\0:"
_b, _e, _f, _n, _r, _t, _u, _E, _a = b"befnrtuEa"
_TRUE, _FALS, _NULL = (Word(int.from_bytes(word, "little")) for word in (b"true", b"fals", b"null"))


@compiled
def spaces(data: Any, at: int) -> int:
    """Behind them; NO stays NO."""
    while data[at] == SPACE:
        at += 1
    return at


@compiled
def null(data: Any, at: int) -> int:
    """Behind the literal."""
    return at + 4 if load(data, at) & MASKS[4] == _NULL else NO


@compiled
def anything(data: Any, at: int) -> int:
    """Behind a value that is neither a list nor an object."""
    first = data[at]
    if first == QUOTE:
        return string_without_escapes(data, at)
    if first == _t:
        return at + 4 if load(data, at) & MASKS[4] == _TRUE else NO
    if first == _f:
        return at + 5 if load(data, at) & MASKS[4] == _FALS and data[at + 4] == _e else NO
    return null(data, at) if first == _n else _number(data, at)[0]


@compiled
def string_without_escapes(data: Any, at: int) -> int:
    """Behind a string."""
    num, at = 8, at + 1
    while num == 8:
        num = plain_letters(load(data, at))
        at += num
    return at + 1 if data[at] == QUOTE else NO


@compiled
def _digits(data: Any, at: int, value: int) -> tuple[int, int]:
    """Behind the digits, and `value` with them appended; more than MOST_DIGITS may overflow."""
    while True:
        num, more = digits(load(data, at))
        value = value * TENS_OF_WORD[num] + more
        at += num
        if num < 8:
            return at, value


@compiled
def integer(data: Any, at: int) -> tuple[int, int]:
    """Behind an integer, and the integer."""
    is_negative = data[at] == _MINUS
    begin = at + 1 if is_negative else at
    at, value = _digits(data, begin, 0)
    num = at - begin
    if num == 0 or num > MOST_DIGITS or (data[begin] == _ZERO and (num > 1 or is_negative)):
        return NO, 0
    return at, -value if is_negative else value


@compiled
def _number(data: Any, at: int) -> tuple[int, bool, int, int]:
    """Behind a number, and the number: is it negative, its digits, and their power of ten."""
    is_negative = data[at] == _MINUS
    begin = at + 1 if is_negative else at
    at, digits = _digits(data, begin, 0)
    num, power = at - begin, 0
    if num == 0 or (data[begin] == _ZERO and num > 1):
        return NO, False, 0, 0
    if data[at] == _DOT:
        begin = at = at + 1
        if num == 1 and digits == 0:  # then zeros behind the point do not count either
            num = 0
            while data[at] == _ZERO:
                at += 1
        num -= at
        at, digits = _digits(data, at, digits)
        num += at
        power = begin - at
        if power == 0:
            return NO, False, 0, 0
    if data[at] == _e or data[at] == _E:
        at += 1
        is_small = data[at] == _MINUS
        begin = at + 1 if is_small or data[at] == _PLUS else at
        at, exponent = _digits(data, begin, 0)
        if at == begin or at - begin > 3:
            return NO, False, 0, 0
        power += -exponent if is_small else exponent
    if num > MOST_DIGITS or abs(power) >= len(TENS):
        return NO, False, 0, 0
    return at, is_negative, digits, power


@compiled
def float32(data: Any, at: int) -> tuple[int, np.float32]:
    """Behind a number, and the nearest float32, if float64 is near enough to tell which that is."""
    at, is_negative, digits, power = _number(data, at)
    value = digits / TENS[-power] if power < 0 else digits * TENS[power]
    nearest = np.float32(value * (1 + SLACK))
    if digits != 0 and (
        value < LEAST_FLOAT or value > MOST_FLOAT or nearest != np.float32(value * (1 - SLACK))
    ):
        return NO, nearest
    return at, -nearest if is_negative else nearest


@compiled
def float64(data: Any, at: int) -> tuple[int, float]:
    """Behind a number, and the nearest float64, if twice its precision tells which that is.

    Digits, power of ten and result are sums of two float64 each, as Dekker (1971) has it.
    """
    at, is_negative, digits, power = _number(data, at)
    high = float(digits)
    low = float(digits - int(high))
    ten, rest = TENS[abs(power)], TENS_REST[abs(power)]
    if power < 0:
        near = high / ten
        product, error = _product(near, ten)
        off = (high - product - error - near * rest + low) / ten
    else:
        near, error = _product(high, ten)
        off = error + (high * rest + low * ten)
    value = near + off * (1 + OFF_SLACK)
    if value != near + off * (1 - OFF_SLACK):
        return NO, value
    return at, -value if is_negative else value


@compiled
def _product(a: float, b: float) -> tuple[float, float]:
    """As float64, and what that lacks."""
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    near = a * b
    return near, (a_high * b_high - near + a_high * b_low + a_low * b_high) + a_low * b_low


@compiled
def _halves(value: float) -> tuple[float, float]:
    """Two of 26 bits whose sum it is."""
    scaled = value * (2**27 + 1)
    high = scaled - (scaled - value)
    return high, value - high


@compiled
def integer_list(data: Any, at: int, items: Any, end: int) -> tuple[int, int]:
    """Behind a list of integers, which are appended to `items`, and their new end."""
    at = _list(data, at)
    while at != NO and data[at] != CLOSE_LIST:
        at, items[end] = integer(data, at)
        end += 1
        at = _next_item(data, at)
    return _behind_list(at), end


@compiled
def string_list(
    data: Any, at: int, items: Any, end: int, text: Any, text_end: int
) -> tuple[int, int, int]:
    """As `integer_list`; the strings are appended to `text`, their ends there to `items`."""
    at = _list(data, at)
    while at != NO and data[at] != CLOSE_LIST:
        at, text_end = string(data, at, text, text_end)
        items[end] = text_end
        end += 1
        at = _next_item(data, at)
    return _behind_list(at), end, text_end


@compiled
def _list(data: Any, at: int) -> int:
    """The first item or the end of a list."""
    return spaces(data, at + 1) if data[at] == OPEN_LIST else NO


@compiled
def _next_item(data: Any, at: int) -> int:
    """The item that follows one, or the end of the list."""
    at = spaces(data, at)
    if data[at] != COMMA:
        return at if data[at] == CLOSE_LIST else NO
    at = spaces(data, at + 1)
    return at if data[at] != CLOSE_LIST else NO


@compiled
def _behind_list(at: int) -> int:
    return at if at == NO else at + 1


@compiled
def string(data: Any, at: int, text: Any, end: int) -> tuple[int, int]:
    """Behind a string, which is appended to `text`, and the new end of that."""
    if data[at] != QUOTE:
        return NO, end
    at += 1
    while True:
        word = load(data, at)
        store(text, end, word)
        num = plain_letters(word)
        at += num
        end += num
        if num < 8:
            if data[at] == QUOTE:
                return at + 1, end
            if data[at] != _BACKSLASH:
                return NO, end
            at, end = _escaped(data, at + 1, text, end)
            if at == NO:
                return NO, end


@compiled
def _escaped(data: Any, at: int, text: Any, end: int) -> tuple[int, int]:
    """Behind an escape's part that follows the backslash; its character is appended as UTF-8."""
    letter = data[at]
    code = 0
    if letter in (QUOTE, _BACKSLASH, _SLASH):
        code = letter
    elif letter == _b:
        code = 8
    elif letter == _t:
        code = 9
    elif letter == _n:
        code = 10
    elif letter == _f:
        code = 12
    elif letter == _r:
        code = 13
    elif letter == _u:
        code = _hex(data, at + 1)
        at += 4
        if 0xD800 <= code < 0xDC00 and data[at + 1] == _BACKSLASH and data[at + 2] == _u:
            low = _hex(data, at + 3)
            at += 6
            if low < 0xDC00 or low > 0xDFFF:
                return NO, end
            code = 0x10000 + ((code - 0xD800) << 10) + low - 0xDC00
    if code <= 0 or 0xD800 <= code < 0xE000:
        return NO, end
    if code < 0x80:
        text[end] = code
        return at + 1, end + 1
    num = 1 if code < 0x800 else 2 if code < 0x10000 else 3
    text[end] = 0xFF00 >> (num + 1) & 0xFF | code >> 6 * num
    for part in range(1, num + 1):
        text[end + part] = 0x80 | code >> 6 * (num - part) & 0x3F
    return at + 1, end + 1 + num


@compiled
def _hex(data: Any, at: int) -> int:
    """Of four digits, NO if there are none."""
    code = 0
    for k in range(4):
        letter = data[at + k]
        if _ZERO <= letter < _COLON:
            code = code << 4 | letter - _ZERO
        elif _a <= letter | 0x20 <= _f:
            code = code << 4 | (letter | 0x20) - _a + 10
        else:
            return NO
    return code
