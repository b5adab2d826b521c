"""The architecture, checked: who imports whom, how long things may be, what is never written, what may be set."""

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import typer

import dreamvideo
from dreamvideo import config, edits, methods
from dreamvideo.cli import app
from dreamvideo.data import DataConfig
from dreamvideo.editing import ClipConfig
from dreamvideo.edits.atlas import AtlasConfig
from dreamvideo.recipe import DEFAULT, SEVERAL, TrainConfig

# -- what holds -------------------------------------------------------------------------------------------------------

# Module -> what it may import of ours, besides `errors` and `files`, which all may. The first row that fits counts;
# `adapters.*` is everything in adapters/, `methods` alone the package's own face. A new module needs a row, unless it
# is a method, a base or a kind of adapter: those have theirs.
FREE = {"errors", "files"}
BELOW_API = (
    "adapters.* bases bases.base bundled concept config data diffusion editing edits.edit media memory methods "
    "processes progress recipe run sample thrift train video wording"
)
ARROWS = {
    # row 0: what knows nothing of the rest
    **dict.fromkeys(("errors", "files", "config", "media", "diffusion", "stopping", "doctor"), ""),
    **dict.fromkeys(("discovery", "flow", "hub", "options", "plots", "processes", "progress"), ""),
    **dict.fromkeys(("sheets", "terminal"), ""),
    "bundled": "config",
    "features": "hub",
    "video": "media",
    "views": "",
    "metrics": "metrics.* bases.base bundled features",
    "metrics.*": "metrics.metric metrics.weights features flow",
    "catalogue": "bundled",
    "adapters.file": "adapters.*",
    "adapters": "",
    "adapters.ports": "adapters.attention",
    "adapters.layers": "adapters.ports adapters.storage",
    "adapters.*": "adapters.graft adapters.ports",
    # row 1: what is learned on, and from
    "concept": "media",
    "describe": "concept media",
    "bases": "adapters.storage bases.base bundled config hub",
    "bases.base": "adapters.attention adapters.graft adapters.layers adapters.ports adapters.words bases.images "
    "bases.modes bases.places bases.records bases.text diffusion",
    "bases.places": "adapters.graft adapters.layers adapters.ports adapters.storage",
    "bases.videocrafter": "adapters.ports bases.base bases.images bases.parts bases.unet3d "
    "official.checkpoint official.unet",
    "bases.*": "adapters.attention adapters.ports bases.base bases.images bases.parts",
    # row 2: how
    "data": "bases.base bases.text concept diffusion media views",
    "methods": "discovery methods.method",
    "methods.prompts": "concept",
    "methods.*": "methods.method methods.prompts methods.tuning adapters.* bases.base concept data diffusion views",
    "edits": "discovery edits.edit",
    # These three learn and sample: they stand on row 3.
    "edits.null_text": "bases.base progress sample",
    "edits.prompt_to_prompt": "adapters.attention sample",
    "edits.video_p2p": "edits.* adapters.file adapters.ports bases.base concept media progress recipe sample train",
    "edits.*": "edits.* bases.base bundled config diffusion features flow progress",
    # row 3: doing it
    "recipe": "methods methods.method bases.base concept data config",
    "memory": "recipe bases.base bases.images concept methods.method",
    "thrift": "memory sample adapters.graft bases.base bases.images",
    "run": "recipe adapters.file adapters.graft bases.base concept config",
    "train": "memory run recipe data concept bases.base adapters.* methods.method diffusion processes progress "
    "stopping",
    "editing": "recipe edits edits.edit bases.base concept config media progress stopping",
    "sample": "bases.base bases.modes adapters.* diffusion progress",
    "merging": "adapters.* bases.base",
    "wording": "adapters.file adapters.words",
    "official": "official.*",
    "official.*": "official.* adapters.*",
    # rows 4 to 6: the edges
    "convert": "bases official adapters.file adapters.lora adapters.words",
    "api": BELOW_API,
    "scoring": "bundled concept media metrics metrics.metric processes",
    "demo": f"api metrics metrics.metric scoring {BELOW_API}",
    "bench": "",
    "bench.statistics": "",
    "bench.suite": "catalogue bundled config",
    "bench.manifest": "bench.suite concept",
    "bench.results": "bench.statistics",
    "bench.work": f"bench.results api metrics metrics.metric scoring {BELOW_API}",
    "bench.workers": "bench.results bench.work",
    "bench.runner": "bench.results bench.work bench.workers",
    "bench.plan": f"bench.results bench.suite bench.work {BELOW_API}",
    "bench.diversity": "bench.results config metrics.metric scoring",
    "bench.orders": "bench.results bench.statistics bench.suite",
    "bench.glance": "bench.results media sheets",
    "bench.markdown": "bench.orders bench.results bench.statistics bench.suite",
    "bench.report": "bench.suite bench.results bench.diversity bench.statistics bench.orders bench.glance "
    "bench.markdown concept media metrics.lpips plots",
    "bench.cli": "bench.* options terminal",
    "analysis": "",
    "analysis.weights": "adapters.* bases.base plots sample",
    "analysis.grid": f"api metrics.metric plots scoring sheets {BELOW_API}",
    "analysis.attention": f"bases.text sheets {BELOW_API}",
    "analysis.cli": "adapters.file analysis analysis.* api bundled metrics options sample terminal",
    "measuring": "catalogue options scoring terminal",
    "cli": "analysis.cli api bench.cli bundled catalogue config convert demo describe doctor measuring official "
    "options sample terminal",
    "__main__": "cli",
    "__init__": "api adapters.file sample scoring video",
}
# Where our own modules may be imported late, so that the command line answers at once.
LAZY = {"cli", "analysis.cli", "bench.cli", "measuring", "__init__"}

