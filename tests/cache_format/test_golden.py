"""Caches that an older program wrote still decode to the same rows, by two readers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import cache_format
from cache_format.coding.bits import encode_numbers
from cache_format.tables.random_projection import chosen_layers
from cache_format.tables.shared_files import files_of
from cache_format.tools.verify import verify
from tests.support import second_reader
from tests.support.golden_cache import (
    GOLDEN,
    ROWS_OF_UNIT,
    SPECS,
    TRANSFORM,
    as_json,
    decoded,
    golden_head,
    golden_rows,
    write_golden,
)
from tests.support.sample_cache import assert_decoded

CACHE_IDS = {
    "top_k": "f43b10c61e210b0d8a3b297e871da6b5827679c302b7f9d0a5cbbdaadb009b54",
    "adaptive": "5ef85dbcc77486808d511a50250e6ef5b4c183333147b8a0074c9968a9295baa",
    "sampled": "ce85cea3c4a35d496364d6f196edc0504bf245480531379d85de25b3c40dfb26",
    "whole": "896d08ba65068d6450d48259fce7700af67b40a88a28eefe66bb42827a990331",
    "tail_draws": "c8dd94600393c7c7f6d581acd6671601fe92f0d0d80d24f1287595b80342ade3",
    "sampled_at_2": "9e899335901dc91dcfd78815948fe1f437b05a8a4494b80f88c1194fffa2bbfa",
    "pca": "9cbf64ff765c9ad0dbbea4546d88d6730655a8c9872c1d422e5a46f1f12e2c16",
    "row_split": "d5141a5480fdd7a70eee4058f968d721eb41586eb04ef9492e5eae7c953097a2",
    "paragraphs": "21dd06103f611b1173fbc408443d706f10dac5f46146ca38e0f12d287eb8755a",
    "corpora": "cbf55777470afd8abf0297aa188a1d3b0cefec84d00f2c7032dc795e00722877",
    "context": "ff94686d88492feaed97b92c9d03c26210f3e6c20fa75b8bd01384f0416f0813",
    "hidden": "00256a7acf1767030f8b66a8696d8d99c4b3018cae30c15fbd5ebbc6bb851d32",
    "top_k_hidden": "970869b1b76fc6a640166de50a221e8814f74d0292a0172c9b25f3085aee4beb",
    "tail_moment": "3ec38060ea3bcea0458669d8016fb5d8e794e4a0047077724741cfffba1bd307",
}


def _assert_known(found: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Whole numbers are equal; logarithms and products may differ in their last decimal.

    What a row does not have may be null or left out.
    """
    known = json.loads((GOLDEN / f"{name}.json").read_text())
    assert {split: len(rows) for split, rows in found.items()} == {
        split: len(rows) for split, rows in known.items()
    }
    for split, rows in known.items():
        for row, expected in zip(found[split], rows, strict=True):
            arrays = {field: value for field, value in row.items() if value is not None}
            wanted = {field: value for field, value in expected.items() if value is not None}
            assert arrays.keys() == wanted.keys()
            for field, value in wanted.items():
                of_field, value = (np.array(item, float) for item in (arrays[field], value))
                np.testing.assert_allclose(of_field, value, rtol=0, atol=2e-6, err_msg=field)


@pytest.mark.parametrize("name", SPECS)
def test_golden_caches_decode_to_their_known_rows(name: str) -> None:
    _assert_known(decoded(GOLDEN / name), name)


@pytest.mark.parametrize("name", SPECS)
def test_a_second_reader_written_from_the_readme_reads_the_same_rows(name: str) -> None:
    found: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for split, unit, row in second_reader.rows(GOLDEN / name):
        for field in ("kept_tail_log_mass", "kept_next_logprob"):
            if field in row:
                row[field][row["kept_num_ids"] == 0] = 0  # they mean nothing there
        found[split].append({"unit": unit} | as_json(row))
    _assert_known(found, name)


def test_the_second_reader_is_short_and_imports_nothing_of_ours() -> None:
    text = Path(second_reader.__file__).read_text()
    lines = [line for line in text.splitlines() if line.strip()]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert not any("cache_format" in line for line in imports)
    assert len(lines) - len(imports) - 1 <= 280  # without its docstring


