"""Dead letters for people: a table of all, the whole of one."""

from __future__ import annotations

import polars as pl
from confluent_kafka import Message
from rich.table import Table

from flows.events.dead_letters import SIZE
from flows.kafka.headers import headers_of
from flows.letters.log import IDENTITY, is_cut, origin, place
from flows.wording import moment

SHOWN_BYTES = 4096
"""Of a payload; the rest on request only."""
SHOWN_KEY_BYTES = 200
HEX_WIDTH = 32
"""Bytes a line."""


def letters_table(letters: pl.DataFrame, title: str) -> Table:
    """Letters by topic and reason.

    Args:
        letters: of `flows.letters.log.distinct`.
        title: of the table.
    """
    table = Table(title=title)
    for head in ("topic", "reason", "letters", "repeats", "first", "set aside", "last"):
        table.add_column(head, justify="right" if head in ("letters", "repeats") else "left")
    table.add_column("set aside")
    for row in summed(letters).iter_rows(named=True):
        table.add_row(
            *(row["topic"], row["reason"], f"{row['letters']:,}", f"{row['repeats']:,}"),
            *(place(**row["first"]), moment(row["first_ms"])),
            *(place(**row["last"]), moment(row["last_ms"])),
        )
    return table


def summed(letters: pl.DataFrame) -> pl.DataFrame:
    """A row for each topic and reason: letters, repeats, first, first_ms, last, last_ms.

    Args:
        letters: of `flows.letters.log.distinct`.
    """
    groups, ident = ["topic", "reason"], pl.struct(IDENTITY)
    return (
        letters.drop_nulls("topic")
        .sort("at_ms", "partition", "offset", "index")
        .group_by(groups)
        .agg(
            letters=pl.len(),
            repeats=pl.col("repeats").sum(),
            first=ident.first(),
            first_ms=pl.col("at_ms").first(),
            last=ident.last(),
            last_ms=pl.col("at_ms").last(),
        )
        .sort(groups)
    )


def letter_text(message: Message) -> str:
    """A letter: where it stood, all headers, when it was set aside, its bytes."""
    topic, partition, offset, index, _ = origin(message)
    lines = [
        place(topic, partition, offset, index) if topic is not None else "no origin",
        f"  set aside  {moment(message.timestamp()[1])}",
        f"  letter     {message.topic()}:{message.partition()}:{message.offset()}",
    ]
    if message.key() is not None:
        lines.append(f"  key        {shortened(message.key() or b'')}")
    for name, value in headers_of(message).items():
        lines.append(f"  {name:<10} {readable(value or b'')}")
    if is_cut(message):
        lines.append("  cut: these are the first bytes of an event, or a key, of that size")
    return "\n".join([*lines, *payload_lines(message.value())])


def cut_short(message: Message) -> str | None:
    """What is missing of a letter that holds only the first bytes of its event; None if nothing."""
    size = headers_of(message).get(SIZE)
    if size is None:
        return None
    whole = size.decode(errors="replace") if isinstance(size, bytes) else "-"
    num = len(message.value() or b"")
    return f"the letter is cut: these are the first {num:,} of {whole} bytes of the event"


def payload_lines(value: bytes | None) -> list[str]:
    """Bytes as text if they are UTF-8, else as hexadecimal digits."""
    if value is None:
        return ["  no value"]
    shown = value[:SHOWN_BYTES]
    text = as_text(shown, complete=len(shown) == len(value))
    lines = [f"  payload    {len(value):,} bytes, {'UTF-8' if text is not None else 'hex'}"]
    if text is not None:
        lines += [f"    {line}" for line in escaped(text).split("\n")]
    else:
        parts = range(0, len(shown), HEX_WIDTH)
        lines += [f"    {i:06x}  {shown[i : i + HEX_WIDTH].hex(' ')}" for i in parts]
    if len(value) > len(shown):
        lines.append(f"    ... {len(value) - len(shown):,} bytes more: --raw or --out has them all")
    return lines


def as_text(data: bytes, *, complete: bool) -> str | None:
    """Text of UTF-8, else None; where data were cut, a part of a character may stand at the end."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if complete or error.reason != "unexpected end of data":
            return None
        return data[: error.start].decode()


def shortened(key: bytes) -> str:
    """The first bytes of a key on one line."""
    more = len(key) - SHOWN_KEY_BYTES
    shown = readable(key[:SHOWN_KEY_BYTES], complete=more <= 0)
    return f"{shown} ... {more:,} bytes more" if more > 0 else shown


def readable(data: bytes, *, complete: bool = True) -> str:
    """A short value on one line."""
    text = as_text(data, complete=complete)
    return data.hex(" ") if text is None else escaped(text).replace("\n", "\\n")


def escaped(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
