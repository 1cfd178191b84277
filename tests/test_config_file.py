"""Settings survive being written and read."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.config_file import dump, seeded
from flows.settings import Settings, load

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_dumped_settings_read_back_as_they_were(path: Path, tmp_path: Path) -> None:
    settings = load(path)
    copy = tmp_path / "copy.toml"
    copy.write_text(dump(settings), encoding="utf-8")
    assert load(copy) == settings


def test_odd_strings_and_numbers_survive(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {
            "domains": ["a"],
            "features": [{"name": "x", "kind": "categorical"}],
            "tasks": [{"name": "click", "window_s": 1e-3}],
            "students": [
                {"name": "s", "tasks": ["click"], "network": {"crosses": [["x", "domain"]]}}
            ],
            "kafka": {"client": {"sasl.password": 'a"b\\c\n\x7fé', "x": 1e300, "y": True, "z": -3}},
            "das": {"bucket_s": 0.5},
        }
    )
    path = tmp_path / "odd.toml"
    path.write_text(dump(settings), encoding="utf-8")
    assert load(path) == settings


def test_seeds_move_together() -> None:
    settings = load(ROOT / "configs" / "market.toml")
    moved = seeded(settings, 7)
    assert moved.teacher.learning.seed == settings.teacher.learning.seed + 7
    assert {s.learning.seed for s in moved.students} == {
        s.learning.seed + 7 for s in settings.students
    }
    assert seeded(settings, 0) == settings