@pytest.mark.parametrize(
    ("file", "offset"),
    [
        *(("manifest.json", 300), ("ranks.bin", 40), ("projection.bin", 7)),
        ("receipts/00001.json", 300),
    ],
)
def test_the_second_reader_refuses_damaged_files(tmp_path: Path, file: str, offset: int) -> None:
    write_golden("pca", tmp_path)
    assert len(list(second_reader.rows(tmp_path))) == 2
    data = bytearray((tmp_path / file).read_bytes())
    data[offset] ^= 1
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ValueError):  # noqa: PT011
        list(second_reader.rows(tmp_path))


@pytest.mark.parametrize("offset", [0, 100, 311, 312, 317, 318, 1853])
def test_the_second_reader_refuses_a_damaged_transform(tmp_path: Path, offset: int) -> None:
    write_golden("hidden", tmp_path)
    data = bytearray((tmp_path / "transform.bin").read_bytes())
    data[offset] ^= 1
    (tmp_path / "transform.bin").write_bytes(data)
    with pytest.raises(ValueError, match=r"transform\.bin: another SHA-256"):
        list(second_reader.rows(tmp_path))
    if offset > 311:  # behind the matrices, where any bit makes the code another
        with pytest.raises(ValueError, match=r"its limits|its code"):
            second_reader.transform(bytes(data), 6, _coded("hidden"))


def _coded(name: str) -> dict[str, Any]:
    coded: dict[str, Any] = SPECS[name].to_json()["targets"]["hidden"]
    return coded


@pytest.mark.parametrize("offset", [0, 31, 32, 43, 44, 100, 355, 361, 1890])
def test_the_second_reader_refuses_a_damaged_basis_of_moments(tmp_path: Path, offset: int) -> None:
    write_golden("tail_moment", tmp_path)
    data = bytearray((tmp_path / "tail_moment.bin").read_bytes())
    data[offset] ^= 1
    (tmp_path / "tail_moment.bin").write_bytes(data)
    with pytest.raises(ValueError, match=r"tail_moment\.bin: another SHA-256"):
        list(second_reader.rows(tmp_path))


@pytest.mark.parametrize("num_positions", [2, 511, 512, 513, 1100])
def test_the_second_reader_reads_coefficients_of_several_blocks(num_positions: int) -> None:
    random = np.random.default_rng(num_positions)
    values = np.rint(random.laplace(0, [60, 9, 5, 1, 1, 0.4], (num_positions, 6))).astype(int)
    values[0] = [32_767, -32_767, 8, -7, 1, -1]
    scored = np.append(np.ones(num_positions, bool), False)
    code = second_reader.transform(TRANSFORM.to_bytes(), 6, _coded("hidden"))
    found = second_reader.hidden(TRANSFORM.code.encode(values), scored, code)
    np.testing.assert_array_equal(found["coefficients"], [*values, [0] * 6])


def test_the_second_reader_rebuilds_the_logits_of_states() -> None:
    """Those of the first row's last position: its state is worked out below."""
    _, _, row = next(iter(second_reader.rows(GOLDEN / "hidden")))
    found = second_reader.logits(GOLDEN / "hidden", row["states"])
    assert found.shape == (6, 100)
    expected = golden_head()[:100] @ np.array([43, 43.25, -1.5, -1.5, 0.5, 0.5])
    np.testing.assert_allclose(found[5], expected)


