"""Trackers against stand-ins for the packages: names, resuming, what is told twice and what not."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages.train_student.tracking.trackers import (
    TrackedRun,
    Tracker,
    make_tracker,
    require_trackers,
)


class Service(ModuleType):
    """Has the part of wandb's and trackio's interface that is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished: list[dict[str, int]] = []

    def init(self, **settings: Any) -> "Service":
        self.inits.append(settings)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, metrics))

    def finish(self, **options: int) -> None:
        self.finished.append(options)


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service(request.param)
    monkeypatch.setitem(sys.modules, request.param, found)
    monkeypatch.delenv(f"{request.param.upper()}_PROJECT", raising=False)
    return found


def start(service: Service, out: Path, *, from_step: int = 0, last_step: int = 0) -> Tracker:
    out.mkdir(exist_ok=True)
    run = TrackedRun(out=out, from_step=from_step, last_step=last_step, config={"seed": 3})
    return make_tracker(service.__name__, run)


def test_a_tracker_run_is_started_logged_and_finished(service: Service, tmp_path: Path) -> None:
    tracker = start(service, tmp_path / "my run")
    tracker.log(1, {"loss": 2.0})
    tracker.close(True)
    (settings,) = service.inits
    name = settings["name"]
    assert name.startswith("my-run-")
    expected = {"project": "xlstm-distill", "name": name, "config": {"seed": 3}, "resume": "never"}
    if service.__name__ == "wandb":
        expected |= {"id": name, "dir": str(tmp_path / "my run")}
    assert settings == expected
    assert service.logged == [(1, {"loss": 2.0})]
    assert service.finished == [{"exit_code": 0} if service.__name__ == "wandb" else {}]


def test_a_failed_run_is_reported_as_failed(service: Service, tmp_path: Path) -> None:
    start(service, tmp_path).close(False)
    assert service.finished == [{"exit_code": 1} if service.__name__ == "wandb" else {}]


def test_the_tracker_project_is_set_by_environment_variable(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{service.__name__.upper()}_PROJECT", "mine")
    start(service, tmp_path)
    assert service.inits[0]["project"] == "mine"


def test_a_resumed_run_keeps_its_name_and_logs_no_step_twice(
    service: Service, tmp_path: Path
) -> None:
    """Twice interrupted, the second time before it came as far as the first time."""
    start(service, tmp_path)
    again = start(service, tmp_path, from_step=4, last_step=9)
    for step in (5, 8, 9):
        again.log(step, {"loss": 1.0})
    thrice = start(service, tmp_path, from_step=4, last_step=6)
    for step in (5, 6, 9, 10):
        thrice.log(step, {"loss": 1.0})
    assert [settings["resume"] for settings in service.inits] == ["never", "allow", "allow"]
    assert len({settings["name"] for settings in service.inits}) == 1
    # Step 9 may have been told in part only, training but not validation.
    assert [step for step, _ in service.logged] == [9, 9, 10]


def test_a_restarted_run_is_another_tracker_run(service: Service, tmp_path: Path) -> None:
    start(service, tmp_path)
    start(service, tmp_path, from_step=0, last_step=9).log(1, {"loss": 1.0})
    first, second = service.inits
    assert first["name"] != second["name"]
    assert second["resume"] == "never"
    assert service.logged == [(1, {"loss": 1.0})]


def test_a_tracker_added_on_resume_receives_every_step_from_there(
    service: Service, tmp_path: Path
) -> None:
    joined = start(service, tmp_path, from_step=4, last_step=9)
    joined.log(5, {"loss": 1.0})
    assert service.logged == [(5, {"loss": 1.0})]


def test_two_trackers_may_log_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = [Service(name) for name in ("wandb", "trackio")]
    for each in services:
        monkeypatch.setitem(sys.modules, each.__name__, each)
        start(each, tmp_path)
    for each in services:
        start(each, tmp_path, from_step=2, last_step=2)
        assert each.inits[0]["name"] == each.inits[1]["name"]
    known = json.loads((tmp_path / "trackers.json").read_text())["runs"]
    assert known.keys() == {"wandb", "trackio"}


def test_a_tracker_that_fails_to_start_is_reported_with_a_next_step(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(Exception):
        pass

    def init(**_: Any) -> None:
        raise Refused("No API key configured.") if service.__name__ == "wandb" else ValueError("no")

    monkeypatch.setattr(service, "init", init)
    if service.__name__ == "wandb":
        monkeypatch.setattr(service, "Error", Refused, raising=False)
    with pytest.raises(ValueError, match=r"did not start: (No API key configured|no)\. Set it up"):
        start(service, tmp_path)


def test_a_missing_tracker_package_is_named_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_trackers(("tensorboard",))
    with pytest.raises(ValueError, match=r"no_such is not installed.*`pip install no_such`"):
        require_trackers(("tensorboard", "no_such"))
    # W&B makes a directory of its name wherever it is used.
    (tmp_path / "no_such").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="no_such is not installed"):
        require_trackers(("no_such",))


@pytest.mark.parametrize("change", [b"", b"[]", b"x"])
def test_a_damaged_file_of_tracker_run_names_is_refused(
    service: Service, tmp_path: Path, change: bytes
) -> None:
    """Passed over, the curves would go on under another name, or from another step."""
    start(service, tmp_path)
    file = tmp_path / "trackers.json"
    flipped = file.read_bytes().replace(b'"told_step": 0', b'"told_step": 8')
    for data in (flipped, change):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"trackers\.json: damaged.*Delete it"):
            start(service, tmp_path, from_step=2, last_step=2)
