"""Settings: strict, one line an error, the same after TOML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from dreamvideo import config
from dreamvideo.data import DataConfig
from dreamvideo.errors import BadConfig
from dreamvideo.methods.dreamvideo import DreamVideoMotion
from dreamvideo.recipe import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 3
    names: tuple[Literal["a", "b"], ...] = ("a",)


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = 0.5
    size: int | None = None
    kind: Literal["short", "long"] = "short"
    text: str = ""
    on: bool = False
    inner: Inner = field(default_factory=Inner)


def refusal(values: dict[str, Any], kind: type = Outer) -> str:
    """The one line with which `values` are refused."""
    with pytest.raises(BadConfig) as caught:
        config.build(kind, values, where="train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- building ---------------------------------------------------------------------------------------------------------


def test_nothing_given_is_the_defaults() -> None:
    assert config.build(Outer, {}, where="train") == Outer()


def test_values_get_the_types_of_their_fields() -> None:
    built = config.build(Outer, {"rate": 1, "inner": {"names": ["b", "a"]}}, where="train")
    assert built == Outer(rate=1.0, inner=Inner(names=("b", "a")))
    assert type(built.rate) is float
    assert type(built.inner) is Inner


def test_unknown_name_is_answered_with_the_nearest_one() -> None:
    assert refusal({"rat": 1.0}) == "train: there is no setting 'rat'; did you mean rate?"
    assert refusal({"save_evry": 1}, TrainConfig) == "train: there is no setting 'save_evry'; did you mean save_every?"


def test_unknown_name_like_no_other_is_answered_with_all_of_them() -> None:
    assert refusal({"zzz": 1}, Inner) == "train: there is no setting 'zzz'; it has width, names"


@pytest.mark.parametrize(
    ("values", "place", "wrong"),
    [
        ({"rate": "fast"}, "train.rate: ", "'fast'"),
        ({"size": 1.5}, "train.size: ", "1.5"),
        ({"kind": "medium"}, "train.kind: ", "'medium'"),
        ({"text": 4}, "train.text: ", "4"),
        ({"inner": {"names": ["a", "c"]}}, "train.inner.names.1: ", "'c'"),
    ],
)
def test_wrong_value_is_named_with_its_place(values: dict[str, Any], place: str, wrong: str) -> None:
    line = refusal(values)
    assert line.startswith(place)
    assert line.endswith(f", not {wrong}")


def test_refused_choice_says_which_there_are() -> None:
    line = refusal({"short": "lop"}, DataConfig)
    assert all(choice in line for choice in ("'loop'", "'mask'", "'grey'"))


# -- TOML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        Outer(),
        Outer(rate=1e-5, size=4, kind="long", text='a "word"\nä\\', on=True, inner=Inner(width=-1, names=())),
        TrainConfig(clip=0.1, steps=3),
        DreamVideoMotion(ports=("ff",), hidden=7),
    ],
)
def test_a_value_survives_toml(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "value.toml"
    config.write_toml(path, value)
    assert config.build(type(value), config.read_toml(path), where="value") == value
    assert config.differences(config.read_toml(path), config.plain(value)) == []


def test_what_is_unset_is_not_written() -> None:
    plain = config.plain(Outer())
    assert plain == {"rate": 0.5, "kind": "short", "text": "", "on": False, "inner": {"width": 3, "names": ["a"]}}
    assert config.plain({"a": None, "b": {"c": None, "d": (1, 2)}}) == {"b": {"d": [1, 2]}}


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    broken, latin = tmp_path / "broken.toml", tmp_path / "latin.toml"
    broken.write_text("a = = 1", encoding="utf-8")
    latin.write_bytes(b'a = "\xe4"')
    for path, reason in (
        (tmp_path / "none.toml", "no such file"),
        (broken, "not a readable TOML file"),
        (latin, "not a readable TOML file"),
        (tmp_path, "not a readable TOML file"),
    ):
        with pytest.raises(BadConfig, match=reason) as caught:
            config.read_toml(path)
        assert str(caught.value).startswith(f"{path}: ")


# -- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.batch=4", {"train": {"batch": 4}}),
        ("train.batch = 4", {"train": {"batch": 4}}),
        ("method.lr=1e-5", {"method": {"lr": 1e-5}}),
        ("train.rematerialise=true", {"train": {"rematerialise": True}}),
        ('method.ports=["ff", "attn1"]', {"method": {"ports": ["ff", "attn1"]}}),
        ("data.short=mask", {"data": {"short": "mask"}}),
        ("method.template=a {word} = b", {"method": {"template": "a {word} = b"}}),
        ('method.template="a {word}"', {"method": {"template": "a {word}"}}),
        ("method.template=", {"method": {"template": ""}}),
        ("a.b.c=1", {"a": {"b": {"c": 1}}}),
    ],
)
def test_a_setting_is_read_as_toml_or_else_as_text(text: str, value: dict[str, Any]) -> None:
    assert config.parse_setting(text) == value


@pytest.mark.parametrize("text", ["train.batch", "=4", "train.=4", ".batch=4", ""])
def test_a_setting_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(BadConfig, match=r"section\.field=value"):
        config.parse_setting(text)


def test_later_layers_lie_on_top_and_leave_the_rest() -> None:
    low = {"train": {"batch": 1, "seed": 2}, "data": {"fps": 8}}
    middle = {"train": {"batch": 3}, "data": "gone"}
    assert config.merged(low, middle, {"train": {"clip": 1.0}}) == {
        "train": {"batch": 3, "seed": 2, "clip": 1.0},
        "data": "gone",
    }
    assert low == {"train": {"batch": 1, "seed": 2}, "data": {"fps": 8}}
    assert config.merged() == {}


def test_merging_copies_what_it_may_later_change() -> None:
    low: dict[str, Any] = {"train": {"batch": 1}}
    config.merged(low, {"train": {"batch": 2}})["train"]["seed"] = 5
    assert low == {"train": {"batch": 1}}


# -- differences ------------------------------------------------------------------------------------------------------


def test_differences_are_lines_in_order() -> None:
    old = {"train": {"batch": 4, "seed": 0}, "data": {"fps": 8}}
    new = {"train": {"batch": 2, "seed": 0, "clip": 1.0}, "method": {}}
    assert config.differences(old, new) == [
        "data.fps: 8 -> unset",
        "train.batch: 4 -> 2",
        "train.clip: unset -> 1.0",
    ]


def test_ignored_names_do_not_differ() -> None:
    old, new = {"train": {"batch": 4, "save_every": 1}}, {"train": {"batch": 2, "save_every": 2}}
    assert config.differences(old, new, ignore=("train.save_every",)) == ["train.batch: 4 -> 2"]
    assert config.differences(old, old) == []


def test_flattened_names_are_dotted() -> None:
    assert config.flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": 3}) == {"a.b.c": 1, "a.d": [2], "e": 3}