def test_the_second_reader_spreads_the_mass_of_the_tail_as_the_state_says() -> None:
    """At position 2 of row 0, which keeps ids 22, 35 and 48 at the levels 10, 49 and 75 of 128.

    ln Z = 0.3236, as in the golden cache ``top_k``. At node 1, the tail's −2 − 0.3236 is −74.4
    steps of 1/32, so −74; at node 1/2, 0.1667 − 0.1618 is 0.2 steps, so 0. The coefficients are
    145, −1, −7, 1, −2, 0: n = 62 + 17 j, and so on as in the golden cache ``hidden``.
    """
    root = GOLDEN / "top_k_hidden"
    _, _, row = next(iter(second_reader.rows(root)))
    assert row["kept_ids"][1:4].tolist() == [22, 35, 48]
    state = np.array([145, 144, -8, -6, -1, -2]) / 4 + np.array([-2, -1, 0, 1, 2, 3]) / 4
    logits, is_kept = golden_head()[:100] @ state, np.isin(np.arange(100), [22, 35, 48])
    for node, s, tail in ((0, 0.5, 1.0), (1, 1.0, math.exp(-74 / 32))):
        masses = np.where(is_kept, 0, np.exp(s * (logits - logits.max())))
        masses *= tail / masses.sum()
        masses[[22, 35, 48]] = (np.array([118, 79, 53]) / 128) ** (4 * s)
        found = second_reader.probabilities(root, row, 2, node)
        np.testing.assert_allclose(found, masses / masses.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    "hidden_states", ["mean_over_layers", "last", "layers:2,5,11", "each:2,5,11"]
)
@pytest.mark.parametrize("unit", [0, 70_000])
def test_the_second_reader_chooses_the_same_layers(hidden_states: str, unit: int) -> None:
    for rule in (hidden_states, "random_layers:1", "random_layers:4", "random_layers:12"):
        spec = {
            "sketch": {"hidden_states": rule},
            "teacher": {"num_layers": 12},
            "seed": 2**63 - 1,
        }
        found = chosen_layers(rule, 12, 2**63 - 1, unit)
        assert list(found) == second_reader.layers(spec, unit)


@pytest.mark.parametrize("name", SPECS)
def test_the_known_rows_are_within_rounding_of_the_input(name: str) -> None:
    cache = cache_format.open(GOLDEN / name)
    for split, rows in golden_rows(name).items():
        found = [row for _, row in cache.iter_rows(split)]  # type: ignore[arg-type]
        for row, given in zip(found, rows, strict=True):
            assert_decoded(row, given, SPECS[name])


def test_golden_top_k_values_match_those_worked_out_by_hand() -> None:
    """Worked out by hand from ``golden_row("top_k", 0)`` and sections 7.1 and 7.2 of the README."""
    _, row = cache_format.open(GOLDEN / "top_k").read_row("validation", 0)
    assert row.document_starts.tolist() == [2]
    assert row.kept.num_ids.tolist() == [1, 0, 3, 4, 1, 2]
    assert row.token_ids.tolist() == [0, 73, 46, 19, 92, 65, 38]
    assert row.kept.ids.tolist()[:4] == [0, 22, 35, 48]
    # Position 0 keeps all: level 0. Position 2: gaps 0, 1.3 + 2/7 = 1.5857 and 3.1714, tail −2:
    # Z = 1 + 0.2048 + 0.0419 + 0.1353 = 1.3821; p = 0.7236, 0.1482, 0.0303; their fourth roots
    # 0.9223, 0.6204, 0.4174; (1 − root) · 128 = 9.9, 48.6, 74.6: levels 10, 49 and 75.
    log_p0 = 4 * math.log(118 / 128)
    gaps = [0.0, 0.0, 4 * math.log(118 / 79), 4 * math.log(118 / 53)]
    np.testing.assert_allclose(row.kept.gaps[:4], gaps, rtol=1e-6)
    assert row.kept.tail_log_mass.tolist()[:2] == [[float("-inf")] * 2, [0.0, 0.0]]
    # ln Z = 0.3236. At node 1: −2 − 0.3236 = −148.7 steps of 1/64, so −149. At node 1/2, where the
    # given one is −2 + (3 + 2/1.5)/2 = 0.1667: 0.1667 − 0.1618 = 0.3 steps, so 0.
    np.testing.assert_allclose(
        row.kept.tail_log_mass[2], [-log_p0 / 2, -149 / 64 - log_p0], rtol=1e-6
    )
    assert row.kept.next_logprob.tolist()[2] == -1.0
    # −1/3 = −21.3 steps.
    assert row.kept.next_logprob.tolist()[:2] == [-21 / 64, 0.0]
    # The largest of −48/16, −11/16, 26/16, −34/16, … is 3 of 48 / 16: 3 / 127 = 0.0236220, which is
    # 1.511811 · 2⁻⁶; rounded up to 7 bits behind the point that is 194 / 128 · 2⁻⁶.
    assert row.sketch is not None
    scale = 194 / 128 / 64
    np.testing.assert_allclose(row.sketch[0, 0, :3], [-127 * scale, -29 * scale, 69 * scale])


