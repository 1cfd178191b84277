"""Dead letters: listed each once, shown, and sent back byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka import Message
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.config_file import dump
from flows.events.dead_letters import REPLAY_OF, DeadLetters
from flows.events.reader import EventReader
from flows.kafka.client import client_config
from flows.kafka.producer import BatchProducer, DeliveryError
from flows.letters.choice import Choice, parsed_places, parsed_since
from flows.letters.log import SCHEMA, LetterLog, distinct, messages_between, origin
from flows.letters.replay import ReplayRefused, check_destinations, replay
from flows.letters.replay import send as send_one
from flows.letters.tables import letter_text, payload_lines, summed
from flows.records import END_HEADER
from flows.run import broker_address
from flows.run.setup import reachable_settings
from flows.run_folder import RunFolder
from flows.settings import Settings

START_MS = 1_700_000_000_000
GOOD = json.dumps({"impression_id": "i", "domain": "feed", "ts_ms": START_MS}).encode()
BINARY = bytes(range(256))
ELSEWHERE = json.dumps(
    {"impression_id": "j", "domain": "moon", "ts_ms": START_MS, "x": "é"}
).encode()
LOG = [GOOD, BINARY, ELSEWHERE, b"", None, ELSEWHERE]
REASONS = {1: "not_utf8", 2: "unknown_domain", 3: "empty", 4: "empty", 5: "unknown_domain"}


def index_of(*rows: tuple[int, str, int, int, int | None, str]) -> pl.DataFrame:
    """An index of letters: at_ms, topic, partition, offset, index, reason."""
    letters = [(0, n, row[0], 1, False, *row[1:]) for n, row in enumerate(rows)]
    return pl.DataFrame(letters, schema=SCHEMA, orient="row")


LETTERS = index_of(
    (5000, "i", 0, 17, None, "late"),
    (6000, "i", 0, 17, None, "late"),  # a crash repeats it
    (6500, "i", 1, 17, None, "late"),
    (7000, "i", 0, 18, 0, "late"),
    (8000, "i", 0, 18, 1, "late"),
    (9000, "l", 0, 17, None, "not_json"),
)


def places(letters: pl.DataFrame) -> list[tuple[str, int, int, int | None]]:
    return letters.select("topic", "partition", "offset", "index").rows()


def test_repeats_count_once() -> None:
    late, not_json = summed(distinct(LETTERS)).rows(named=True)
    assert (late["topic"], late["reason"], late["letters"], late["repeats"]) == ("i", "late", 4, 1)
    assert (late["first"]["offset"], late["first_ms"], late["last_ms"]) == (17, 6000, 8000)
    assert late["last"] == {"topic": "i", "partition": 0, "offset": 18, "index": 1}
    assert (not_json["letters"], not_json["repeats"]) == (1, 0)
    assert distinct(LETTERS)["letter_offset"].to_list() == [1, 2, 3, 4, 5]


def test_newest_letter_of_an_event_counts() -> None:
    letters = index_of(
        (7000, "i", 0, 17, None, "late"),  # another partition may hold it behind the older one
        (6000, "i", 0, 17, None, "unknown_domain"),
        (5000, "i", 0, 17, 0, "unknown_domain"),
    )
    found = distinct(letters)
    assert found.select("reason", "repeats").rows() == [("late", 1), ("unknown_domain", 0)]
    assert Choice(reason="unknown_domain").of(found)["index"].to_list() == [0]


def test_letters_are_chosen_by_topic_reason_and_place() -> None:
    letters = distinct(LETTERS)
    assert Choice().of(letters).height == 5
    assert places(Choice(topic="l").of(letters)) == [("l", 0, 17, None)]
    assert Choice(topic="l", reason="late").of(letters).is_empty()
    one = Choice(places=parsed_places(["i:0:18:1", "l:0:17"])).of(letters)
    assert places(one) == [("i", 0, 18, 1), ("l", 0, 17, None)]
    whole = Choice(places=parsed_places(["i:0:18"])).of(letters)
    assert places(whole) == [("i", 0, 18, 0), ("i", 0, 18, 1)]


@pytest.mark.parametrize("text", ["", "i", "i:0", "i:a:0", "i:0:-1", "i:0:0:", "a/b:0:0"])
def test_place_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"TOPIC:PARTITION:OFFSET\[:INDEX\], got"):
        parsed_places([text])


def test_since_is_an_age_or_a_time() -> None:
    now_ms = 1000 * time.time()
    for text, age_s in (("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86_400)):
        assert parsed_since(text) == pytest.approx(now_ms - 1000 * age_s, abs=10_000)
    assert parsed_since("2026-01-31T12:00") == parsed_since("2026-01-31T13:00:00+01:00")
    assert parsed_since("1970-01-02") == 86_400_000
    for before in ("1969-01-01", "0001-01-01", "99999999999999d", f"{'9' * 400}s"):
        assert parsed_since(before) == 0
    for bad in ("", "10", "10w", "yesterday"):
        with pytest.raises(ValueError, match="--since is an age as"):
            parsed_since(bad)


def test_payload_is_text_or_hexadecimal_digits() -> None:
    assert payload_lines(None) == ["  no value"]
    assert payload_lines("né\n\x1b[2J".encode())[1:] == ["    né", "    \\x1b[2J"]
    head, first, *_ = payload_lines(b"\xff" + b"a" * 40)
    assert "41 bytes, hex" in head
    assert first == "    000000  ff " + " ".join(["61"] * 31)
    cut = payload_lines(b"a" + "é".encode() * 4000)  # cut within a character
    assert "UTF-8" in cut[0]
    assert "3,905 bytes more: --raw or --out" in cut[-1]


@pytest.fixture
def run(tmp_path: Path, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with a Kafka of its own that is not up."""
    monkeypatch.delenv("EXFM_BOOTSTRAP", raising=False)
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.config.write_text(dump(tiny_settings))
    return folder


