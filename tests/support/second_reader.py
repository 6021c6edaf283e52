"""A second reader, written from cache_format/README.md alone, with no code of the package."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa


def check(holds: Any, what: str) -> None:
    if not holds:
        raise ValueError(what)


def read(path: Path, sha256: str | None) -> bytes:
    data = path.read_bytes()
    check(sha256 in (None, hashlib.sha256(data).hexdigest()), f"{path}: another SHA-256")
    return data


def unseal(data: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(data)
    seal = b',\n "seal": "%s"\n}\n' % hashlib.sha256(data[:-80]).hexdigest().encode()
    check(fields["format_version"][:2] == "1." and data.endswith(seal), "its version or seal")
    return fields


def planes(frame: bytes, count: int, kind: str) -> Any:
    content = pa.decompress(frame, count * np.dtype(kind).itemsize, "zstd", asbytes=True)
    return np.frombuffer(content, np.uint8).reshape(-1, count).T.copy().reshape(-1).view(kind)


def sized(cell: bytes, size: int) -> tuple[Any, bytes]:
    end = 4 + int.from_bytes(cell[:4], "little")
    return planes(cell[4:end], size, "u1").astype(int), cell[end:]


def raw_bits(data: bytes, widths: Any) -> Any:
    bits, total = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little"), widths.sum()
    check(len(data) == (total + 7) // 8 and not bits[total:].any(), "raw bits too many or too few")
    owner = np.repeat(np.arange(len(widths)), widths)
    place = 2.0 ** (np.arange(total) - (np.cumsum(widths) - widths)[owner])
    return np.bincount(owner, bits[:total] * place, len(widths)).astype(int)


def numbers(cell: bytes, count: int) -> Any:
    classes, rest = sized(cell, count)
    check((classes <= 32).all(), "a class above 32")
    widths = np.maximum(classes - 1, 0)
    return np.where(classes > 0, (1 << widths) + raw_bits(rest, widths), 0)


def signed(v: Any) -> Any:
    return np.where(v % 2, -(v + 1) // 2, v // 2)


def entries(cell: bytes, slots: Any, vocab_size: int, least: int) -> tuple[Any, Any]:
    groups = np.array([(int(slot).bit_length() + 1) // 2 for slot in slots], int)
    symbols = np.zeros(len(slots), int)
    for group in range(groups.max(initial=-1) + 1):
        symbols[groups == group], cell = sized(cell, int((groups == group).sum()))
    C = (vocab_size - 1).bit_length() + 1
    m = 256 // C - 4
    fall_class, distance_class = np.divmod(symbols, C)
    distance_bits, fall_bits = np.maximum(distance_class - 1, 0), np.array([0] * m + [1, 2, 4, 8])
    low = raw_bits(cell, np.stack([distance_bits, fall_bits[fall_class]], 1).ravel())
    falls = np.array([*range(m + 1), m + 2, m + 6, m + 22])[fall_class] + low[1::2]
    levels, ranks = falls.copy(), np.where(distance_class > 0, (1 << distance_bits) + low[::2], 0)
    for i in np.flatnonzero(slots):
        levels[i] += levels[i - 1]
        ranks[i] += 0 if falls[i] else ranks[i - 1] + least
    check((levels < 256).all() and (ranks < vocab_size).all(), "a level or rank too high")
    return levels, ranks


def decode(cells: dict[str, Any], spec: dict[str, Any], table: Any) -> dict[str, Any]:
    T, targets, sketch = spec["sequence_length"], spec["targets"], spec["sketch"]
    L, step, nodes = (targets[n] for n in ("num_levels", "log_step", "inverse_temperatures"))
    tokens, starts = numbers(cells["token_ids"], T + 1), np.array(cells["document_starts"], int)
    num_kept = np.cumsum(signed(numbers(cells["num_kept"], T)))
    scored, ends = ~np.isin(np.arange(1, T + 1), starts), np.cumsum(num_kept)
    check(((num_kept > 0) == scored).all() and num_kept.max() <= targets["top_k"], "num_kept")
    slots = np.arange(ends[-1]) - np.repeat(ends - num_kept, num_kept)
    levels, ranks = entries(cells["kept"], slots, len(table), 1)
    check(max(tokens) < len(table) and (levels <= L).all(), "a token or level too high")
    draws = L - levels if targets["kind"] == "sampled" else None
    p = draws / L if draws is not None else np.where(levels < L, 1 - levels / L, 1 / (4 * L)) ** 4
    first, label = np.zeros(T), np.zeros(T)  # log p0, and log p of the label as far as it is known
    first[scored], label[scored] = np.log(p[(ends - num_kept)[scored]]), np.log(p[ends[scored] - 1])
    is_label = ranks == np.repeat(tokens[1:], num_kept)
    label[np.repeat(np.arange(T), num_kept)[is_label]] = np.log(p[is_label])
    stored = numbers(cells["tail_log_mass"], len(nodes) * T).reshape(-1, T)
    q, tail = np.zeros((len(nodes), T), int), np.full((len(nodes), T), -np.inf)
    for n, s in enumerate(nodes):
        expected = 2 * q[n - 1] - q[n - 2] if n > 1 else q[0]  # q[0] is still 0 at node 0
        q[n] = np.where(stored[n] > 0, expected + signed(stored[n] - 1), 0)
        tail[n] = np.where(stored[n] > 0, step * q[n] - s * first, -np.inf)
    gaps, steps = np.repeat(first, num_kept) - np.log(p), signed(numbers(cells["next_logprob"], T))
    row = {"token_ids": table[tokens], "document_starts": starts, "num_kept": num_kept}
    row |= {"kept_ids": table[ranks], "gaps": gaps, "counts": draws, "tail_log_mass": tail.T}
    row |= {"next_logprob": step * (steps + np.rint(label / step)), "sketch": None}
    if targets["kind"] == "top_k+sampled":
        tailed, last = scored & (stored[0] > 0), levels[ends - 1]
        c = 4 * np.log(np.minimum((L - last + 0.5) / L, 1))
        row |= drawn(cells["drawn"], tailed, targets["num_draws"], table, first, c)
    if sketch["kind"] != "none":
        kind = {"int8": "i1", "float16": "<f2", "float32": "<f4"}[sketch["dtype"]]
        row["sketch"] = planes(cells["sketch"], T * sketch["dim"], kind).reshape(T, -1)
        if kind == "i1":
            upper = planes(cells["sketch_scale"], T, "<u2").astype("<u4")
            row["sketch"] = row["sketch"] * (upper << 16).view("<f4")[:, None]
    return row


def drawn(cell: bytes, tailed: Any, m: int, table: Any, first: Any, c: Any) -> dict[str, Any]:
    slots = np.tile(np.arange(m), tailed.sum())
    levels, ranks = entries(cell, slots, len(table), 0)
    keys = [*zip(np.repeat(np.flatnonzero(tailed), m).tolist(), levels, ranks, strict=True)]
    distinct = sorted(set(keys))
    at = np.array([t for t, _, _ in distinct], int)
    gaps = first[at] - c[at] + np.array([q for _, q, _ in distinct]) / 8
    row = {"num_ids": np.bincount(at, minlength=len(tailed)), "gaps": gaps}
    row |= {"ids": table[[r for _, _, r in distinct]], "counts": [keys.count(k) for k in distinct]}
    return {f"drawn_{name}": np.array(values) for name, values in row.items()}


def layers(spec: dict[str, Any], unit: int) -> list[int]:
    rule, depth = spec["sketch"]["hidden_states"], spec["teacher"]["num_layers"]
    if rule[:13] == "random_layers":
        key = b"layers" + spec["seed"].to_bytes(8, "little") + unit.to_bytes(8, "little")
        stream = np.frombuffer(hashlib.shake_256(key).digest(8 * depth), "<u8").tolist()
        return sorted(
            sorted(range(1, depth + 1), key=lambda layer: stream[layer - 1])[: int(rule[14:])]
        )
    named = {"mean_over_layers": [*range(1, depth + 1)], "last": [depth]}
    return named[rule] if rule in named else [int(layer) for layer in rule[7:].split(",")]


def splits(spec: dict[str, Any], unit: int, R: int) -> tuple[str | None, list[str]]:
    n = spec["validation_every"]
    if "validation_split" not in spec:
        whole = "train" if unit % n else "validation"
        return whole, [whole] * R
    check(spec["validation_split"] == "rows", "validation_split")
    v = ((unit + 1) * R + n - 1) // n - (unit * R + n - 1) // n
    return None, ["train"] * (R - v) + ["validation"] * v


def rows(root: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    manifest = unseal(read(root / "manifest.json", None))
    spec, cache_id = manifest["spec"], manifest["cache_id"]
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()
    check(manifest["complete"] and hashlib.sha256(canonical).hexdigest() == cache_id, "manifest")
    table = np.frombuffer(read(root / "ranks.bin", spec["targets"]["ranks_sha256"]), "<i4")
    check((np.sort(table) == range(spec["teacher"]["vocab_size"])).all(), "ranks.bin")
    if spec["sketch"]["kind"] == "pca":
        W = np.frombuffer(read(root / "projection.bin", spec["sketch"]["projection_sha256"]), "<f4")
        check(W.size == spec["teacher"]["hidden_size"] * spec["sketch"]["dim"], "projection.bin")
    for shard in manifest["shards"]:
        file = f"shards/{shard['unit']:05d}-{shard['sha256'][:16]}.arrow"
        split, of_rows = splits(spec, shard["unit"], shard["num_rows"])
        check((split, file) == (shard.get("split"), shard["file"]), f"{file}: split or name")
        receipt = unseal(read(root / f"receipts/{shard['unit']:05d}.json", shard["receipt_sha256"]))
        data = read(root / file, shard["sha256"])
        for start, length, sha256 in receipt["segments"]:
            check(hashlib.sha256(data[start : start + length]).hexdigest() == sha256, file)
        stream = pa.ipc.open_stream(data[8:])
        whose = {b"cache_id": cache_id.encode(), b"unit": b"%d" % shard["unit"]}
        check(whose.items() <= stream.schema.metadata.items(), f"{file}: of another cache")
        for split_of_row, cells in zip(of_rows, stream.read_all().to_pylist(), strict=True):
            yield split_of_row, shard["unit"], decode(cells, spec, table)
