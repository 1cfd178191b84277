"""Taobao: which view an action is credited to, and the positives that the join finds for it.

With EXFM_TAOBAO, the folder of the published sample, also on all of it.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from benchmarks.examples import accepted_examples
from benchmarks.taobao import checks, positives_of_views, positives_raw, read_raw
from flows.das import run
from flows.datasets.replay import replay, sliced
from flows.datasets.taobao import ACTIONS, EVENTS, tables
from flows.kafka.client import client_config, ensure_topics
from flows.kafka.producer import BatchProducer
from flows.kafka_settings import Kafka
from flows.records import END_MS, PredictionHeader, encode, prediction_schema
from flows.run_folder import RunFolder
from flows.runner import Placement
from flows.settings import Settings, load

CONFIG = Path(__file__).parents[1] / "configs" / "taobao.toml"
START_S = 1_511_539_200
DATA = os.environ.get("EXFM_TAOBAO", "")
real = pytest.mark.skipif(not DATA, reason="EXFM_TAOBAO names no folder")


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(CONFIG)


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """As `events.csv.gz`: few users and items, so that views and actions meet."""
    rng, num = np.random.default_rng(0), 1500
    item = rng.integers(9, size=num)
    return pl.DataFrame(
        {
            "user_id": rng.integers(7, size=num),
            "item_id": item,
            "category_id": item // 3 + 100,
            "behavior": rng.choice(["pv", *ACTIONS], size=num, p=[0.7, 0.1, 0.1, 0.1]),
            "ts": START_S + np.sort(rng.integers(0, 5 * 86_400, num)) // 600 * 600.0,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, log: pl.DataFrame) -> Path:
    path = tmp_path_factory.mktemp("taobao")
    log.write_csv(path / "events.csv", float_precision=1)
    (path / EVENTS).write_bytes((path / "events.csv").read_bytes())
    return path


def credited(log: pl.DataFrame) -> list[tuple[str, str, int]]:
    """Action, view and seconds between them, by plain loops."""
    rows = log.to_dicts()
    found = []
    for row in rows:
        same = [r for r in rows if (r["user_id"], r["item_id"]) == (row["user_id"], row["item_id"])]
        seen = [r["ts"] for r in same if r["behavior"] == "pv" and r["ts"] <= row["ts"]]
        if row["behavior"] != "pv" and seen:
            view = f"{row['user_id']}-{row['item_id']}-{max(seen):.0f}"
            found.append((row["behavior"], view, int(row["ts"] - max(seen))))
    return found


def test_taobao_credits_an_action_to_the_last_view_before_it(
    folder: Path, log: pl.DataFrame, settings: Settings
) -> None:
    impressions, labels = tables(folder, settings)
    shown = dict(
        zip(*(impressions[c].to_pylist() for c in ("impression_id", "ts_ms")), strict=True)
    )
    views = log.filter(pl.col("behavior") == "pv").unique(["user_id", "item_id", "ts"])
    assert len(shown) == len(impressions) == len(views)
    found = [
        (settings.tasks[row["task"]].name, row["impression_id"], row["ts_ms"])
        for row in labels.to_pylist()
    ]
    wanted = [
        (f"{action}_{window}", view, shown[view] + 1000 * after)
        for action, view, after in credited(log)
        for window in ("1h", "1d")
    ]
    assert wanted
    assert sorted(found) == sorted(wanted)


def test_taobao_refuses_what_is_not_in_the_data(
    folder: Path, tmp_path: Path, settings: Settings
) -> None:
    feature = settings.features[0].model_copy(update={"name": "behavior"})
    with pytest.raises(ValueError, match="Taobao has no behavior"):
        tables(folder, settings.model_copy(update={"features": (feature,)}))
    task = settings.tasks[0].model_copy(update={"window_s": 60.0})
    with pytest.raises(ValueError, match=r"tasks\.cart_1h\.window_s must be 3600, got 60"):
        tables(folder, settings.model_copy(update={"tasks": (task,)}))
    task = settings.tasks[0].model_copy(update={"name": "click"})
    with pytest.raises(ValueError, match=r"Taobao knows cart_1h, .* got \['click'\]"):
        tables(folder, settings.model_copy(update={"tasks": (task,)}))
    with pytest.raises(ValueError, match=r"must hold events\.csv\.gz"):
        tables(tmp_path, settings)


@pytest.mark.kafka
def test_join_finds_the_positives_of_plain_loops(
    kafka: str, folder: Path, log: pl.DataFrame, settings: Settings, tmp_path: Path
) -> None:
    examples = joined(kafka, folder, settings, tmp_path)
    for task in settings.tasks:
        action = task.name.rpartition("_")[0]
        wanted = {view for a, view, s in credited(log) if a == action and s < task.window_s}
        rows = examples.filter(pl.col(f"mask_{task.name}"))
        found = rows.filter(pl.col(f"label_{task.name}") == 1)["impression_id"]
        assert sorted(found) == sorted(wanted)
        assert positives_raw(read_raw(folder), action, task.window_s) == len(wanted) > 0
        assert rows["impression_id"].n_unique() == len(rows) == tables(folder, settings)[0].num_rows


@real
@pytest.mark.kafka
def test_join_of_the_published_sample_finds_what_a_plain_join_does(
    kafka: str, settings: Settings, tmp_path: Path
) -> None:
    folder = Path(DATA)
    examples = joined(kafka, folder, settings, tmp_path)
    found = checks(settings, folder, examples)
    assert len(found) == 1 + 2 * len(settings.tasks)
    assert all(check.passed for check in found), [c for c in found if not c.passed]
    assert positives_of_views(folder, "buy", 3600) is not None


def joined(kafka: str, data: Path, settings: Settings, folder: Path) -> pl.DataFrame:
    """Examples of the flow over Kafka, as event time alone decides, without a teacher."""
    suffix = uuid.uuid4().hex[:8]
    names = {k: t.model_copy(update={"name": f"{t.name}-{suffix}"}) for k, t in settings.topics}
    topics = settings.topics.model_copy(update=names)
    settings = settings.model_copy(update={"kafka": Kafka(bootstrap=kafka), "topics": topics})
    ensure_topics(settings)
    producer = BatchProducer(client_config(settings.kafka))
    replay(settings, sliced(*tables(data, settings), 3_600_000), producer)
    nothing: pa.Table = prediction_schema(settings).empty_table()
    for p in range(topics.impressions.partitions):
        message = encode(nothing, PredictionHeader(partition=p, progress_ms=END_MS))
        for q in range(topics.fm_predictions.partitions):
            producer.send(topics.fm_predictions.name, message, partition=q, rows=0)
    producer.flush()
    run(settings, RunFolder(folder / "run"), Placement())
    frame = pl.from_arrow(accepted_examples(settings).table)
    assert isinstance(frame, pl.DataFrame)
    return frame
