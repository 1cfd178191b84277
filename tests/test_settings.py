"""The configuration file, and what the environment puts in place of its addresses."""

from __future__ import annotations

from contextlib import nullcontext
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.settings import Settings, SettingsError, explain, load

MARKET = Path(__file__).resolve().parents[1] / "configs" / "market.toml"


def test_environment_overrides_addresses_only() -> None:
    plain = load(MARKET)
    moved = load(
        MARKET,
        {
            "EXFM_BOOTSTRAP": "broker:9092",
            "EXFM_SERVING": "0.0.0.0:8080",
            "EXFM_SCHEMA_REGISTRY": "https://registry",
        },
    )
    assert moved.kafka.bootstrap == "broker:9092"
    assert (moved.serving.host, moved.serving.port) == ("0.0.0.0", 8080)
    assert moved.schema_registry.url == "https://registry"
    kept = {name: getattr(plain, name) for name in ("kafka", "serving", "schema_registry")}
    assert moved.model_copy(update=kept) == plain


@pytest.mark.parametrize("form", ["avro", "protobuf"])
def test_format_with_schemas_needs_a_registry(tiny_settings: Settings, form: str) -> None:
    raw = tiny_settings.model_dump()
    raw["topics"]["labels"]["format"] = form
    with pytest.raises(ValidationError, match=rf"labels\.format = '{form}' needs schema_registry"):
        Settings.model_validate(raw)
    raw["schema_registry"]["url"] = "https://registry"
    assert Settings.model_validate(raw).topics.labels.format == form


def test_empty_environment_overrides_nothing() -> None:
    assert load(MARKET, {"EXFM_BOOTSTRAP": "", "EXFM_SERVING": ""}) == load(MARKET)


def test_address_without_a_port_number_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"serving\.port = 'http'"):
        load(MARKET, {"EXFM_SERVING": "0.0.0.0:http"})


def test_address_of_the_environment_meets_a_table_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('kafka = "host:9092"\n' + MARKET.read_text())
    with pytest.raises(SettingsError, match=r"c\.toml: kafka = 'host:9092': Input should be a"):
        load(path, {"EXFM_BOOTSTRAP": "broker:9092"})


DURATIONS = [
    *(
        ("tasks", 0, "window_s"),
        ("das", "bucket_s"),
        ("das", "idle_s"),
        ("das", "recovery_every_s"),
    ),
    *(("teacher", "snapshot_every_s"), ("students", 0, "snapshot_every_s")),
    *(("serving", "poll_s"), ("schema_registry", "timeout_s")),
    *(("market", "tick_s"), ("market", "click_delay_s"), ("noise", "late_by_s")),
]
OR_NONE = [
    *(("topics", "impressions", "lateness_s"), ("topics", "labels", "max_ahead_s")),
    ("teacher", "lag_s"),
]
"""Durations that may be 0."""


def with_value(settings: Settings, place: tuple[str | int, ...], value: float) -> Settings:
    raw = settings.model_dump(mode="json")
    *path, key = place
    found: Any = raw
    for part in path:
        found = found[part]
    found[key] = value
    return Settings.model_validate(raw)


@pytest.mark.parametrize("place", [*DURATIONS, *OR_NONE], ids=str)
def test_duration_is_finite_and_at_least_a_millisecond(
    tiny_settings: Settings, place: tuple[str | int, ...]
) -> None:
    zero = [] if place in OR_NONE else [0.0]
    for value in (*zero, 0.0001, -1.0, 1e308, 400_000_000.0):
        with pytest.raises(ValidationError) as refused:
            with_value(tiny_settings, place, value)
        (line,) = explain(Path("c.toml"), refused.value)
        key = ".".join(map(str, place))
        assert line.startswith(f"c.toml: {key} = {value!r}: must be ")
    for value in (inf, -inf, nan):
        with pytest.raises(ValidationError, match="finite number"):
            with_value(tiny_settings, place, value)


@pytest.mark.parametrize("place", OR_NONE, ids=str)
def test_duration_may_be_none(tiny_settings: Settings, place: tuple[str | int, ...]) -> None:
    raw = tiny_settings.model_dump(mode="json")
    raw["topics"]["impressions"]["lateness_s"] = 0.0  # lag_s must not be below it
    found: Any = with_value(Settings.model_validate(raw), place, 0.0).model_dump()
    for key in place:
        found = found[key]
    assert found == 0.0


