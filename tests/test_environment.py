"""How the flows are told, under Bytewax's own runner, what to run."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from importlib import import_module
from pathlib import Path

import pytest
from bytewax.dataflow import Dataflow

from flows.config_file import dump
from flows.environment import described, named
from flows.kafka.client import admin_client, client_config
from flows.settings import Settings, SettingsError


@pytest.mark.parametrize("missing", ["EXFM_CONFIG", "EXFM_RUN"])
def test_environment_that_does_not_name_a_run_is_told_in_a_sentence(missing: str) -> None:
    environ = {"EXFM_CONFIG": "a.toml", "EXFM_RUN": "run"}
    without = {name: value for name, value in environ.items() if name != missing}
    for lacking in (without, {**environ, missing: ""}):
        with pytest.raises(SettingsError, match=f"^{missing} is not set: it must be the path"):
            named(lacking)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EXFM_")}
    done = subprocess.run(
        [sys.executable, "-m", "bytewax.run", "flows.das:flow"],
        env={**kept, **environ, missing: ""},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.startswith(f"exfm: {missing} is not set")) == (2, True)


@pytest.fixture
def named_run(
    kafka_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """A run of the environment, whose topics are not there yet."""
    raw = kafka_settings.model_dump()
    for topic in raw["topics"].values():
        topic["name"] = f"new-{uuid.uuid4().hex[:8]}"
    settings = Settings.model_validate(raw)
    config = tmp_path / "config.toml"
    config.write_text(dump(settings), encoding="utf-8")
    monkeypatch.delenv("EXFM_BOOTSTRAP", raising=False)
    monkeypatch.setenv("EXFM_CONFIG", str(config))
    monkeypatch.setenv("EXFM_RUN", str(tmp_path / "run"))
    return settings


@pytest.mark.kafka
def test_topics_of_the_environment_are_made(named_run: Settings, tmp_path: Path) -> None:
    settings, folder = described()
    assert (settings, folder.root) == (named_run, tmp_path / "run")
    found = admin_client(client_config(settings.kafka)).list_topics(timeout=10).topics
    for _, topic in settings.topics:
        assert len(found[topic.name].partitions) == topic.partitions


@pytest.mark.kafka
@pytest.mark.parametrize("module", ["fm_inference", "fm_training", "vm_training"])
def test_flow_finds_topics_that_were_not_there(named_run: Settings, module: str) -> None:
    assert isinstance(import_module(f"flows.{module}").flow(), Dataflow)
    insist_on_topics(named_run)


@pytest.mark.kafka
def test_join_finds_topics_that_were_not_there(named_run: Settings) -> None:
    code = "from flows.das import flow; print(type(flow()).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "Dataflow\n"), done.stderr
    insist_on_topics(named_run)


def insist_on_topics(settings: Settings) -> None:
    found = admin_client(client_config(settings.kafka)).list_topics(timeout=10).topics
    assert {topic.name for _, topic in settings.topics} <= found.keys()
