"""The configuration file, and what the environment puts in place of its addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.settings import SettingsError, load

MARKET = Path(__file__).resolve().parents[1] / "configs" / "market.toml"


def test_environment_overrides_addresses_only() -> None:
    plain = load(MARKET)
    moved = load(MARKET, {"EXFM_BOOTSTRAP": "broker:9092", "EXFM_SERVING": "0.0.0.0:8080"})
    assert moved.kafka.bootstrap == "broker:9092"
    assert (moved.serving.host, moved.serving.port) == ("0.0.0.0", 8080)
    assert moved.model_copy(update={"kafka": plain.kafka, "serving": plain.serving}) == plain


def test_empty_environment_overrides_nothing() -> None:
    assert load(MARKET, {"EXFM_BOOTSTRAP": "", "EXFM_SERVING": ""}) == load(MARKET)


def test_address_without_a_port_number_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"serving\.port = 'http'"):
        load(MARKET, {"EXFM_SERVING": "0.0.0.0:http"})
