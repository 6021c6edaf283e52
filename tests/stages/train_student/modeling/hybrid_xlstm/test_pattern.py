"""The expression that says what each layer is."""

import pytest

from stages.train_student.modeling.hybrid_xlstm.pattern import layer_kinds, parse_pattern
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("hybrid", ["hybrid"] * 4),
        (" window ", ["window"] * 4),
        ("hybrid*3,attention", ["hybrid", "hybrid", "hybrid", "attention"]),
        ("attention, mlstm * 2 ,window", ["attention", "mlstm", "mlstm", "window"]),
        ("hybrid*4", ["hybrid"] * 4),
    ],
)
def test_a_pattern_names_each_layer(pattern: str, expected: list[str]) -> None:
    assert list(layer_kinds(pattern, 4)) == expected


@pytest.mark.parametrize("pattern", ["hybrid*3", "hybrid,hybrid", "attention*2,hybrid*3"])
def test_a_pattern_of_another_number_of_layers_is_refused(pattern: str) -> None:
    num = len(parse_pattern(pattern))
    with pytest.raises(ValueError, match=f"names {num} layers, but the teacher has 4"):
        layer_kinds(pattern, 4)


@pytest.mark.parametrize(
    "pattern",
    ["", "softmax", "hybrid*0", "hybrid*-1", "hybrid**2", "hybrid,", "Hybrid", "hybrid*x"],
)
def test_what_is_no_pattern_is_refused_with_the_recipe(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern: .* is no layer; write one of hybrid, mlstm"):
        HybridXLSTMSettings(pattern=pattern)


def test_a_pattern_of_too_many_layers_is_refused() -> None:
    assert len(parse_pattern("hybrid*4095,window")) == 4096
    with pytest.raises(ValueError, match="more than 4096 layers"):
        parse_pattern("hybrid*4096,window")


@pytest.mark.parametrize(
    ("key", "possible", "impossible"),
    [
        ("window", 1, 0),
        ("window", 2**20, 2**20 + 1),
        ("num_sinks", 0, -1),
        ("num_sinks", 4096, 4097),
        ("chunk_length", 1, 0),
        ("chunk_length", 2**20, 2**20 + 1),
        ("output_gate_bias", -100.0, -100.5),
        ("forget_gate_bias", 100.0, 100.5),
        ("forget_gate_bias", -100.0, float("nan")),
    ],
)
def test_settings_have_bounds(key: str, possible: float, impossible: float) -> None:
    arguments: dict[str, object] = {key: possible}
    assert getattr(HybridXLSTMSettings(**arguments), key) == possible  # type: ignore[arg-type]
    arguments[key] = impossible
    with pytest.raises(ValueError, match=f"{key}: must be from"):
        HybridXLSTMSettings(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["window", "attention*2,window"])
def test_training_the_new_parameters_alone_needs_some(pattern: str) -> None:
    assert HybridXLSTMSettings(pattern=pattern, trained="mixers").pattern == pattern
    assert HybridXLSTMSettings(pattern=f"{pattern},mlstm").trained == "new"
    with pytest.raises(ValueError, match=r"trained: must be .* no layer has an mLSTM"):
        HybridXLSTMSettings(pattern=pattern)