def test_shortest_durations_are_a_millisecond(tiny_settings: Settings) -> None:
    assert with_value(tiny_settings, ("das", "bucket_s"), 0.001).das.bucket_ms == 1
    assert with_value(tiny_settings, ("tasks", 0, "window_s"), 0.001).tasks[0].window_ms == 1


def test_a_broken_element_is_no_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        """
        domains = ["a"]
        colour = "red"
        tasks = [{name = "buy", window_s = 0}]
        features = [{name = "user_id", kind = "categorical"}]
        students = [{name = "s", tasks = ["buy"]}]
        """
    )
    with pytest.raises(SettingsError) as refused:
        load(path)
    assert str(refused.value).splitlines() == [
        f"{path}: tasks.0.window_s = 0: must be from 0.001 to 315576000, ten years",
        f"{path}: colour = 'red': unknown key",
    ]


def conditional(tiny_settings: Settings, **buy: object) -> Settings:
    raw = tiny_settings.model_dump()
    raw["tasks"] = [
        {"name": "view", "window_s": 5, "given": None},
        {"name": "click", "window_s": 10},
        {"name": "buy", "window_s": 60, **buy},
    ]
    raw["students"] = [{"name": "late", "tasks": ["click"]}]
    return Settings.model_validate(raw)


def test_condition_must_be_a_declared_task_of_a_shorter_window(tiny_settings: Settings) -> None:
    assert conditional(tiny_settings, given="click").tasks[2].given == "click"
    with pytest.raises(ValidationError, match=r"tasks\.buy\.given: 'like' is not declared"):
        conditional(tiny_settings, given="like")
    with pytest.raises(ValidationError, match=r"given = 'click' must have a shorter .* 10 and 10"):
        conditional(tiny_settings, given="click", window_s=10)
    with pytest.raises(ValidationError, match=r"given = 'buy' must have a shorter window"):
        conditional(tiny_settings, given="buy")


def test_condition_must_not_be_conditional_itself(tiny_settings: Settings) -> None:
    raw = conditional(tiny_settings, given="click").model_dump()
    raw["tasks"][1]["given"] = "view"
    with pytest.raises(ValidationError, match=r"must not be conditional .* tasks\.click\.given"):
        Settings.model_validate(raw)


def test_replay_must_not_skip_lost_offsets(tiny_settings: Settings) -> None:
    raw = tiny_settings.model_dump()
    assert raw["kafka"]["lost_offsets"] == "stop"
    raw["kafka"]["lost_offsets"] = "skip"
    with pytest.raises(ValidationError, match=r"lost_offsets = 'skip' must be 'stop' where"):
        Settings.model_validate(raw)
    raw["teacher"]["version"] = "newest"
    assert Settings.model_validate(raw).kafka.lost_offsets == "skip"


def test_option_of_the_client_that_has_no_effect_is_refused(tiny_settings: Settings) -> None:
    raw = tiny_settings.model_dump()
    raw["kafka"]["client"] = {"auto.offset.reset": "earliest"}
    with pytest.raises(ValidationError, match=r"kafka\.lost_offsets chooses, stop or skip"):
        Settings.model_validate(raw)


def test_transactions_must_end_before_the_broker_ends_them(tiny_settings: Settings) -> None:
    raw = tiny_settings.model_dump()
    raw["das"] |= {"sink": "transactional", "recovery_every_s": 301}
    with pytest.raises(ValidationError, match=r"recovery_every_s = 301 must be at most 300 where"):
        Settings.model_validate(raw)
    for kept in ({"recovery_every_s": 300}, {"sink": "idempotent"}):
        Settings.model_validate({**raw, "das": {**raw["das"], **kept}})


def test_snapshots_are_not_closer_than_an_input_is_asked(tiny_settings: Settings) -> None:
    raw = tiny_settings.model_dump()
    for every_s, is_refused in ((0.05, False), (0.04, True), (0, True)):
        raw["das"]["recovery_every_s"] = every_s
        with pytest.raises(ValidationError, match=r"0\.05") if is_refused else nullcontext():
            Settings.model_validate(raw)