LINES = {"methods.*": 200, "edits.*": 200, "train": 250, "*": 400}
FUNCTION_LINES = 60
LONG_FUNCTIONS = {  # name -> why it may be longer
    "cli.generate": "one line for every option; typer reads them from the signature",
}

SHARED = {  # abstract class of ours that is itself derived from one of ours -> why
    "methods.tuning.SubjectTuning": "DreamBooth's objective is one, whatever set it tunes",
    "methods.tuning.MotionTuning": "so is the loss on a clip and its caption",
}

# The command line is frozen here: whatever else can be set is --set section.field=value. A new option is a decision.
OPTIONS = {
    "subject": "--base --device --dtype --image-encoder --json --method --name --out --preset --recipe --restart --set "
    "--steps --word",
    "motion": "--base --caption --device --dtype --image-encoder --json --method --name --out --preset --recipe "
    "--restart --set --steps",
    "generate": "--appearance --appearance-strength --base --count --device --dtype --fps --frames --from --guidance "
    "--height --image-encoder --inversion --inversion-strength --json --motion --negative --noise-offset --out "
    "--preset --reuse --sampler --seed --steps --subject --width",
    "edit": "--base --caption --device --dtype --json --keep --method --out --recipe --seed --set",
    "demo": "--base --device --dtype --out --steps",
    "convert": "--appearance-strength --caption --family --json --layers --name --out --placement --to --word",
    "inspect": "--fps --frames --json",
    "bases": "--json",
    "methods": "--json",
    "edits": "--json",
    "metrics": "--json",
    "score": "--base --clip --device --dino --json --lpips --prompt --raft --reference-clip --references --sibling",
    "grid": "--base --clip --count --device --dino --dtype --image-encoder --json --motion --motion-step "
    "--motion-weight --out --reference-clip --references --seed --steps --subject --subject-step --subject-weight",
    "analyze attention": "--appearance --base --device --dtype --image-encoder --json --motion --out --seed --steps "
    "--subject --word",
    "analyze weights": "--base --device --dtype --json --out",
    "doctor": "--json",
    "bench list": "--json",
    "bench run": "--device --dtype --json --out --ray --workers",
    "bench report": "--json --out --to",
    "bench fetch": "--json",
}

# -- reading the source -----------------------------------------------------------------------------------------------

