"""Where a backfill may write to, and what a refused one leaves behind."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from flows.backfill.backfill import at_work, backfill
from flows.backfill.plan import BackfillRefused, Request
from flows.backfill.targets import MANIFEST, ParquetTarget, Target, TopicTarget, Watch
from flows.run_folder import RunFolder
from flows.settings import Settings, SettingsError

EVERYTHING = Request(starts={}, ends={})
UNSEEN = Watch(on_offsets=lambda _, __: None, on_rows=lambda _, __: None)


@pytest.mark.parametrize(
    "path", ["/proc/x/y", "/sys/x", "file/below", "x" * 300, "a/" * 3000 + "b"]
)
def test_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    refusal = r"^--parquet /.* cannot be written: .*; name another"
    with pytest.raises(BackfillRefused, match=refusal), at_work(ParquetTarget(Path(path))):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_whole_file_systems_are_no_folders_for_examples(tiny_settings: Settings) -> None:
    with pytest.raises(BackfillRefused, match=r"^--parquet / is no folder that can be made"):
        ParquetTarget(Path("/"))
    with pytest.raises(BackfillRefused, match=r"^--parquet /proc (exists|is a mount point)"):
        ParquetTarget(Path("/proc")).refuse_finished()


@pytest.mark.parametrize("name", ["bad topic", "", "../../x", ".", "..", "x" * 250, "é"])
def test_topic_that_kafka_does_not_take_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError) as refused:
        TopicTarget(RunFolder(tmp_path), name)
    assert str(refused.value).startswith(f"--topic {name!r}: must be up to 249 of the letters")


def targets(folder: Path) -> list[Target]:
    return [
        ParquetTarget(folder / "new" / "parents" / "examples"),
        TopicTarget(RunFolder(folder / "run"), "again"),
    ]


def failed(target: Target, *, planned: bool) -> None:
    """An attempt that fails with a plan or without."""
    with suppress(ZeroDivisionError), at_work(target):
        assert (target.folder / ".lock").exists()
        if planned:
            (target.folder / "plan.json").write_text("{}")
        raise ZeroDivisionError


def test_backfill_that_never_had_a_plan_leaves_nothing(tmp_path: Path) -> None:
    for target in targets(tmp_path):
        failed(target, planned=False)
        assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay(tmp_path: Path) -> None:
    for target in targets(tmp_path):
        failed(target, planned=True)
        assert target.folder.exists()
        (target.folder / "plan.json").unlink()
        failed(target, planned=False)
        assert not target.folder.exists()
        assert target.folder.parent.exists()


@pytest.mark.kafka
def test_refused_backfill_leaves_nothing(kafka_settings: Settings, tmp_path: Path) -> None:
    for target in targets(tmp_path):
        with pytest.raises(BackfillRefused, match="holds no record of the range"):
            backfill(kafka_settings, EVERYTHING, target, UNSEEN)
        assert list(tmp_path.iterdir()) == []


def test_finished_backfill_is_not_touched(tmp_path: Path) -> None:
    target = ParquetTarget(tmp_path / "examples")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / MANIFEST).write_text("{}")
    with pytest.raises(BackfillRefused, match="is finished"), at_work(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["examples"]
