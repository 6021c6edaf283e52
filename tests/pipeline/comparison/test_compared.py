"""The settings that are compared: which, in what order, and which are the recipe's."""

from pipeline.comparison.compared import COMPARED, LEVELS, REFERENCE, compared_with, with_settings
from stages.cache_teacher.config import CacheTeacherConfig


def test_a_recipe_with_settings_of_the_table_is_marked_there() -> None:
    found = compared_with(CacheTeacherConfig(), 4096)
    assert [one.settings for one in found] == list(COMPARED)
    assert [one.settings for one in found if one.is_recipe] == [REFERENCE]


def test_settings_that_a_kind_does_not_use_do_not_make_it_another() -> None:
    recipe = CacheTeacherConfig(targets="hidden", hidden_kl=0.02, top_k=7, num_samples=3)
    found = compared_with(recipe, 4096)
    assert [one.settings for one in found] == list(COMPARED)
    marked = [one.settings for one in found if one.is_recipe]
    assert marked == [{"targets": "hidden", "hidden_kl": 0.02}]


def test_a_recipe_with_other_settings_comes_first_and_names_them() -> None:
    recipe = CacheTeacherConfig(top_k=32, top_p=0.9, hidden_kl=1.0)
    first, *others = compared_with(recipe, 4096)
    assert first.is_recipe
    assert first.config is recipe
    # The steps of its probabilities differ from those that the table has with 32 ids.
    assert first.settings == {"targets": "top_k", "top_k": 32, "top_p": 0.9, "num_levels": 128}
    assert [one.settings for one in others] == list(COMPARED)
    assert not any(one.is_recipe for one in others)


def test_settings_of_the_table_do_not_depend_on_the_recipes_targets() -> None:
    recipe = CacheTeacherConfig(
        top_p=0.5, inverse_temperatures=(0.5, 1.0), sampling_temperature=2.0, num_tokens=77
    )
    for one in compared_with(recipe, 4096)[1:]:
        assert one.config == with_settings(CacheTeacherConfig(num_tokens=77), one.settings)


def test_probabilities_have_steps_that_suit_the_number_of_kept_ids() -> None:
    for top_k, num_levels in LEVELS.items():
        config = with_settings(CacheTeacherConfig(), {"targets": "top_k", "top_k": top_k})
        assert config.num_levels == num_levels


def test_a_teacher_of_few_ids_is_not_asked_for_more() -> None:
    kept = [one.settings.get("top_k", 0) for one in compared_with(CacheTeacherConfig(top_k=8), 64)]
    assert max(kept) == 64
    kept = [one.settings.get("top_k", 0) for one in compared_with(CacheTeacherConfig(top_k=8), 63)]
    assert max(kept) == 32
