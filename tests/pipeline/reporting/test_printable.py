"""Text of strangers on a terminal, and libraries that end in a panic."""

import click
import pytest
from click.testing import CliRunner

from pipeline.reporting.printable import printable
from pipeline.runtime.session import PipelineGroup


def test_control_characters_are_shown_as_python_escapes_them() -> None:
    assert printable("a\tb\n東京 é 👩‍🔬") == "a\tb\n東京 é 👩‍🔬"
    assert printable("\x1b[2J\r\x00\x7f\x9b") == r"\x1b[2J\r\x00\x7f\x9b"
    assert printable("a\nb", keep="") == r"a\nb"


@pytest.mark.parametrize(
    "control",
    [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x61C, *range(0x2028, 0x202A), 0x200E, 0x200F],
)
def test_characters_that_change_the_layout_on_screen_are_escaped(control: int) -> None:
    assert printable(f"a{chr(control)}b") == f"a\\u{control:04x}b"
    assert printable(r"\u202e") == r"\u202e"


class PanicException(BaseException):
    """As Rust's, which is no Exception."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PanicException("index out of bounds"), "a library rejected its input: index out"),
        (ValueError("a\x1b]0;name"), r"Error: a\x1b]0;name"),
    ],
)
def test_control_characters_in_errors_are_escaped(error: BaseException, message: str) -> None:
    @click.group(cls=PipelineGroup)
    @click.option("--debug", is_flag=True)
    def group(debug: bool) -> None:
        pass

    @group.command()
    def fail() -> None:
        raise error

    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == 1
    assert message in result.stderr