def test_run_that_is_up_says_where_its_kafka_is(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broker_address.announce(run.processes, "127.0.0.1:1234")
    assert reachable_settings(None, run).kafka.bootstrap == "127.0.0.1:1234"
    monkeypatch.setenv("EXFM_BOOTSTRAP", "elsewhere:1")
    assert reachable_settings(None, run).kafka.bootstrap == "elsewhere:1"
    monkeypatch.delenv("EXFM_BOOTSTRAP")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    path.write_text(path.read_text().replace(str(os.getpid()), str(ended.pid)))
    for _ in range(2):  # killed, then stopped
        with pytest.raises(SystemExit):
            reachable_settings(None, run)
        assert f"`exfm up --run {run.root}`" in capsys.readouterr().err
        path.unlink(missing_ok=True)


@pytest.fixture
def rejected(
    kafka_settings: Settings, producer: BatchProducer, tmp_path: Path
) -> tuple[Settings, RunFolder]:
    """A run whose impressions were read twice, as after a crash, and a message of a stranger."""
    settings, topics = kafka_settings, kafka_settings.topics
    for value in LOG:
        producer.send(topics.impressions.name, value, partition=1, key=b"user-7")
    producer.flush()
    for _ in range(2):
        set_aside(settings, producer, len(LOG))
    producer.send(topics.dead_letters.name, b"hello", headers={"topic": b"\xff"})
    producer.flush()
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.config.write_text(dump(settings))
    return settings, folder


def set_aside(settings: Settings, producer: BatchProducer, end: int, first: int = 0) -> None:
    """Read partition 1 of the impressions up to an offset; what is bad becomes letters."""
    letters = DeadLetters(producer, settings.topics.dead_letters.name)
    reader = EventReader(settings, "impressions", 1, (first, START_MS), letters)
    while reader.state()[0] < end:
        reader.read()
    reader.flush()
    reader.close()


@pytest.mark.kafka
def test_letter_of_an_event_that_was_sent_again_says_where_it_stood_first(
    kafka_settings: Settings, producer: BatchProducer
) -> None:
    name = kafka_settings.topics.impressions.name
    for headers in ({}, {REPLAY_OF: b"impressions:1:0"}, {"other": b"x"}):
        producer.send(name, BINARY, partition=1, headers=headers)
    producer.flush()
    set_aside(kafka_settings, producer, 3)
    log = LetterLog(kafka_settings)
    found = [dict(m.headers() or ()).get("replay_of") for m in log.messages(log.index())]
    assert found == [None, b"impressions:1:0", None]


def exfm(folder: RunFolder, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["dlq", *arguments, f"--run={folder.root}"])


def events(settings: Settings, first: int) -> list[Message]:
    config, name = client_config(settings.kafka), settings.topics.impressions.name
    return list(messages_between(config, name, 1, first, None))


@pytest.mark.kafka
def test_ls_counts_events_not_copies(rejected: tuple[Settings, RunFolder]) -> None:
    settings, folder = rejected
    letters = LetterLog(settings).index()
    assert (letters.height, letters["topic"].null_count()) == (2 * len(REASONS) + 1, 1)
    found = distinct(letters)
    own = found.drop_nulls("topic")
    assert dict(own.select("offset", "reason").rows()) == REASONS
    counts = {r["reason"]: (r["letters"], r["repeats"]) for r in summed(found).rows(named=True)}
    assert counts == {"not_utf8": (1, 1), "unknown_domain": (2, 2), "empty": (2, 2)}
    done = exfm(folder, "ls")
    assert done.exit_code == 0, done.output
    assert "1 more messages do not say where they come from" in done.output
    assert "unknown_domain" in done.output
    assert "not_utf8" not in exfm(folder, "ls", "--reason=empty").output
    assert "empty" not in exfm(folder, "ls", "--topic=labels").output


@pytest.mark.kafka
def test_since_leaves_older_letters_out(
    rejected: tuple[Settings, RunFolder], producer: BatchProducer
) -> None:
    settings, _ = rejected
    last_ms = LetterLog(settings).index()["at_ms"].max()
    assert isinstance(last_ms, int)
    assert LetterLog(settings).index(last_ms + 1).is_empty()
    assert LetterLog(settings).index(0).equals(LetterLog(settings).index())
    deadline_s = time.monotonic() + 10
    while 1000 * time.time() < last_ms + 2:
        assert time.monotonic() < deadline_s
    producer.send(settings.topics.impressions.name, b"{", partition=1)
    producer.flush()
    set_aside(settings, producer, len(LOG) + 1, first=len(LOG))
    assert places(LetterLog(settings).index(last_ms + 1)) == [
        (settings.topics.impressions.name, 1, len(LOG), None)
    ]


@pytest.mark.kafka
def test_show_gives_headers_and_bytes(rejected: tuple[Settings, RunFolder], tmp_path: Path) -> None:
    settings, folder = rejected
    place = f"{settings.topics.impressions.name}:1"
    shown = exfm(folder, "show", f"{place}:2").output
    for words in (f"{place}:2", "key        user-7", "unknown_domain", ELSEWHERE.decode()):
        assert words in shown
    assert "256 bytes, hex" in exfm(folder, "show", f"{place}:1").output
    assert exfm(folder, "show", "--limit=3").output.count("set aside") == 3
    raw = exfm(folder, "show", f"{place}:1", "--raw")
    assert (raw.exit_code, raw.stdout_bytes) == (0, BINARY)
    out = tmp_path / "letter"
    assert exfm(folder, "show", f"{place}:1", f"--out={out}").exit_code == 0
    assert out.read_bytes() == BINARY
    for nowhere in (tmp_path, tmp_path / "no" / "letter"):
        refused = exfm(folder, "show", f"{place}:1", f"--out={nowhere}")
        assert refused.exit_code == 1
        assert refused.stderr.startswith(f"exfm: --out {nowhere} cannot be written: ")
    several = exfm(folder, "show", "--raw")
    assert (several.exit_code, "take one dead letter, 5 are chosen" in several.stderr) == (2, True)
    for arguments, code in ((["show", "x:1:1"], 1), (["show", "x"], 2), (["ls", "--since=x"], 2)):
        assert exfm(folder, *arguments).exit_code == code
    log = LetterLog(settings)
    (stranger,) = log.messages(log.index().filter(pl.col("topic").is_null()))
    assert letter_text(stranger).startswith("no origin")


@pytest.mark.kafka
def test_replay_sends_each_event_once_byte_for_byte(
    rejected: tuple[Settings, RunFolder], producer: BatchProducer
) -> None:
    settings, folder = rejected
    dry = exfm(folder, "replay", "--dry-run")
    assert (dry.exit_code, "5 events would be sent" in dry.output) == (0, True)
    asked = CliRunner().invoke(app, ["dlq", "replay", f"--run={folder.root}"], input="n\n")
    assert asked.exit_code == 1
    assert events(settings, len(LOG)) == []
    done = exfm(folder, "replay", "--yes", "--reason=unknown_domain")
    assert (done.exit_code, "2 events sent and acknowledged" in done.output) == (0, True)
    assert "comes back" in done.output
    done = exfm(folder, "replay", "--yes")
    assert "5 events sent and acknowledged" in done.output
    sent = events(settings, len(LOG))
    assert Counter(m.value() for m in sent) == Counter([ELSEWHERE, ELSEWHERE, *LOG[1:]])
    assert {m.key() for m in sent} == {b"user-7"}


@pytest.mark.kafka
def test_events_that_stay_wrong_are_sent_once_at_each_replay(
    rejected: tuple[Settings, RunFolder], producer: BatchProducer
) -> None:
    settings, folder = rejected
    end, place = len(LOG), f"{settings.topics.impressions.name}:1:2"
    for times in range(1, 4):
        assert "5 events sent and acknowledged" in exfm(folder, "replay", "--yes").output
        set_aside(settings, producer, end + 5, first=end)
        end += 5
        index = LetterLog(settings).index()
        assert index.height == (2 + times) * len(REASONS) + 1
        letters = distinct(index).drop_nulls("topic")
        assert dict(letters.select("offset", "reason").rows()) == REASONS
        assert set(letters["repeats"].to_list()) == {1 + times}
        (newest,) = (m for m in LetterLog(settings).messages(letters) if m.value() == BINARY)
        assert dict(newest.headers() or ())["offset"] in {b"%d" % n for n in range(end - 5, end)}
        shown = exfm(folder, "show", place).output
        assert shown.count("set aside") == 1
        assert "replay_of" in shown
    assert f"{place}\n" in shown


@pytest.mark.parametrize(
    ("replay_of", "known_by"),
    [
        (b"i:1:5", ("i", 1, 5, 0)),  # a row of what was rejected whole
        (b"i:1:5:3", ("i", 1, 5, 3)),
        (b"i:0:5", ("i", 1, 17, 0)),  # of another partition
        (b"l:1:5", ("i", 1, 17, 0)),
        (b"i:1:17", ("i", 1, 17, 0)),  # not before it
        (b"i:1:" + b"9" * 40, ("i", 1, 17, 0)),
        (b"\xff", ("i", 1, 17, 0)),
        (b"", ("i", 1, 17, 0)),
    ],
)
def test_first_place_is_one_before_in_the_same_partition(
    replay_of: bytes, known_by: tuple[str, int, int, int | None]
) -> None:
    headers = {"topic": b"i", "partition": b"1", "offset": b"17", "index": b"0"}
    letter = Message("dead", headers={**headers, "reason": b"late", "replay_of": replay_of})
    assert origin(letter) == (*known_by, "late")


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_replay_says_how_far_it_came(
    rejected: tuple[Settings, RunFolder], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    settings, folder = rejected

    def send(producer: BatchProducer, letter: Message) -> None:
        send_one(producer, letter)
        if letter.value() == BINARY:
            signal.raise_signal(number)

    monkeypatch.setattr("flows.letters.replay.send", send)
    done = exfm(folder, "replay", "--yes")
    assert done.exit_code == 130
    assert "interrupted: of 5, 1 events sent, 1 acknowledged" in done.stderr
    assert len(events(settings, len(LOG))) == 1


@pytest.mark.kafka
def test_replay_that_fails_says_how_far_it_came(
    rejected: tuple[Settings, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = rejected
    log, told = LetterLog(settings), list[int]()

    def fails(producer: BatchProducer, letter: Message) -> None:
        if len(told) == 2:
            raise DeliveryError("full")
        send_one(producer, letter)

    monkeypatch.setattr("flows.letters.replay.send", fails)
    letters = distinct(log.index()).drop_nulls("topic")
    with pytest.raises(DeliveryError, match=r"^2 events sent, \d acknowledged: full$"):
        replay(settings, log, letters, lambda: told.append(1))


@pytest.mark.kafka
@pytest.mark.parametrize("command", ["ls", "show", "replay"])
def test_topic_without_which_there_are_no_letters_is_named(
    kafka_settings: Settings, tmp_path: Path, command: str
) -> None:
    raw = kafka_settings.model_dump()
    raw["topics"]["dead_letters"]["name"] = "nowhere"
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.config.write_text(dump(Settings.model_validate(raw)))
    done = exfm(folder, command)
    assert (done.exit_code, "no topic 'nowhere'" in done.stderr) == (1, True)


@pytest.mark.kafka
@pytest.mark.parametrize("cut", ["size", "key_size"])
def test_part_of_an_event_is_not_sent(
    rejected: tuple[Settings, RunFolder], producer: BatchProducer, tmp_path: Path, cut: str
) -> None:
    settings, folder = rejected
    name = settings.topics.impressions.name
    letter = {"reason": b"huge", "topic": name.encode(), "partition": b"1", "offset": b"77"}
    producer.send(
        *(settings.topics.dead_letters.name, b"[[["),
        key="ké".encode() * 100,
        headers={**letter, cut: b"9000"},
        reason="huge",
    )
    producer.flush()
    shown = exfm(folder, "show", "--reason=huge").output
    assert "first bytes of an event" in shown
    assert f"  key        {'ké' * 66}k ... 100 bytes more\n" in shown
    out = tmp_path / "letter"
    raw = exfm(folder, "show", "--reason=huge", "--raw", f"--out={out}")
    told = "the letter is cut: these are the first 3 of 9000 bytes of the event" in raw.stderr
    assert (raw.stdout_bytes, out.read_bytes()) == (b"[[[", b"[[[")
    assert (raw.exit_code, told) == ((1, True) if cut == "size" else (0, False))
    done = exfm(folder, "replay", "--yes")
    assert "1 of them hold only the first bytes" in done.output
    assert "5 events sent and acknowledged" in done.output
    assert b"[[[" not in [message.value() for message in events(settings, 0)]


@pytest.mark.kafka
def test_replay_that_nobody_reads_is_refused(
    rejected: tuple[Settings, RunFolder], producer: BatchProducer
) -> None:
    settings, _ = rejected
    letters = distinct(LetterLog(settings).index()).drop_nulls("topic")
    check_destinations(settings, letters)
    name = settings.topics.impressions.name
    with pytest.raises(ReplayRefused, match="topic 'i' partition 0: the event topics"):
        check_destinations(settings, LETTERS)
    gone = index_of((0, name, 7, 0, None, "late"))
    with pytest.raises(ReplayRefused, match=f"topic '{name}' partition 7 does not exist any more"):
        check_destinations(settings, gone)
    producer.send(name, None, partition=1, headers={END_HEADER: b""})
    producer.flush()
    with pytest.raises(ReplayRefused, match=f"topic '{name}' partition 1: its log has ended"):
        check_destinations(settings, letters)
