"""Caches that an older program wrote still decode to the same rows, by two readers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cache_format
from cache_format.metadata.random_projection import chosen_layers
from cache_format.tools.verify import verify
from tests.support import second_reader
from tests.support.golden_cache import (
    GOLDEN,
    ROWS_OF_UNIT,
    SPECS,
    as_json,
    decoded,
    golden_rows,
    write_golden,
)
from tests.support.sample_cache import assert_decoded

CACHE_IDS = {
    "top_k": "c63293db298b1627e3679886b2aa4a230ad8c76997ff1f3d371c86016f60da58",
    "adaptive": "3e4a96a0b1ad2d783ae9221ae611da48f1b3340a6cc40179f5888e9411b2f269",
    "sampled": "f46730260b39be987ff784dec349edac1e266d1ad70c519fdeaa094e6896f683",
    "whole": "2925e9deac1437fb81ffdba6bf5dce812bfd4149116240699c3936f7cef5a513",
    "tail_draws": "3eec57e8831d62cbfbd4574b1502618e1e8f30b9c81a384ae3cc20359995b4cd",
    "sampled_at_2": "3a52798ec39dd3be09a1177307b9e836b2771ca947e36f418c2d7e0536f56149",
    "pca": "c53ec36a1f7abc48a6466bb5bf06cbfa8a182f2908da8517fd04c9fa25bc08cb",
    "row_split": "d6f8cfe0eadba3a39556fd397fc2d837af0b18f69ba802b7ca076688feeb6289",
    "paragraphs": "a868411571dcd6df8169eef0265b6a876242583ba501d4d1da2106dd0b0197f1",
}
VERSIONS = dict.fromkeys(("top_k", "adaptive", "sampled", "whole"), "1.0") | {
    "row_split": "1.2",
    "paragraphs": "1.2",
}
"""Of those that are not in 1.1."""


def _assert_known(found: dict[str, list[dict[str, Any]]], name: str) -> None:
    """Whole numbers are equal; logarithms and products may differ in their last decimal."""
    known = json.loads((GOLDEN / f"{name}.json").read_text())
    assert {split: len(rows) for split, rows in found.items()} == {
        split: len(rows) for split, rows in known.items()
    }
    for split, rows in known.items():
        for row, expected in zip(found[split], rows, strict=True):
            assert row.keys() == expected.keys()
            for field, value in expected.items():
                wanted, value = (np.array(item, float) for item in (value, row[field]))
                np.testing.assert_allclose(value, wanted, rtol=0, atol=2e-6, err_msg=field)


@pytest.mark.parametrize("name", SPECS)
def test_golden_caches_decode_to_their_known_rows(name: str) -> None:
    _assert_known(decoded(GOLDEN / name), name)


@pytest.mark.parametrize("name", SPECS)
def test_a_second_reader_written_from_the_readme_reads_the_same_rows(name: str) -> None:
    found: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for split, unit, row in second_reader.rows(GOLDEN / name):
        scored = row["num_kept"] > 0
        for field in ("tail_log_mass", "next_logprob"):
            row[field][~scored] = 0  # they mean nothing there
        found[split].append({"unit": unit} | as_json(row))
    _assert_known(found, name)


def test_the_second_reader_is_short_and_imports_nothing_of_ours() -> None:
    text = Path(second_reader.__file__).read_text()
    lines = [line for line in text.splitlines() if line.strip()]
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert not any("cache_format" in line for line in imports)
    assert len(lines) - len(imports) - 1 <= 140  # without its docstring


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


@pytest.mark.parametrize("hidden_states", ["mean_over_layers", "last", "layers:2,5,11"])
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
    assert row.num_kept.tolist() == [1, 0, 3, 4, 1, 2]
    assert row.token_ids.tolist() == [0, 73, 46, 19, 92, 65, 38]
    assert row.kept_ids.tolist()[:4] == [0, 22, 35, 48]
    # Position 0 keeps all: level 0. Position 2: gaps 0, 1.3 + 2/7 = 1.5857 and 3.1714, tail −2:
    # Z = 1 + 0.2048 + 0.0419 + 0.1353 = 1.3821; p = 0.7236, 0.1482, 0.0303; their fourth roots
    # 0.9223, 0.6204, 0.4174; (1 − root) · 128 = 9.9, 48.6, 74.6: levels 10, 49 and 75.
    log_p0 = 4 * math.log(118 / 128)
    gaps = [0.0, 0.0, 4 * math.log(118 / 79), 4 * math.log(118 / 53)]
    np.testing.assert_allclose(row.gaps[:4], gaps, rtol=1e-6)
    assert row.tail_log_mass.tolist()[:2] == [[float("-inf")] * 2, [0.0, 0.0]]
    # ln Z = 0.3236. At node 1: −2 − 0.3236 = −148.7 steps of 1/64, so −149. At node 1/2, where the
    # given one is −2 + (3 + 2/1.5)/2 = 0.1667: 0.1667 − 0.1618 = 0.3 steps, so 0.
    np.testing.assert_allclose(row.tail_log_mass[2], [-log_p0 / 2, -149 / 64 - log_p0], rtol=1e-6)
    assert row.next_logprob.tolist()[2] == -1.0
    # −1/3 = −21.3 steps.
    assert row.next_logprob.tolist()[:2] == [-21 / 64, 0.0]
    # The largest of −48/16, −11/16, 26/16, −34/16, … is 3 of 48 / 16: 3 / 127 = 0.0236220, which is
    # 1.511811 · 2⁻⁶; rounded up to 7 bits behind the point that is 194 / 128 · 2⁻⁶.
    assert row.sketch is not None
    scale = 194 / 128 / 64
    np.testing.assert_allclose(row.sketch[0, :3], [-127 * scale, -29 * scale, 69 * scale])


def test_golden_sample_counts_match_those_worked_out_by_hand() -> None:
    """50 draws: at position 2 of row 0 three ids, with 2 and 1 draws of the later ones."""
    _, row = cache_format.open(GOLDEN / "sampled").read_row("validation", 0)
    assert row.counts is not None
    assert row.num_kept.tolist() == [1, 0, 3, 4, 5, 1]
    assert row.counts.tolist()[:4] == [50, 47, 2, 1]
    assert row.kept_ids.tolist()[:4] == [0, 22, 35, 48]
    gaps = [0.0, 0.0, math.log(47 / 2), math.log(47)]
    np.testing.assert_allclose(row.gaps[:4], gaps, rtol=1e-6)


def test_golden_tail_samples_match_those_worked_out_by_hand() -> None:
    """Position 2 of row 0 keeps ids 22, 35 and 48 and has six draws of 61, 74 and 87: 3, 2 and 1.

    Its levels are 10, 49 and 75 (above). So c = 4 ln(53.5 / 128), and log p of the draws at gaps
    3.1714 + 0.3, twice, and 3.1714 + 2.2: 0.3236 more than these below 0. (c − log p) · 8 is 2.45
    and 17.65, rounded 2 and 18. Ids 61 and 74 have the ranks 23 and 82.
    """
    _, row = cache_format.open(GOLDEN / "tail_draws").read_row("validation", 0)
    assert row.draws is not None
    assert row.draws.num_ids.tolist() == [0, 0, 3, 4, 1, 2]
    assert row.draws.ids.tolist()[:3] == [61, 74, 87]
    assert row.draws.counts.tolist()[:3] == [3, 2, 1]
    c, log_p0 = 4 * math.log(53.5 / 128), 4 * math.log(118 / 128)
    gaps = [log_p0 - c + 2 / 8, log_p0 - c + 2 / 8, log_p0 - c + 18 / 8]
    np.testing.assert_allclose(row.draws.gaps[:3], gaps, rtol=1e-6)
    assert all(np.add.reduceat(row.draws.counts, [0, 3, 7, 8]) == 6)


def test_golden_principal_components_match_the_known_matrix() -> None:
    cache = cache_format.open(GOLDEN / "pca")
    assert cache.projection is not None
    assert cache.projection.tolist() == [
        *([0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5], [0.5, -0.5, -0.5]),
    ]


@pytest.mark.parametrize("name", SPECS)
def test_golden_specs_and_format_versions_stay_the_same(tmp_path: Path, name: str) -> None:
    """``spec.json``, which depends on no library, is the same to the byte; so is what it states."""
    write_golden(name, tmp_path)
    for file in ("spec.json", "ranks.bin"):
        assert (tmp_path / file).read_bytes() == (GOLDEN / name / file).read_bytes()
    version = VERSIONS.get(name, "1.1")
    for root in (GOLDEN / name, tmp_path):
        sealed = [*root.glob("*.json"), *root.glob("receipts/*.json")]
        assert len(sealed) > 2
        assert {json.loads(path.read_text())["format_version"] for path in sealed} == {version}
        assert cache_format.open(root).manifest.format_version == version


def test_golden_caches_keep_their_cache_id_and_verify() -> None:
    for name, spec in SPECS.items():
        cache = cache_format.open(GOLDEN / name)
        assert cache.spec == spec
        assert cache.cache_id == CACHE_IDS[name]
        assert verify(cache) == []
        if name == "row_split":
            continue  # all its shards are of both
        assert [len(cache.shards(split)) for split in ("train", "validation")] == [
            sum(unit % 2 == parity for unit in ROWS_OF_UNIT[name]) for parity in (1, 0)
        ]
    attachment = cache_format.open(GOLDEN / "top_k").attachment("config.json")
    assert attachment.read_text() == "{}\n"


@pytest.mark.parametrize("name", SPECS)
def test_golden_caches_written_again_decode_to_the_same_rows(tmp_path: Path, name: str) -> None:
    """The bytes may differ between versions of zstd; what they decode to may not."""
    write_golden(name, tmp_path)
    _assert_known(decoded(tmp_path), name)


def test_golden_caches_stay_below_150_kb() -> None:
    sizes = [path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()]
    assert sum(sizes) < 150_000
