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
    check(fields["format_version"][:2] == "2." and data.endswith(seal), "its version or seal")
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


def decode(cells: dict[str, Any], spec: dict[str, Any], table: Any, code: Any) -> dict[str, Any]:
    T = spec["sequence_length"]
    tokens, starts = numbers(cells["token_ids"], T + 1), np.array(cells["document_starts"], int)
    is_context = context(cells["context"], T)
    scored = ~np.isin(np.arange(1, T + 1), starts) & ~is_context
    check(max(tokens) < len(table), "a token")
    row = {"token_ids": table[tokens], "document_starts": starts, "sketch": None}
    row |= {"is_context": is_context if is_context.any() else None}
    if "sketch" in cells:
        row["sketch"] = sketches(cells, spec["sketch"], T)
    parts = {"hidden", "moment"} & spec["targets"].keys()
    check(("hidden" in parts) == ("hidden" in spec["targets"]["kind"]), "parts of targets")
    if "hidden" in parts:
        row |= hidden(cells["hidden"], scored, code)
    if "moment" in parts:
        found = hidden(cells["tail_moment"], scored, code)
        moments = found["states"].reshape(T, -1, spec["targets"]["moment"]["dim"] + 1)
        row |= {"moment_coefficients": found["coefficients"], "moments": moments}
    if spec["targets"]["kind"] == "hidden":
        return row
    return row | kept_ids(cells, spec, table, tokens, scored)


def kept_ids(
    cells: dict[str, Any], spec: dict[str, Any], table: Any, tokens: Any, scored: Any
) -> dict[str, Any]:
    T, kind, step = spec["sequence_length"], spec["targets"]["kind"], spec["targets"]["log_step"]
    kept, draws = (spec["targets"].get(part, {}) for part in ("kept", "draws"))
    check((bool(kept), bool(draws)) == ("top_k" in kind, "sampled" in kind), "parts of targets")
    num_kept = np.cumsum(signed(numbers(cells["num_kept"], T)))
    ends = np.cumsum(num_kept)
    most = kept["top_k"] if kept else draws["num_draws"]
    check(((num_kept > 0) == scored).all() and num_kept.max() <= most, "num_kept")
    slots = np.arange(ends[-1]) - np.repeat(ends - num_kept, num_kept)
    levels, ranks = entries(cells["kept"], slots, len(table), 1)
    L = kept["num_levels"] if kept else most
    check((levels <= L - (not kept)).all(), "a level")
    p = np.where(levels < L, 1 - levels / L, 1 / (4 * L)) ** 4 if kept else (L - levels) / L
    first, label = np.zeros(T), np.zeros(T)  # log p0, and log p of the label as far as it is known
    first[scored], label[scored] = np.log(p[(ends - num_kept)[scored]]), np.log(p[ends[scored] - 1])
    is_label = ranks == np.repeat(tokens[1:], num_kept)
    label[np.repeat(np.arange(T), num_kept)[is_label]] = np.log(p[is_label])
    gaps, steps = np.repeat(first, num_kept) - np.log(p), signed(numbers(cells["next_logprob"], T))
    row = {"kept_num_ids": num_kept, "kept_ids": table[ranks]}
    row |= {"kept_gaps": gaps, "kept_counts": None if kept else L - levels}
    row |= {"kept_next_logprob": step * (steps + np.rint(label / step))}
    row["kept_tail_log_mass"] = np.where(scored, -np.inf, 0)[:, None]
    if kept:
        tail = tails(cells["tail_log_mass"], T, kept["inverse_temperatures"], step, first)
        row["kept_tail_log_mass"] = tail
    if kept and draws:
        c = 4 * np.log(np.minimum((L - levels[ends - 1] + 0.5) / L, 1))
        tailed = scored & np.isfinite(tail[:, 0])
        row |= drawn(cells["drawn"], tailed, draws["num_draws"], table, first, c)
    return row


def moment(data: bytes, spec: dict[str, Any]) -> dict[str, Any]:
    D, part = spec["teacher"]["hidden_size"], spec["targets"]["moment"]
    d, nodes = part["dim"], spec["targets"]["kept"]["inverse_temperatures"]
    size = 4 * (d * D + d + 1)
    floats = np.frombuffer(data[:size], "<f4")
    check((abs(floats) <= 1e18).all(), "tail_moment.bin: its numbers")
    B = floats[: d * D].reshape(d, D)
    check((abs(B @ B.T - np.eye(d)) <= 1e-3).all(), "tail_moment.bin: its basis")
    return transform(data[size:], len(nodes) * (d + 1), part)