ROOT = Path(dreamvideo.__file__).parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _name(file: Path) -> str:
    """bases/unet3d.py -> bases.unet3d; a package's `__init__` has the package's name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


SOURCES = {_name(file): file.read_text(encoding="utf-8") for file in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}


def _all(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Every node of these kinds, as ("module:line", node)."""
    for name, tree in TREES.items():
        yield from ((f"{name}:{node.lineno}", node) for node in ast.walk(tree) if isinstance(node, kinds))


def _taken(tree: ast.AST) -> Iterator[tuple[str, str | None, str]]:
    """What a tree imports of ours: (module, name in it or None for the module itself, its name here)."""
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            whole = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            package, _, inner = whole.partition(".")
            home, _, name = inner.rpartition(".")
            if package == "dreamvideo" and (inner in TREES or not inner):
                yield inner or "__init__", None, alias.asname or name
            elif package == "dreamvideo":
                yield home or "__init__", name, alias.asname or name


IMPORTS = {name: {module for module, _, _ in _taken(tree)} for name, tree in TREES.items()}


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return ast.literal_eval(node.value)
    return None


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_imports_follow_the_arrows(name: str) -> None:
    rows = [row for pattern, row in ARROWS.items() if fnmatchcase(name, pattern)]
    assert rows, f"{name} has no row in ARROWS"
    allowed = rows[0].split()
    assert [m for m in IMPORTS[name] - FREE if not any(fnmatchcase(m, pattern) for pattern in allowed)] == []


def test_imports_go_round_in_no_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()


def test_our_modules_are_imported_absolutely_and_at_the_top() -> None:
    assert [place for place, node in _all(ast.ImportFrom) if node.level] == []
    late = [
        f"{name}: {module}"
        for name, tree in TREES.items()
        if name not in LAZY
        for node in ast.walk(tree)
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.If, ast.Try))
        for module, _, _ in _taken(node)
    ]
    assert late == []


@pytest.mark.parametrize("module", ["dreamvideo", "dreamvideo.cli"])
def test_importing_is_light(module: str) -> None:
    program = f"import sys, {module}; print(*{{'torch', 'diffusers', 'transformers'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("name", TREES)
def test_all_is_sorted_and_true(name: str) -> None:
    exported = _exported(TREES[name]) if TREES[name].body else []
    assert exported is not None, "no __all__"
    assert exported == sorted(set(exported), key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    if name != "__main__":
        module = importlib.import_module(f"dreamvideo.{name}" if name != "__init__" else "dreamvideo")
        assert [n for n in exported if getattr(module, n, None) is None] == []


@pytest.mark.parametrize("name", TREES)
def test_all_is_complete(name: str) -> None:
    """A module's `__all__` holds its public functions and whatever another module takes from it.

    The commands of the command line are taken by typer.
    """
    public = set()
    if name not in ("cli", "analysis.cli", "bench.cli", "measuring"):
        public = {n.name for n in TREES[name].body if isinstance(n, FUNCTIONS) and not n.name.startswith("_")}
    for tree in TREES.values():
        modules = {here for module, inner, here in _taken(tree) if module == name and inner is None}
        public |= {inner for module, inner, _ in _taken(tree) if module == name and inner is not None}
        public |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
        }
    assert sorted(public - set(_exported(TREES[name]) or ())) == []


# -- size and manners -------------------------------------------------------------------------------------------------


def test_files_are_short() -> None:
    def limit(name: str) -> int:
        return next(lines for pattern, lines in LINES.items() if fnmatchcase(name, pattern))

    lengths = {name: source.count("\n") for name, source in SOURCES.items()}
    assert {name: length for name, length in lengths.items() if length > limit(name)} == {}


def test_functions_are_short() -> None:
    long = {
        f"{place.partition(':')[0]}.{node.name}"
        for place, node in _all(*FUNCTIONS)
        if node.end_lineno - node.lineno >= FUNCTION_LINES
    }
    assert long == LONG_FUNCTIONS.keys()


def test_what_is_never_written() -> None:
    calls = [place for place, node in _all(ast.Call) if getattr(node.func, "id", "") == "hasattr"]
    broad = [
        place
        for place, node in _all(ast.ExceptHandler)
        if node.type is None or ({"Exception", "BaseException"} & {getattr(n, "id", "") for n in ast.walk(node.type)})
    ]
    assert [place for place, _ in _all(ast.Global)] == []
    assert calls == []
    assert [place for place in broad if not place.startswith("cli:")] == []


