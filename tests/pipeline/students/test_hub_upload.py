"""`pipeline push`: what leaves the machine, to a server that stands for the Hub, and refusals."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.commands.push import push
from pipeline.students.hub_upload import push_model
from stages.train_student.modeling.distil_xlstm.directory_code import directory_code
from tests.support.students import publish_student

needs_loopback = pytest.mark.allow_hosts(["127.0.0.1"])


@dataclass
class Hub:
    """A repository as the Hub's HTTP interface shows it: what it was asked, and what it holds."""

    endpoint: str = ""
    is_private: bool = True
    asked: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuse: tuple[int, str] | None = None

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.refuse is not None:
            return self.refuse[0], {"error": self.refuse[1]}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.endpoint}/me/student"}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return 200, {"files": modes}
        if "/commit/" in path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            return 200, {"commitUrl": f"{self.endpoint}/me/student/commit/1", "commitOid": "1" * 40}
        if "/branch/" in path:
            return 200, {}
        return 200, {"id": "me/student", "private": self.is_private, "sha": "1" * 40}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.asked.append(f"{self.command} {self.path}")
            found.tokens.add(self.headers.get("Authorization", ""))
            status, answer = found.answer(self.path, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            if status >= 400:
                self.send_header("X-Error-Message", answer["error"])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    found.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def run(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_student(tiny_cache, tmp_path_factory.mktemp("run"))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(push, [str(argument) for argument in arguments])


@needs_loopback
def test_the_model_and_nothing_else_is_uploaded(run: Path, hub: Hub) -> None:
    (run / "model" / "notes.bin").write_bytes(b"mine")
    result = invoke(run, "me/student")
    (run / "model" / "notes.bin").unlink()
    assert result.exit_code == 0, result.output
    expected = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    assert {"model.safetensors", "README.md", *directory_code()} <= expected.keys()
    assert hub.files == expected
    assert hub.created == [{"name": "student", "organization": "me"}]  # as the Hub prefers
    assert "Bearer hf_secret" in hub.tokens
    assert result.stdout.startswith(f"{hub.endpoint}/me/student/commit/1\n")
    assert "from_pretrained('me/student', trust_remote_code=True)" in result.stdout
    assert any(line.endswith("/commit/main") for line in hub.asked)


@needs_loopback
def test_push_uploads_to_a_branch_of_a_private_repository(run: Path, hub: Hub) -> None:
    result = invoke(run / "model", "me/student", "--private", "--revision", "try")
    assert result.exit_code == 0, result.output
    assert hub.created[0].get("visibility", hub.created[0].get("private")) in ("private", True)
    branches = [line for line in hub.asked if "/branch/" in line or "/commit/" in line]
    assert [line.rpartition("/")[2] for line in branches] == ["try", "try"]
    assert "revision='try'" in result.stdout


@needs_loopback
def test_private_is_refused_where_the_repository_is_public(run: Path, hub: Hub) -> None:
    hub.is_private = False
    with pytest.raises(ValueError, match="is public; --private does not change that"):
        push_model(run, "me/student", is_private=True, revision=None)
    assert not hub.files


@needs_loopback
def test_a_refusal_of_the_hub_is_raised_with_the_next_step(run: Path, hub: Hub) -> None:
    hub.refuse = (403, "You have no right to write here")
    with pytest.raises(ValueError, match=r"(?s)me/student: cannot be.*no right.*USER/NAME"):
        push_model(run, "me/student", is_private=False, revision=None)


def test_offline_the_upload_is_refused_with_the_next_step(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ValueError, match=r"(?s)the Hub cannot be reached: .*offline.*network"):
        push_model(run, "me/student", is_private=False, revision=None)


def test_an_invalid_repository_name_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ValueError, match=r"cannot be uploaded to"):
        push_model(run, "me/my/student", is_private=False, revision=None)


def test_without_a_token_the_upload_names_how_to_log_in(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match=r"no token .*`hf auth login`, or set HF_TOKEN"):
        push_model(run, "me/student", is_private=False, revision=None)


def test_a_directory_without_a_finished_run_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a run"):
        push_model(tmp_path, "me/student", is_private=False, revision=None)
    (tmp_path / "run.json").touch()
    with pytest.raises(ValueError, match="training has not finished"):
        push_model(tmp_path, "me/student", is_private=False, revision=None)
