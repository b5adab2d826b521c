"""The catalogue says what importing the modules says, without importing them."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreamvideo import bases, bundled, catalogue, methods, metrics, recipe


def test_methods_are_those_of_the_classes() -> None:
    listed = {entry.name: entry for entry in catalogue.methods()}
    found = methods.available()
    assert listed.keys() == found.keys()
    for name, method in found.items():
        first = method.__doc__.strip().splitlines()[0]
        expected = (method.learns, first.removesuffix(":"), recipe.recipes(name))
        assert (listed[name].learns, listed[name].summary, listed[name].recipes) == expected


def test_metrics_are_those_of_the_classes() -> None:
    listed = {entry.name: entry for entry in catalogue.metrics()}
    modules = [
        importlib.import_module(f"dreamvideo.metrics.{found.name}") for found in pkgutil.iter_modules(metrics.__path__)
    ]
    found = [kind for module in modules for kind in vars(module).get("METRICS", ())]
    assert len(found) == len(listed) > 0
    for kind in found:
        entry = listed[kind.name]
        assert (entry.needs, entry.higher_is_better) == (kind.needs, kind.higher_is_better)
        assert entry.summary == kind.__doc__.strip().splitlines()[0]


def test_bases_are_those_of_the_families() -> None:
    expected = set()
    for family in bases.available().values():
        names = {family.tiny_name: None, f"FOLDER ({family.denoiser_class})": None, **family.names}
        if family.addition:
            names[f"FOLDER+FOLDER ({family.addition})"] = None
        expected |= {(name, family.family, licence) for name, licence in names.items()}
    for name in bundled.bundled():
        base = bases.load(name)
        expected.add((name, base.family, base.origin.licence))
    entries = catalogue.bases()
    assert {(entry.name, entry.family, entry.licence) for entry in entries} == expected
    assert len(entries) == len(expected)


def test_bases_say_what_appearance_guidance_needs() -> None:
    families = bases.available()
    for entry in catalogue.bases():
        if entry.name in (families[entry.family].tiny_name, *bundled.bundled()):
            assert entry.needs == "nothing"
        else:
            assert str(families[entry.family].image_encoder_id or "") in entry.needs


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from dreamvideo import catalogue; assert catalogue.methods() and catalogue.bases(); "
        "print(*sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    "source",
    [
        "class Mine:\n    '''Does.'''\n    learns = 'image'\nMETHODS = (Mine,)",
        "class Mine:\n    '''Does.'''\n    name = 'mi' + str(1)\n    learns = 'image'\nMETHODS = (Mine,)",
        "class Mine:\n    '''Does.'''\n    name: str\n    learns = 'image'\nMETHODS = (Mine,)",
        "class Mine:\n    name = 'mine'\n    learns = 'image'\nMETHODS = (Mine,)",
        "from elsewhere import Mine\nMETHODS = (Mine,)",
    ],
    ids=["no name", "computed name", "name without value", "no docstring", "class of another file"],
)
def test_a_class_that_states_too_little_is_an_error(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path)
    with pytest.raises(ValueError, match=r"mine\.py"):
        catalogue.methods()