def test_golden_sample_counts_match_those_worked_out_by_hand() -> None:
    """50 draws: at position 2 of row 0 three ids, with 2 and 1 draws of the later ones."""
    _, row = cache_format.open(GOLDEN / "sampled").read_row("validation", 0)
    assert row.kept.counts is not None
    assert row.kept.num_ids.tolist() == [1, 0, 3, 4, 5, 1]
    assert row.kept.counts.tolist()[:4] == [50, 47, 2, 1]
    assert row.kept.ids.tolist()[:4] == [0, 22, 35, 48]
    gaps = [0.0, 0.0, math.log(47 / 2), math.log(47)]
    np.testing.assert_allclose(row.kept.gaps[:4], gaps, rtol=1e-6)


def test_golden_tail_samples_match_those_worked_out_by_hand() -> None:
    """Position 2 of row 0 keeps ids 22, 35 and 48 and has six draws of 61, 74 and 87: 3, 2 and 1.

    Its levels are 10, 49 and 75 (above). So c = 4 ln(53.5 / 128), and log p of the draws at gaps
    3.1714 + 0.3, twice, and 3.1714 + 2.2: 0.3236 more than these below 0. (c − log p) · 8 is 2.45
    and 17.65, rounded 2 and 18. Ids 61 and 74 have the ranks 23 and 82.
    """
    _, row = cache_format.open(GOLDEN / "tail_draws").read_row("validation", 0)
    assert row.kept.draws is not None
    assert row.kept.draws.num_ids.tolist() == [0, 0, 3, 4, 1, 2]
    assert row.kept.draws.ids.tolist()[:3] == [61, 74, 87]
    assert row.kept.draws.counts.tolist()[:3] == [3, 2, 1]
    c, log_p0 = 4 * math.log(53.5 / 128), 4 * math.log(118 / 128)
    gaps = [log_p0 - c + 2 / 8, log_p0 - c + 2 / 8, log_p0 - c + 18 / 8]
    np.testing.assert_allclose(row.kept.draws.gaps[:3], gaps, rtol=1e-6)
    assert all(np.add.reduceat(row.kept.draws.counts, [0, 3, 7, 8]) == 6)


def test_golden_principal_components_match_the_known_matrix() -> None:
    cache = cache_format.open(GOLDEN / "pca")
    assert cache.projection is not None
    assert cache.projection.tolist() == [
        *([0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5], [0.5, -0.5, -0.5]),
    ]


def test_golden_context_and_states_match_those_worked_out_by_hand() -> None:
    """Row 0 has documents from tokens 0 and 2, and the labels of positions 0 and 1 are context.

    Number n of the sketch is (37 n mod 97 − 48) / 16; a position has 8 of layer 1, then of layer 2.
    Those of position 4, 64 to 79, are at most 43 / 16 and 48 / 16. Divided by 127, that is
    1.354331 · 2⁻⁶ and 1.511811 · 2⁻⁶; rounded up to 7 bits behind the point, 174 / 128 and
    194 / 128.
    """
    _, row = cache_format.open(GOLDEN / "context").read_row("validation", 0)
    assert row.document_starts.tolist() == [2]
    assert row.is_context is not None
    assert row.is_context.tolist() == [True, True, False, False, False, False]
    assert row.kept.num_ids.tolist() == [0, 0, 3, 4, 1, 2]
    assert row.kept.next_logprob.tolist()[:3] == [0.0, 0.0, -1.0]
    assert row.sketch is not None
    assert row.sketch.shape == (6, 2, 8)
    assert not row.sketch[:2].any()
    given = np.array([[-8, 29, -31, 6, 43, -17, 20, -40], [-3, 34, -26, 11, 48, -12, 25, -35]]) / 16
    scales = np.array([[174], [194]]) / 128 / 64
    np.testing.assert_allclose(row.sketch[4], np.rint(given / scales) * scales)


