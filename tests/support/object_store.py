"""An S3 server on the loopback interface, for tests marked ``allow_hosts(["127.0.0.1"])``."""

from collections.abc import Iterator

import pytest


def serve() -> Iterator[str]:
    """The endpoint, as long as the caller needs it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def environment(endpoint: str) -> dict[str, str]:
    """What a person sets so that fsspec finds the server, as the README says."""
    return {
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
        "FSSPEC_S3_KEY": "key",
        "FSSPEC_S3_SECRET": "secret",
    }


def new_bucket(endpoint: str, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new bucket, with fsspec told of the server, here and in child processes."""
    import fsspec.config

    variables = environment(endpoint)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    # fsspec has read the environment already, when it was imported.
    settings: dict[str, dict[str, str]] = {}
    fsspec.config.set_conf_env(settings, variables)
    monkeypatch.setitem(fsspec.config.conf, "s3", settings["s3"])
    bucket = "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"