def transform(data: bytes, D: int, part: dict[str, Any]) -> dict[str, Any]:
    J, S, Q = part["num_components"], part["num_symbols"], part["num_classes"]
    size = 4 * D * (1 + 2 * J)
    check(len(data) == size + J + 512 * (1 + Q * S), "a transform: its size")
    floats, m = np.frombuffer(data[:size], "<f4"), np.frombuffer(data, "u1", J, size).astype(int)
    check((abs(floats) <= 1e18).all(), "a transform: its numbers")
    check((m >= 1).all() and (m <= 127).all() and (np.diff(m) <= 0).all(), "its limits")
    groups: list[list[int]] = []
    for j in range(J):
        if groups and m[groups[-1][0]] == m[j] and (2 * m[j] + 1) ** (len(groups[-1]) + 1) <= 256:
            groups[-1].append(j)
        else:
            groups.append([j])
    f = np.frombuffer(data, "<u2", offset=size + J).reshape(-1, 256).astype(int)
    used = [(2 * m[group[0]] + 1) ** len(group) for group in groups]
    counts = np.array([Q, *(used * Q)])[:, None]
    right = len(groups) == S and ((f > 0) == (np.arange(256) < counts)).all()
    check(right and (f.sum(1) == 2**14).all(), "its code")
    B = floats[-D * J :].reshape(J, D)
    code = {"mean": floats[:D], "B": B, "m": m, "groups": groups, "R": part["num_raw_bits"]}
    return code | {"g": f[:1], "f": f[1:].reshape(Q, S, 256)}