def test_golden_hidden_states_match_those_worked_out_by_hand() -> None:
    """Position 5 of row 0, of the components j = 0 … 5: n = 155 + 17 j = 155, 172, …, 240.

    (n mod 23) − 11 of the first three is 6, 0 and −6, and the first of them counts 29 times;
    (n mod 5) − 2 of the last three is −1, 1 and −2. So the coefficients are 174, 0, −6, −1, 1, −2.
    A state has a quarter of coefficient i and of i − 1 at place i, and (i − 2) / 4 on top.
    """
    cache = cache_format.open(GOLDEN / "hidden")
    assert cache.transform is not None
    _, row = cache.read_row("validation", 0)
    assert row.document_starts.tolist() == [2]
    assert row.coefficients is not None
    assert row.coefficients[5].tolist() == [174, 0, -6, -1, 1, -2]
    assert row.coefficients[1].tolist() == [0] * 6  # another document is next
    state = np.array([174, 174, -6, -7, 0, -1]) / 4 + np.array([-2, -1, 0, 1, 2, 3]) / 4
    np.testing.assert_allclose(cache.transform.states(row.coefficients[5:]), [state])
    head = cache.attachment("embedding.safetensors")
    assert load_file(head)["embedding"].tolist() == golden_head().tolist()


def test_golden_kept_ids_beside_states_match_those_worked_out_by_hand() -> None:
    """The ids of the golden cache ``top_k`` and the coefficients of ``hidden``, in one row."""
    cache = cache_format.open(GOLDEN / "top_k_hidden")
    _, row = cache.read_row("validation", 0)
    assert row.kept.num_ids.tolist() == [1, 0, 3, 4, 1, 2]
    assert row.kept.ids.tolist()[:4] == [0, 22, 35, 48]
    log_p0 = 4 * math.log(118 / 128)
    gaps = [0.0, 0.0, 4 * math.log(118 / 79), 4 * math.log(118 / 53)]
    np.testing.assert_allclose(row.kept.gaps[:4], gaps, rtol=1e-6)
    # Steps of 1/32: −74 and 0 at position 2, and −1/3 = −10.7 steps at position 0.
    np.testing.assert_allclose(
        row.kept.tail_log_mass[2], [-log_p0 / 2, -74 / 32 - log_p0], rtol=1e-6
    )
    assert row.kept.next_logprob.tolist()[:3] == [-11 / 32, 0.0, -1.0]
    assert row.coefficients is not None
    assert row.coefficients[5].tolist() == [174, 0, -6, -1, 1, -2]
    assert row.coefficients[1].tolist() == [0] * 6
    assert row.kept.draws is None
    assert row.sketch is None
    columns = cache.manifest.shards[0].statistics.column_bytes
    assert {"kept", "tail_log_mass", "hidden"} < columns.keys()
    assert "drawn" not in columns


def test_golden_moments_match_those_worked_out_by_hand() -> None:
    """The rows of ``tail_draws``, and at position 5 of row 0 the coefficients of ``hidden`` there.

    They are 174, 0, −6, −1, 1, −2; number i of six has a quarter of coefficient i and of i − 1, and
    (i − 2) / 4 on top. The first three numbers are those of node 1/2, the others those of node 1.
    """
    cache = cache_format.open(GOLDEN / "tail_moment")
    _, row = cache.read_row("validation", 0)
    _, other = cache_format.open(GOLDEN / "tail_draws").read_row("validation", 0)
    assert row.kept.ids.tolist() == other.kept.ids.tolist()
    assert row.kept.draws is not None
    assert other.kept.draws is not None
    assert row.kept.draws.ids.tolist() == other.kept.draws.ids.tolist()
    assert row.coefficients is None
    assert row.moment_coefficients is not None
    assert row.moment_coefficients[5].tolist() == [174, 0, -6, -1, 1, -2]
    assert row.moment_coefficients[1].tolist() == [0] * 6  # another document is next
    assert cache.moment is not None
    found = cache.moment.moments(row.moment_coefficients[5:])
    numbers = np.array([174, 174, -6, -7, 0, -1]) / 4 + np.array([-2, -1, 0, 1, 2, 3]) / 4
    np.testing.assert_allclose(found, numbers.reshape(1, 2, 3))
    assert cache.moment.basis.tolist() == [[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]]
    assert cache.moment.center.tolist() == [0.25, -0.5, 2.0]


