"""What cannot be compiled is computed all the same, and not in silence."""

from pathlib import Path

import pytest
import torch

from stages.compute.compiling import Compiled

CPU = torch.device("cpu")
NAMES = {"what": "sums are made", "setting": "a_stage.compile"}


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one, also where there is none: nothing here gets as far as C++."""
    monkeypatch.setattr("shutil.which", lambda name: name)


def depends_on_values(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """No graph holds the branch."""
    return (values + 1,) if values.tolist()[0] > 0 else (values - 1,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_auto_falls_back_to_eager_where_the_compiler_fails() -> None:
    function = Compiled(depends_on_values, "auto", CPU, **NAMES)
    with pytest.warns(RuntimeWarning, match="sums are made without torch.compile, at a"):
        (found,) = function(torch.ones(3))
    assert found.tolist() == [2, 2, 2]
    assert not function.is_compiled
    assert function(torch.ones(3))[0].tolist() == [2, 2, 2]  # and nothing is said again


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_on_raises_where_the_compiler_fails() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported):
        Compiled(depends_on_values, "on", CPU, **NAMES)(torch.ones(3))


def add_one(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Overwrites its argument, as the loss does."""
    return (values.add_(1).clone(),)


def compile_to(monkeypatch: pytest.MonkeyPatch, *steps: Exception | None) -> Compiled:
    """``add_one``, whose compiled form ends its calls, one after another, in ``steps``.

    As in PyTorch, it has run by then, unless what failed is the compiler.
    """
    endings = iter(steps)

    def compiled(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        error = next(endings)
        if isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise error
        found = add_one(values)
        if error is not None:
            raise error
        return found

    monkeypatch.setattr("torch.compile", lambda function, **options: compiled)
    return Compiled(add_one, "auto", CPU, **NAMES)


def test_a_call_that_failed_to_compile_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    function = compile_to(monkeypatch, torch._dynamo.exc.InternalTorchDynamoError("no room"))
    values = torch.ones(3)
    with pytest.warns(RuntimeWarning, match="no room"):
        function(values)
    assert values.tolist() == [2, 2, 2]


def test_a_first_run_that_fails_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have overwritten its argument."""
    function = compile_to(monkeypatch, RuntimeError("an illegal access"))
    with pytest.raises(RuntimeError, match="an illegal access"):
        function(torch.ones(3))


@pytest.mark.parametrize(
    "error", [RuntimeError("later"), torch._dynamo.exc.InternalTorchDynamoError("later")]
)
def test_failures_after_a_first_successful_run_propagate(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    function = compile_to(monkeypatch, None, error)
    assert function(torch.ones(3))[0].tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="later"):
        function(torch.ones(3))
    assert function.is_compiled


def test_auto_runs_eagerly_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler"):
        function = Compiled(depends_on_values, "auto", CPU, **NAMES)
    assert function(torch.ones(2))[0].tolist() == [2, 2]


def test_compile_off_runs_eagerly_without_a_message() -> None:
    assert not Compiled(depends_on_values, "off", CPU, **NAMES).is_compiled


def row_sums(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (values.exp().sum(1),)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cached_code_for_wider_vectors_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    values = torch.rand(7, 100)
    for capability in (None, "avx2"):
        if capability is None:
            monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
        else:
            monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        torch._dynamo.reset()
        (found,) = Compiled(row_sums, "on", CPU, **NAMES)(values)
        torch.testing.assert_close(found, values.exp().sum(1))
