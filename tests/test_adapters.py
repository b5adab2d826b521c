"""Adapters against their formulas, concept files that are broken, words in prompts, weights."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamvideo import bases
from dreamvideo.adapters.bottleneck import Bottleneck
from dreamvideo.adapters.file import ConceptFile, Meta, Sampling, load, read_meta, save
from dreamvideo.adapters.graft import AdapterSet, Site
from dreamvideo.adapters.ports import Condition
from dreamvideo.adapters.weight import Weight
from dreamvideo.adapters.words import learned_word
from dreamvideo.bases.base import VideoBase
from dreamvideo.diffusion import generator
from dreamvideo.errors import BadFile, BadInput
from dreamvideo.sample import check_base

WIDTH, IMAGE = 8, 6
SITE = Site("down.0", "attn2", "space", WIDTH)
FORMS = ("bottleneck", "linear bottleneck", "linear", "nonlinear")


def randn(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=generator(name))


def disturb(adapters: AdapterSet, *, by: float = 0.5) -> AdapterSet:
    """The set, moved away from its transparent start."""
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            parameter += by * randn(*parameter.shape, name=name)
    return adapters


def adapter_of(kind: Bottleneck, *, width: int = WIDTH) -> tuple[nn.Module, dict[str, Tensor]]:
    """A disturbed adapter and its tensors by their short names."""
    adapters = disturb(AdapterSet(kind, [Site("down.0", "attn2", "space", width)]))
    tensors = {name.removeprefix("down.0.attn2."): tensor for name, tensor in adapters.state_dict().items()}
    return next(iter(adapters.grafts.values())).adapter, tensors


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


# -- the formulas -----------------------------------------------------------------------------------------------------


def test_identity_adapter_is_equation_2() -> None:
    adapter, w = adapter_of(Bottleneck())
    h = randn(3, 5, WIDTH, name="h")
    by_hand = gelu(h @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]
    torch.testing.assert_close(adapter(h, None), by_hand)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_motion_adapter_is_equations_3_and_4(strength: float) -> None:
    adapter, w = adapter_of(Bottleneck(condition=IMAGE))
    h, e = randn(3, 5, WIDTH, name="h"), randn(1, 1, IMAGE, name="e")
    guided = h + strength * (e @ w["condition.weight"].T + w["condition.bias"])
    by_hand = gelu(guided @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]
    given = Condition(e, torch.full((1, 1, 1), strength))
    torch.testing.assert_close(adapter(h, given), by_hand)


@pytest.mark.parametrize(("placement", "seen"), [("parallel", "x"), ("serial", "x + branch")])
def test_adapter_reads_the_stream_before_or_after_the_branch(unet3d: VideoBase, placement: Any, seen: str) -> None:
    (site, *_) = unet3d.sites("space", ("attn2",))
    adapters = disturb(AdapterSet(Bottleneck(placement=placement), [site]))
    x, branch = randn(2, 5, site.width, name="x"), randn(2, 5, site.width, name="branch")
    with unet3d.attached(adapters):
        result = unet3d.locate(site).port("attn2", x, branch, None)
    read = {"x": x, "x + branch": x + branch}[seen]
    torch.testing.assert_close(result, x + branch + adapters.grafts[site].adapter(read, None))


@pytest.mark.parametrize("tokens", [(4, 3), (3, 4)], ids=["time: (B h w, F, C)", "space: (B F, h w, C)"])
def test_each_sample_gets_its_own_condition(tokens: tuple[int, int]) -> None:
    adapter, _ = adapter_of(Bottleneck(condition=IMAGE))
    slow, length = tokens
    h, e = randn(2, slow, length, WIDTH, name="h"), randn(2, 1, IMAGE, name="e")
    strength = torch.tensor([0.3, 1.0]).view(2, 1, 1)
    together = adapter(h.flatten(0, 1), Condition(e, strength)).unflatten(0, (2, slow))
    for sample in range(2):
        alone = adapter(h[sample], Condition(e[sample : sample + 1], strength[sample : sample + 1]))
        torch.testing.assert_close(together[sample], alone)
    assert not torch.allclose(adapter(h[0], Condition(e[1:], strength[1:])), together[0])


def test_one_condition_serves_all_samples() -> None:
    adapter, _ = adapter_of(Bottleneck(condition=IMAGE))
    h, e = randn(6, 3, WIDTH, name="h"), randn(1, 1, IMAGE, name="e")
    one = torch.ones(1, 1, 1)
    repeated = Condition(e.expand(2, -1, -1), one)
    torch.testing.assert_close(adapter(h, Condition(e, one)), adapter(h, repeated))


def test_no_condition_skips_the_layer_and_zeros_do_not() -> None:
    adapter, w = adapter_of(Bottleneck(condition=IMAGE))
    h = randn(3, 5, WIDTH, name="h")
    skipped = gelu(h @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]
    zeros = torch.zeros(1, 1, IMAGE)
    torch.testing.assert_close(adapter(h, None), skipped)
    torch.testing.assert_close(adapter(h, Condition(zeros, torch.zeros(1, 1, 1))), skipped)
    with_bias = adapter(h + w["condition.bias"], None)
    torch.testing.assert_close(adapter(h, Condition(zeros, torch.ones(1, 1, 1))), with_bias)
    assert not torch.allclose(with_bias, skipped)


def test_adapter_without_condition_layer_ignores_conditions() -> None:
    adapter, _ = adapter_of(Bottleneck())
    h = randn(3, 5, WIDTH, name="h")
    assert torch.equal(adapter(h, Condition(torch.ones(1, 1, IMAGE), torch.ones(1, 1, 1))), adapter(h, None))


@pytest.mark.parametrize(
    ("form", "formula"),
    [
        ("bottleneck", lambda h, w: gelu(h @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]),
        ("linear bottleneck", lambda h, w: (h @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]),
        ("linear", lambda h, w: h @ w["up.weight"].T + w["up.bias"]),
        ("nonlinear", lambda h, w: gelu(h @ w["up.weight"].T + w["up.bias"])),
    ],
)
def test_forms_of_table_s9(form: Any, formula: Callable[[Tensor, Mapping[str, Tensor]], Tensor]) -> None:
    adapter, w = adapter_of(Bottleneck(form=form))
    h = randn(3, 5, WIDTH, name="h")
    torch.testing.assert_close(adapter(h, None), formula(h, w))


@pytest.mark.parametrize(("hidden", "width", "expected"), [(None, 320, 160), (None, 9, 4), (32, 320, 32)])
def test_bottleneck_is_half_the_stream_unless_told(hidden: int | None, width: int, expected: int) -> None:
    _, w = adapter_of(Bottleneck(hidden=hidden), width=width)
    assert {name: tuple(tensor.shape) for name, tensor in w.items()} == {
        "down.weight": (expected, width),
        "down.bias": (expected,),
        "up.weight": (width, expected),
        "up.bias": (width,),
    }


def test_parameter_counts_of_the_official_adapters() -> None:
    # l = 320, d = 160, image vectors of 1024: the official checkpoints' sizes.
    site = Site("a", "attn2", "space", 320)
    assert AdapterSet(Bottleneck(), [site]).count() == 102_880
    assert AdapterSet(Bottleneck(condition=1024), [site]).count() == 430_880


# -- beginnings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("condition", [None, IMAGE])
def test_fresh_adapter_says_nothing(form: Any, condition: int | None) -> None:
    adapters = AdapterSet(Bottleneck(form=form, condition=condition), [SITE])
    given = Condition(randn(1, 1, IMAGE, name="e"), torch.ones(1, 1, 1))
    assert not adapters.grafts[SITE].adapter(randn(3, 5, WIDTH, name="h"), given).any()


def test_layers_start_with_the_default_distribution() -> None:
    site = Site("a", "attn2", "space", 400)
    tensors = AdapterSet(Bottleneck(condition=100), [site]).state_dict()
    for layer, fan_in in (("condition", 100), ("down", 400)):
        bound = fan_in**-0.5
        for kind in ("weight", "bias"):
            values = tensors[f"a.attn2.{layer}.{kind}"]
            assert 0.9 * bound < values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.12)
    assert not tensors["a.attn2.up.weight"].any()
    assert not tensors["a.attn2.up.bias"].any()


def test_seed_makes_the_beginning() -> None:
    first, again, other = (AdapterSet(Bottleneck(), [SITE], seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["down.0.attn2.down.weight"], other["down.0.attn2.down.weight"])


def test_sites_of_a_set_start_apart() -> None:
    sites = [SITE, Site("down.1", "attn2", "space", WIDTH)]
    tensors = AdapterSet(Bottleneck(), sites).state_dict()
    assert not torch.equal(tensors["down.0.attn2.down.weight"], tensors["down.1.attn2.down.weight"])


# -- files ------------------------------------------------------------------------------------------------------------


def a_meta(**changes: Any) -> Meta:
    values = {"name": "turn", "role": "motion", "family": "unet3d", "base": "tiny", "method": "m", "created_by": "test"}
    return Meta(**{**values, **changes})


@pytest.fixture
def concept() -> ConceptFile:
    kind = Bottleneck(condition=IMAGE, hidden=3, form="linear bottleneck", placement="serial")
    sampling = Sampling(noise_offset=0.1, appearance=(1.0, 0.5), weight=Weight.parse("0.4@0,0.8@0.1"))
    meta = a_meta(sampling=sampling, settings={"ports": ["ff"]}, steps={"motion": 3}, fingerprint=(0.1, 1e-9))
    word = learned_word("turn", randn(2, 5, name="word"), Site("tokens", "word", "text", 5))
    return ConceptFile(meta, {"motion": disturb(AdapterSet(kind, [SITE])), "word": word})


@pytest.fixture
def written(concept: ConceptFile, tmp_path: Path) -> Path:
    path = tmp_path / "turn.safetensors"
    save(path, concept)
    return path


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["dreamvideo"])
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def rewritten(path: Path, header: Any, tensors: Mapping[str, Tensor]) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(dict(tensors), path, metadata={"dreamvideo": text})
    return path


def refused(path: Path) -> str:
    """The one line with which a file is refused; it names the file."""
    with pytest.raises(BadFile) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_a_concept_survives_its_file(concept: ConceptFile, written: Path) -> None:
    again = load(written)
    assert again.meta == concept.meta
    assert again.path == written
    assert again.sets.keys() == concept.sets.keys()
    for name, adapters in concept.sets.items():
        assert again.sets[name].kind == adapters.kind
        assert again.sets[name].sites == adapters.sites
        state = again.sets[name].state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in adapters.state_dict().items())
        assert not any(parameter.requires_grad for parameter in again.sets[name].parameters())


def test_equal_concepts_are_equal_bytes(concept: ConceptFile, written: Path, tmp_path: Path) -> None:
    save(tmp_path / "again.safetensors", load(written))
    save(tmp_path / "turned.safetensors", ConceptFile(concept.meta, dict(reversed(concept.sets.items()))))
    assert (tmp_path / "again.safetensors").read_bytes() == written.read_bytes()
    assert (tmp_path / "turned.safetensors").read_bytes() == written.read_bytes()


def test_header_is_read_without_tensors(concept: ConceptFile, written: Path) -> None:
    meta, sets = read_meta(written)
    assert meta == concept.meta
    assert sets["word"].kind == "word"
    assert sets["motion"].options["hidden"] == 3
    assert sets["motion"].sites == (Site(path="down.0", port="attn2", axis="space", width=WIDTH),)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_part_of_a_file_is_refused(written: Path, length: int) -> None:
    written.write_bytes(written.read_bytes()[:length])
    assert "not a safetensors file, or only a part of one" in refused(written)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.safetensors")
    refused(tmp_path)


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert "not a concept of ours" in refused(path)
    save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"})
    assert "dreamvideo convert" in refused(path)


def test_newer_format_is_refused(written: Path) -> None:
    header, tensors = contents(written)
    assert "newer version of dreamvideo" in refused(rewritten(written, {**header, "format": "dreamvideo-2"}, tensors))


def test_unknown_kind_is_refused(written: Path) -> None:
    header, tensors = contents(written)
    header["sets"]["motion"]["kind"] = "hypernetwork"
    assert "'hypernetwork'" in refused(rewritten(written, header, tensors))


def test_file_from_before_layers_could_be_learned_is_read(concept: ConceptFile, written: Path) -> None:
    header, tensors = contents(written)
    for described in header["sets"].values():
        for site in described["sites"]:
            del site["shape"]
    del header["sampling"]["phrase"], header["sampling"]["inversion"]
    again = load(rewritten(written, header, tensors))
    assert again.meta == concept.meta
    assert again.sets["motion"].sites == concept.sets["motion"].sites


def test_unmatched_tensor_is_refused(written: Path) -> None:
    header, tensors = contents(written)
    assert "1 tensors belong to no set" in refused(rewritten(written, header, {**tensors, "zz": torch.zeros(1)}))


def test_file_without_sets_is_refused(written: Path) -> None:
    header, tensors = contents(written)
    refused(rewritten(written, {**header, "sets": {}}, tensors))


@pytest.mark.parametrize("missing", ["format", "sets", "name", "method"])
def test_header_without_a_part_is_refused(written: Path, missing: str) -> None:
    header, tensors = contents(written)
    del header[missing]
    refused(rewritten(written, header, tensors))


@pytest.mark.parametrize("header", ["{", "[]", "null", '"text"'])
def test_header_that_is_no_object_is_refused(written: Path, header: str) -> None:
    refused(rewritten(written, header, contents(written)[1]))


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"kind": "bottleneck", "options": {}},
        {"kind": "bottleneck", "options": {"form": "round"}, "sites": []},
        {"kind": "bottleneck", "options": {}, "sites": []},
        {"kind": "bottleneck", "options": {}, "sites": [{"road": "a"}]},
        {"kind": "bottleneck", "options": {}, "sites": [{"path": "a", "port": "ff", "axis": "space", "width": "x"}]},
    ],
)
def test_set_that_is_described_wrongly_is_refused(written: Path, broken: dict[str, Any]) -> None:
    header, tensors = contents(written)
    header["sets"]["motion"] = broken
    refused(rewritten(written, header, tensors))


def test_nothing_matched_missing_and_misshapen_tensors_are_refused(written: Path) -> None:
    header, tensors = contents(written)
    foreign = {f"other.{name}": tensor for name, tensor in tensors.items()}
    assert "missing" in refused(rewritten(written, header, foreign))
    some = {name: tensor for name, tensor in tensors.items() if not name.endswith("up.bias")}
    assert "down.0.attn2.up.bias: missing" in refused(rewritten(written, header, some))
    bad = {**tensors, "down.0.attn2.up.bias": torch.zeros(3)}
    assert "shape [3], not [8]" in refused(rewritten(written, header, bad))


def test_nothing_matched_is_no_silent_success(written: Path) -> None:
    header, tensors = contents(written)
    foreign = {f"other.{name}": tensor for name, tensor in tensors.items()}
    with pytest.raises(BadFile, match="missing"):
        load(rewritten(written, header, foreign))


def test_two_sets_on_one_site_are_told_apart(tmp_path: Path) -> None:
    sets = {name: AdapterSet(Bottleneck(), [SITE], seed=seed) for name, seed in (("one", 1), ("two", 2))}
    save(tmp_path / "two.safetensors", ConceptFile(a_meta(), sets))
    _, tensors = contents(tmp_path / "two.safetensors")
    assert "one/down.0.attn2.up.bias" in tensors and "two/down.0.attn2.up.bias" in tensors
    again = load(tmp_path / "two.safetensors")
    for name, adapters in sets.items():
        state = again.sets[name].state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in adapters.state_dict().items())


def test_set_refuses_names_and_shapes_of_another() -> None:
    adapters, before = AdapterSet(Bottleneck(), [SITE]), AdapterSet(Bottleneck(), [SITE]).state_dict()
    wrong = {name: tensor + 1 for name, tensor in before.items()}
    for tensors, reason in (
        ({**wrong, "more": torch.zeros(1)}, "tensor more: not of this adapter"),
        ({}, "missing"),
        ({**wrong, "down.0.attn2.up.bias": torch.zeros(2)}, r"shape \[2\], not \[8\]"),
    ):
        with pytest.raises(BadFile, match=reason):
            adapters.load_state_dict(tensors)


# -- another base -----------------------------------------------------------------------------------------------------


def learned_on(base: VideoBase) -> ConceptFile:
    meta = a_meta(family=base.family, base=base.name, fingerprint=base.fingerprint)
    return ConceptFile(meta, {"motion": AdapterSet(Bottleneck(), base.sites("space", ("attn2",)))})


def test_same_base_is_accepted(base: VideoBase) -> None:
    check_base(base, [learned_on(base)])


def test_base_with_other_weights_is_refused_by_both_names(unet3d: VideoBase, tmp_path: Path) -> None:
    other = type(unet3d).tiny(1)
    other.save(tmp_path / "other-base")
    reloaded = bases.load(str(tmp_path / "other-base"))
    with pytest.raises(BadFile, match=r"learned on base tiny \(unet3d\), not on other-base \(unet3d\)"):
        check_base(reloaded, [learned_on(unet3d)])


def test_base_of_another_family_is_refused_by_both_names() -> None:
    families = bases.available()
    first, second = families["unet3d"].tiny(0), families["animatediff"].tiny(0)
    with pytest.raises(BadFile, match=rf"{first.name} \(unet3d\), not on {second.name} \(animatediff\)"):
        check_base(second, [learned_on(second), learned_on(first)])


def test_same_base_in_half_precision_under_another_name_is_accepted(unet3d: VideoBase, tmp_path: Path) -> None:
    unet3d.save(tmp_path / "copy")
    half = bases.load(str(tmp_path / "copy"), dtype="bf16")
    assert half.dtype == torch.bfloat16
    check_base(half, [learned_on(unet3d)])
    check_base(unet3d, [learned_on(half)])


def test_site_that_the_base_has_not_is_refused(base: VideoBase) -> None:
    (site, *_) = base.sites("space", ("attn2",))
    for wrong in (
        Site("nowhere", site.port, site.axis, site.width),
        Site(site.path, site.port, site.axis, site.width + 1),
        Site(site.path, site.port, site.axis, site.width, (site.width, site.width)),
        Site("tokens", site.port, "text", site.width),
    ):
        with pytest.raises(BadFile, match=base.name), base.attached(AdapterSet(Bottleneck(), [wrong])):
            pass
    base.encode_text(["still whole"])


# -- words ------------------------------------------------------------------------------------------------------------


def a_word(base: VideoBase, name: str, meaning: str) -> AdapterSet:
    """A word whose vectors are the token vectors of `meaning`."""
    (site,) = base.sites("text", ("word",))
    return learned_word(name, base.token_vectors(meaning), site)


def stock_states(base: VideoBase, prompt: str) -> Tensor:
    """What the stock tokenizer and text encoder make of a prompt."""
    tokens = base.parts.tokenizer(
        [prompt], padding="max_length", truncation=True, max_length=base.parts.tokenizer.model_max_length
    )
    return base.encode_ids(torch.tensor(tokens.input_ids))


@pytest.mark.parametrize("prompt", ["a cat runs", "", "x" * 200])
def test_plain_prompts_are_what_the_stock_tokenizer_makes_of_them(base: VideoBase, prompt: str) -> None:
    assert torch.equal(base.encode_text([prompt]), stock_states(base, prompt))


def test_word_of_n_vectors_is_spliced_in_before_positions(base: VideoBase) -> None:
    word = a_word(base, "pet", "cat")
    assert word.kind.vectors == 3
    with base.attached(word):
        for learned, plain in (("a <pet> runs", "a cat runs"), ("<pet>", "cat"), ("<pet> <pet>", "cat cat")):
            assert torch.equal(base.encode_text([learned]), stock_states(base, plain))
    assert not torch.equal(base.encode_text(["a dog runs"]), stock_states(base, "a cat runs"))


@pytest.mark.parametrize("turned", [False, True])
def test_two_subjects_at_once(base: VideoBase, turned: bool) -> None:
    words = [a_word(base, "pet", "cat"), a_word(base, "toy", "robot")]
    with base.attached(*(reversed(words) if turned else words)):
        states = base.encode_text(["a <toy> chases a <pet>", "plain", "<pet>"])
    for row, plain in zip(states, ("a robot chases a cat", "plain", "cat"), strict=True):
        assert torch.equal(row[None], stock_states(base, plain))


def test_word_stays_right_when_another_is_detached(unet3d: VideoBase) -> None:
    pet, toy = a_word(unet3d, "pet", "cat"), a_word(unet3d, "toy", "robot")
    unet3d.attach(pet, toy)
    unet3d.detach(pet)
    assert torch.equal(unet3d.encode_text(["<toy>"]), stock_states(unet3d, "robot"))


def test_only_the_word_receives_gradients(unet3d: VideoBase) -> None:
    word = a_word(unet3d, "pet", "cat").requires_grad_(True)
    with unet3d.attached(word):
        unet3d.encode_text(["a <pet> runs"]).sum().backward()
    (vectors,) = word.parameters()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in unet3d.parts.text_encoder.parameters())


def test_unknown_word_is_refused_with_those_that_are_known(unet3d: VideoBase) -> None:
    with pytest.raises(BadInput, match=r"'a <pet>': <pet> is not among the learned words \(none\)"):
        unet3d.encode_text(["a <pet>"])
    with unet3d.attached(a_word(unet3d, "toy", "robot")):
        with pytest.raises(BadInput, match=r"<pet> is not among the learned words \(<toy>\)"):
            unet3d.encode_text(["a <toy> and a <pet>"])
        unet3d.encode_text(["a <toy>"])


def test_what_is_no_word_is_plain_text(unet3d: VideoBase) -> None:
    for prompt in ("1 < 2 and 3 > 2", "a < b >", "<>"):
        assert torch.equal(unet3d.encode_text([prompt]), stock_states(unet3d, prompt))


def test_over_long_prompt_keeps_its_end_token(unet3d: VideoBase) -> None:
    length = unet3d.parts.tokenizer.model_max_length
    with unet3d.attached(a_word(unet3d, "pet", "cat")):
        # The word's last vector is cut off with the rest.
        states = unet3d.encode_text(["x" * (length - 4) + "<pet>" + "y" * 50])
    room = "x" * (length - 4)
    assert states.shape[1] == length
    assert not torch.equal(states, stock_states(unet3d, room))
    ids = unet3d.parts.tokenizer(room, add_special_tokens=False).input_ids
    cat = unet3d.parts.tokenizer("cat", add_special_tokens=False).input_ids
    start, end = unet3d.parts.tokenizer.bos_token_id, unet3d.parts.tokenizer.eos_token_id
    assert torch.equal(states, unet3d.encode_ids(torch.tensor([[start, *ids, *cat[:2], end]])))


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.8", (0.8, 0.8, 0.8, 0.8)),
        ("-1", (-1, -1, -1, -1)),
        ("0.4..0.8", (0.4, 0.44, 0.6, 0.8)),
        ("1..-1", (1.0, 0.8, 0.0, -1.0)),
        ("0.4@0,0.8@0.1", (0.4, 0.8, 0.8, 0.8)),
        ("1@0,0.5@0.5,0@1", (1, 1, 0.5, 0)),
    ],
)
def test_weight_over_the_denoising_steps(text: str, values: tuple[float, ...]) -> None:
    weight = Weight.parse(text)
    assert [weight.at(progress) for progress in (0.0, 0.1, 0.5, 1.0)] == pytest.approx(values)
    assert str(weight) == text
    assert Weight.parse(str(weight)) == weight


def test_weight_is_one_unless_told() -> None:
    assert Weight() == Weight.parse(1) == Weight.parse("1.0")
    assert Weight().at(0.3) == 1.0


@pytest.mark.parametrize("text", ["0.12345678", "0.1234567..0.7654321", "0.12345678@0,1@0.3333333"])
def test_weight_is_written_without_rounding(text: str) -> None:
    assert Weight.parse(str(Weight.parse(text))) == Weight.parse(text)


@pytest.mark.parametrize(
    "text", ["", "much", "0.4..", "..", "0.1..0.2..0.3", "0.4@", "@0", "0.4@0,", "0.4@0,0.5", "1@0@1", "0.4..0.5@1"]
)
def test_weight_of_no_known_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"write 0\.8, 0\.4\.\.0\.8 or 0\.4@0,0\.8@0\.1"):
        Weight.parse(text)


@pytest.mark.parametrize("text", ["1@0.5", "1@0,2@0", "1@0,2@0.5,3@0.2", "1@0,2@1.5", "1@-1,2@0"])
def test_weight_whose_places_do_not_rise_from_zero_to_one_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="must rise from 0"):
        Weight.parse(text)


@pytest.mark.parametrize("text", ["nan", "inf", "0..inf", "nan@0"])
def test_weight_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Weight.parse(text)


def test_copied_file_is_the_same_concept(written: Path, tmp_path: Path) -> None:
    moved = shutil.copy(written, tmp_path / "elsewhere.safetensors")
    assert load(moved).meta == load(written).meta