def hidden(cell: bytes, scored: Any, code: dict[str, Any]) -> dict[str, Any]:
    P, m, R, end = int(scored.sum()), code["m"], code["R"], 4 + int.from_bytes(cell[:4], "little")
    check(end <= len(cell), "states that are too short")
    lanes, v, classes, used = min(P, 512), np.zeros((len(m), P), int), [0] * P, end
    x = numbers(cell[4:end], lanes).tolist()
    check(all(2**16 <= state < 2**32 for state in x), "a state below 2¹⁶")
    for first in range(0, P, 512):
        for group in range(-1, len(code["groups"])):
            for i in range(first, min(first + 512, P)):
                f = code["g"][0] if group < 0 else code["f"][classes[i], group]
                c, r = np.cumsum(f) - f, x[i % 512] % 2**14
                s = int(np.flatnonzero((c <= r) & (f > 0))[-1])
                x[i % 512] = int(f[s]) * (x[i % 512] // 2**14) + r - int(c[s])
                if x[i % 512] < 2**16:
                    check(used + 2 <= len(cell), "words")
                    word, used = int.from_bytes(cell[used : used + 2], "little"), used + 2
                    x[i % 512] = x[i % 512] * 2**16 + word
                if group < 0:
                    classes[i] = s
                for j in reversed(code["groups"][group] if group >= 0 else []):
                    s, digit = divmod(s, 2 * int(m[j]) + 1)
                    v[j, i] = digit - m[j]
    check(all(state < 2**17 for state in x), "states at the end")
    rest = np.array(x, "<u4").astype("<u2").tobytes() + cell[used:]  # the lower 16 bits of states
    size, raw = 4 + int.from_bytes(rest[:4], "little"), 4 + (R * P + 7) // 8
    check(size <= len(rest) and not any(rest[size:]), "carried bytes")
    check(len(cell) - used == max(0, size - 2 * lanes), "bytes at the end")
    at_limit = abs(v) == m[:, None]
    v[at_limit] += np.sign(v[at_limit]) * numbers(rest[raw:size], int(at_limit.sum()))
    v[:R] = 2 * v[:R] + raw_bits(rest[4:raw], np.ones(R * P, int)).reshape(R, P)
    check((abs(v) <= 32767).all(), "a coefficient")
    c = np.zeros((len(scored), len(m)), int)
    c[scored] = v.T
    return {"coefficients": c, "states": code["mean"] + c @ code["B"]}


def logits(root: Path, states: Any) -> Any:
    spec = unseal(read(root / "manifest.json", None))["spec"]
    files = unseal(read(root / "receipts/teacher.json", None))["files"]
    data = read(root / "teacher/embedding.safetensors", files["embedding.safetensors"][1])
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    head = header.get("head", header.get("embedding"))
    check(head["dtype"] == "F32", "its dtype")  # that of the golden cache; others may have another
    W = np.frombuffer(data[end:][slice(*head["data_offsets"])], "<f4").reshape(head["shape"])
    return states @ W[: spec["teacher"]["vocab_size"]].T


def probabilities(root: Path, row: dict[str, Any], t: int, node: int) -> Any:
    spec = unseal(read(root / "manifest.json", None))["spec"]["targets"]
    s, ends = spec["kept"]["inverse_temperatures"][node], np.cumsum(row["kept_num_ids"])
    kept = slice(ends[t] - row["kept_num_ids"][t], ends[t])
    mass = np.exp(s * logits(root, row["states"])[t])
    mass[row["kept_ids"][kept]] = 0
    mass *= np.exp(row["kept_tail_log_mass"][t, node]) / mass.sum()
    mass[row["kept_ids"][kept]] = np.exp(-s * row["kept_gaps"][kept])
    return mass / mass.sum()


def context(cell: bytes, T: int) -> Any:
    bits = planes(cell, (T + 7) // 8, "u1") if cell else np.zeros((T + 7) // 8, np.uint8)
    is_context = np.unpackbits(bits, bitorder="little").astype(bool)
    check(not is_context[T:].any() and is_context.any() == bool(cell), "context")
    return is_context[:T]


def tails(cell: bytes, T: int, nodes: list[float], step: float, first: Any) -> Any:
    stored = numbers(cell, len(nodes) * T).reshape(-1, T)
    q, tail = np.zeros((len(nodes), T), int), np.full((len(nodes), T), -np.inf)
    for n, s in enumerate(nodes):
        expected = 2 * q[n - 1] - q[n - 2] if n > 1 else q[0]  # q[0] is still 0 at node 0
        q[n] = np.where(stored[n] > 0, expected + signed(stored[n] - 1), 0)
        tail[n] = np.where(stored[n] > 0, step * q[n] - s * first, -np.inf)
    return tail.T


def sketches(cells: dict[str, Any], sketch: dict[str, Any], T: int) -> Any:
    rule, d = sketch["hidden_states"], sketch["dim"]
    num_states = rule.count(",") + 1 if rule[:5] == "each:" else 1
    kind = {"int8": "i1", "float16": "<f2", "float32": "<f4"}[sketch["dtype"]]
    states = planes(cells["sketch"], T * num_states * d, kind).reshape(T, num_states, d)
    if kind != "i1":
        return states
    upper = planes(cells["sketch_scale"], T * num_states, "<u2").astype("<u4")
    return states * (upper << 16).view("<f4").reshape(T, num_states, 1)


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
    return named.get(rule) or [int(layer) for layer in rule.split(":")[1].split(",")]


def place(spec: dict[str, Any], unit: int) -> tuple[str | None, int]:
    if "corpora" not in spec:
        return None, unit
    p = [share["units"] for share in spec["corpora"]]
    D, given = sum(p), [0] * len(p)
    for at in range(unit % D + 1):
        owed = [c for c in range(len(p)) if given[c] < p[c] and given[c] * D // p[c] <= at]
        corpus = min(owed, key=lambda c: (-(-(given[c] + 1) * D // p[c]), c))
        given[corpus] += 1
    return spec["corpora"][corpus]["name"], unit // D * p[corpus] + given[corpus] - 1


def splits(spec: dict[str, Any], unit: int, R: int) -> tuple[str | None, list[str]]:
    n = spec["validation_every"]
    unit = place(spec, unit)[1]
    if spec["validation_split"] == "units":
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
    table = np.frombuffer(read(root / "ranks.bin", spec["ranks_sha256"]), "<i4")
    check((np.sort(table) == range(spec["teacher"]["vocab_size"])).all(), "ranks.bin")
    if spec["sketch"]["kind"] == "pca":
        W = np.frombuffer(read(root / "projection.bin", spec["sketch"]["projection_sha256"]), "<f4")
        check(W.size == spec["teacher"]["hidden_size"] * spec["sketch"]["dim"], "projection.bin")
    code = None
    if "hidden" in spec["targets"]:
        part = spec["targets"]["hidden"]
        data = read(root / "transform.bin", part["transform_sha256"])
        code = transform(data, spec["teacher"]["hidden_size"], part)
    if "moment" in spec["targets"]:
        sha256 = spec["targets"]["moment"]["transform_sha256"]
        code = moment(read(root / "tail_moment.bin", sha256), spec)
    for shard in manifest["shards"]:
        file = f"shards/{shard['unit']:05d}-{shard['sha256'][:16]}.arrow"
        split, of_rows = splits(spec, shard["unit"], shard["num_rows"])
        check((split, file) == (shard.get("split"), shard["file"]), f"{file}: split or name")
        check(place(spec, shard["unit"])[0] == shard.get("corpus"), f"{file}: corpus")
        receipt = unseal(read(root / f"receipts/{shard['unit']:05d}.json", shard["receipt_sha256"]))
        data = read(root / file, shard["sha256"])
        for start, length, sha256 in receipt["segments"]:
            check(hashlib.sha256(data[start : start + length]).hexdigest() == sha256, file)
        stream = pa.ipc.open_stream(data[8:])
        whose = {b"cache_id": cache_id.encode(), b"unit": b"%d" % shard["unit"]}
        check(whose.items() <= stream.schema.metadata.items(), f"{file}: of another cache")
        for split_of_row, cells in zip(of_rows, stream.read_all().to_pylist(), strict=True):
            yield split_of_row, shard["unit"], decode(cells, spec, table, code)
