"""Registries refuse duplicates and help with unknown names."""

import pytest

from mal.config.registry import Registry, nearest


@pytest.fixture
def shelf() -> Registry[int]:
    registry: Registry[int] = Registry("thing")
    registry.register("random")(1)
    registry.register("entropy")(2)
    return registry


def test_entries_are_found_by_name_and_listed_in_order(shelf: Registry[int]) -> None:
    assert shelf["random"] == 1
    assert shelf.names() == ["entropy", "random"]


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known(shelf: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"thing 'entrpy' is unknown; did you mean entropy\? Known: entropy, random\."):
        shelf["entrpy"]
    with pytest.raises(ValueError, match=r"thing 'zzz' is unknown\. Known: entropy, random\."):
        shelf["zzz"]


def test_a_name_is_given_once(shelf: Registry[int]) -> None:
    with pytest.raises(ValueError, match="'random' is registered twice"):
        shelf.register("random")(3)
    assert shelf["random"] == 1


def test_no_hint_where_nothing_is_near() -> None:
    assert nearest("xyzzy", ["mal", "random"]) == ""
