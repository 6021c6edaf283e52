"""What cannot be compiled is computed all the same, and not in silence."""

import pytest
import torch

from stages.compiling import Compiled

CPU = torch.device("cpu")
NAMES = {"what": "sums are made", "setting": "a_stage.compile"}


def depends_on_values(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """No graph holds the branch."""
    return (values + 1,) if values.tolist()[0] > 0 else (values - 1,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_a_compiler_that_fails_is_done_without() -> None:
    function = Compiled(depends_on_values, "auto", CPU, **NAMES)
    with pytest.warns(RuntimeWarning, match="sums are made without torch.compile, at a"):
        (found,) = function(torch.ones(3))
    assert found.tolist() == [2, 2, 2]
    assert not function.is_compiled
    assert function(torch.ones(3))[0].tolist() == [2, 2, 2]  # and nothing is said again


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_on_means_on() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported):
        Compiled(depends_on_values, "on", CPU, **NAMES)(torch.ones(3))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler"):
        function = Compiled(depends_on_values, "auto", CPU, **NAMES)
    assert function(torch.ones(2))[0].tolist() == [2, 2]


def test_off_says_nothing() -> None:
    assert not Compiled(depends_on_values, "off", CPU, **NAMES).is_compiled
