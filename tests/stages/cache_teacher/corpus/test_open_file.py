"""A corpus file is the one of its name, whatever the name."""

from pathlib import Path

from stages.cache_teacher.corpus.open_file import open_binary, sha256_of


def test_colons_in_a_file_name_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"another")
    path = tmp_path / "a.txt::b.txt"
    path.write_bytes(b"this one")
    with open_binary(str(path)) as file:
        assert file.read() == b"this one"
    assert sha256_of(str(path)) != sha256_of(str(tmp_path / "a.txt"))
