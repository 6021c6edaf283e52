"""``pipeline recipes``."""

from tests.support import ROOT
from tests.support.command_line import run


def test_recipes_lists_the_shipped_recipes() -> None:
    lines = run("recipes").output.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("demo-hybrid-align", "demo-hybrid-distill", "distil-xlstm"),
        *("expert-chat", "expert-code", "expert-math", "expert-stem"),
        *("hybrid-align", "hybrid-distill", "small"),
    ]
    assert "Qwen2.5-1.5B" in lines[2]


def test_recipes_prints_a_recipe_as_shipped() -> None:
    shipped = ROOT / "pipeline" / "recipes" / "distil-xlstm.toml"
    assert run("recipes", "distil-xlstm").output == shipped.read_text()


def test_an_unknown_recipe_is_refused() -> None:
    result = run("recipes", "distil")
    assert result.exit_code == 2
    assert "distil: neither a file nor one of the shipped recipes" in result.stderr