def test_public_signatures_name_their_arguments() -> None:
    open_ended = [f"{place} {node.name}" for place, node in _all(*FUNCTIONS) if node.args.kwarg]
    assert [place for place in open_ended if not place.split()[1].startswith("_") or place.endswith("__")] == []


def test_nothing_is_written_into_other_modules() -> None:
    wrong = []
    for name, tree in TREES.items():
        imports = [node for node in tree.body if isinstance(node, ast.Import)]
        modules = {alias.asname or alias.name.split(".")[0] for node in imports for alias in node.names}
        modules |= {here for _, inner, here in _taken(tree) if inner is None}
        wrong += [
            f"{name}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del))
            if isinstance(node.value, ast.Name) and node.value.id in modules
        ]
    assert wrong == []


def test_our_classes_inherit_once() -> None:
    """The errors are a tree by design; every other class is abstract or final, or in SHARED and between the two."""
    between = set()
    for name in TREES.keys() - {"errors", "__main__", "__init__"}:
        module = importlib.import_module(f"dreamvideo.{name}")
        for _, kind in inspect.getmembers(module, inspect.isclass):
            ours = [parent for parent in kind.__mro__[1:] if parent.__module__.startswith("dreamvideo.")]
            if kind.__module__ == module.__name__ and len(ours) > 1:
                between.add(f"{ours[0].__module__.removeprefix('dreamvideo.')}.{ours[0].__qualname__}")
    assert between == SHARED.keys()


# -- what may be set --------------------------------------------------------------------------------------------------


def test_every_setting_is_read() -> None:
    def read(tree: ast.AST, of: str | None = None) -> set[str]:
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)]
        return {n.attr for n in nodes if of is None or getattr(n.value, "id", None) == of}

    anywhere = set().union(*(read(tree) for tree in TREES.values()))
    unread = {}
    shared = (TrainConfig, DataConfig, ClipConfig, AtlasConfig)
    for kind in (*shared, *methods.available().values(), *edits.available().values()):
        own = kind not in shared  # a method reads its settings itself, or what it derives from does
        parents = [part for part in kind.__mro__ if part.__module__.startswith("dreamvideo.")]
        seen = set().union(*(read(ast.parse(inspect.getsource(p)), of="self") for p in parents)) if own else anywhere
        unread[kind.__name__] = {field.name for field in dataclasses.fields(kind)} - seen
    assert {name: fields for name, fields in unread.items() if fields} == {}


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").rglob("*")), ids=lambda f: str(f.relative_to(ROOT)))
def test_every_recipe_builds(file: Path) -> None:
    if file.is_dir():
        assert file.name in methods.available() | edits.available()
        assert (file / f"{DEFAULT}.toml").is_file()
        return
    values = config.read_toml(file)
    several = values.pop(SEVERAL, {})
    if file.parent.name in edits.available():
        kinds = {"edit": edits.find(file.parent.name), "clip": ClipConfig}
    else:
        kinds = {"method": methods.find(file.parent.name), "train": TrainConfig, "data": DataConfig}
    for recipe in (values, config.merged(values, several)):
        assert recipe.keys() <= kinds.keys()
        for name, kind in kinds.items():
            config.build(kind, recipe.get(name, {}), where=name)


def test_every_method_has_a_recipe() -> None:
    named = methods.available().keys() | edits.available().keys()
    assert {file.parent.name for file in (ROOT / "recipes").glob(f"*/{DEFAULT}.toml")} == named


def _commands(group: typer.core.TyperGroup, prefix: str = "") -> Iterator[tuple[str, typer.core.TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def test_the_command_line_is_frozen() -> None:
    found = {
        name: {option for p in command.params if p.param_type_name == "option" for option in p.opts}
        for name, command in _commands(typer.main.get_command(app))
    }
    assert found == {name: set(options.split()) for name, options in OPTIONS.items()}