def test_a_golden_stream_of_one_position_is_worked_out_by_hand() -> None:
    """Coefficients 0, −8, 7, 0, 1 and −1, the first two of them halved: one lane, and one word.

    The halves are 0 and −4, their lowest bits 0. The symbols are 127; 3 and 14 in base 15, which is
    59; 1, 2 and 0 in base 3, which is 15. In class 0 their frequencies are 128, 60 and 12, of 2¹⁴,
    and that of the class is 12288, which is 26 bits. In class 1 they are 64, 72 and 606, and its
    own is 4096: 23 bits. So it is of class 1. Up to the symbols the frequencies are 128 + 126 · 64
    = 8192, 256 + 58 · 72 = 4432 and 628 + 14 · 606 = 9112, and up to the class 12288. The lane
    begins with how many bytes the others are, n: one of the lowest bits, and the excesses.
    """
    cell = TRANSFORM.code.encode(np.array([[0, -8, 7, 0, 1, -1]]))
    others = b"\0" + encode_numbers(np.array([0, 0, 0]))  # of 7, 1 and −1, at the limits 7, 1 and 1
    state = 65_536 + len(others)
    state = 16_384 * (state // 606) + state % 606 + 9112
    state = 16_384 * (state // 72) + state % 72 + 4432
    assert state >= 64 * 2**18
    word, state = state % 65_536, state // 65_536
    state = 16_384 * (state // 64) + state % 64 + 8192
    state = 16_384 * (state // 4096) + state % 4096 + 12_288
    states = encode_numbers(np.array([state]))
    length = len(states).to_bytes(4, "little")
    assert cell == length + states + word.to_bytes(2, "little") + bytes(2) + others


@pytest.mark.parametrize("name", SPECS)
def test_golden_specs_and_format_versions_stay_the_same(tmp_path: Path, name: str) -> None:
    """``spec.json``, which depends on no library, is the same to the byte; so is what it states."""
    write_golden(name, tmp_path)
    files = {"spec.json", "ranks.bin", *files_of(SPECS[name])}
    for file in sorted(files):
        assert (tmp_path / file).read_bytes() == (GOLDEN / name / file).read_bytes()
    for root in (GOLDEN / name, tmp_path):
        sealed = [*root.glob("*.json"), *root.glob("receipts/*.json")]
        assert len(sealed) > 2
        assert {json.loads(path.read_text())["format_version"] for path in sealed} == {"2.0"}
        assert cache_format.open(root).manifest.format_version == "2.0"


def test_golden_caches_keep_their_cache_id_and_verify() -> None:
    for name, spec in SPECS.items():
        cache = cache_format.open(GOLDEN / name)
        assert cache.spec == spec
        assert cache.cache_id == CACHE_IDS[name]
        assert verify(cache) == []
        if name == "row_split":
            continue  # all its shards are of both
        assert [len(cache.shards(split)) for split in ("train", "validation")] == [
            sum(SPECS[name].place_of(unit).number % 2 == parity for unit in ROWS_OF_UNIT[name])
            for parity in (1, 0)
        ]
    attachment = cache_format.open(GOLDEN / "top_k").attachment("config.json")
    assert attachment.read_text() == "{}\n"


@pytest.mark.parametrize("name", SPECS)
def test_golden_caches_written_again_decode_to_the_same_rows(tmp_path: Path, name: str) -> None:
    """The bytes may differ between versions of zstd; what they decode to may not."""
    write_golden(name, tmp_path)
    _assert_known(decoded(tmp_path), name)


def test_golden_caches_stay_below_225_kb() -> None:
    sizes = [path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(sizes) < 225_000
