"""How prompts are read: the grammar, its odd corners, and chunks of tokens.

Expectations were taken from the WebUI 1.10.1's answers, or worked out by hand.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from transformers import CLIPTextModel

from middleware_api.container.engine.checkpoint_shapes import TextShape
from middleware_api.container.engine.families import SD1
from middleware_api.container.fields import Fields
from middleware_api.container.networks.block_weights import BLOCKS, PRESETS, read_presets
from middleware_api.container.prompts.conditioning import (
    Conditioning,
    Guidance,
    Reading,
    subprompts_of,
)
from middleware_api.container.prompts.embeddings import Embedding
from middleware_api.container.prompts.emphasis import Emphasis, weighted_parts
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.prompts.networks import (
    HypernetworkAsk,
    LoraAsk,
    Networks,
    networks_of,
)
from middleware_api.container.prompts.schedule import Clock, schedule_of
from middleware_api.container.prompts.text_encoders import TextEncoder
from middleware_api.container.prompts.text_settings import TextSettings


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("plain, text", [("plain, text", 1)]),
        ("", [("", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("((a))", [("a", pytest.approx(1.21))]),
        ("(a:1.3)(b:1.3)", [("ab", 1.3)]),
        ("[a] [[b]]", [("a", 1 / 1.1), (" ", 1), ("b", 1 / 1.1 / 1.1)]),
        ("(a (b:0.5):1.5)", [("a ", 1.5), ("b", 0.75)]),
        ("(a: -1.5 )", [("a", -1.5)]),
        (r"\(a\) \[b\] \\ \x", [(r"(a) [b] \ x", 1)]),
        ("(open [both", [("open ", 1.1), ("both", 1)]),
        ("closed) too] a:1.2)", [("closed) too] a:1.2)", 1)]),
        ("[a:1.2) b]", [("a:1.2) b", 1 / 1.1)]),
        ("a BREAK b", [("a", 1), ("BREAK", -1), ("b", 1)]),
        ("(a BREAK b:1.5)", [("a", 1.5), ("BREAK", -1.5), ("b", 1.5)]),
        ("NOBREAK BREAKs", [("NOBREAK BREAKs", 1)]),
    ],
)
def test_emphasis_is_read_as_in_the_webui(prompt: str, expected: list[tuple[str, float]]) -> None:
    parts = weighted_parts(prompt, Emphasis.ORIGINAL)
    assert [(part.text, part.weight) for part in parts] == expected


def test_without_emphasis_brackets_are_text() -> None:
    (only,) = weighted_parts("(a:1.5) BREAK [b]", Emphasis.NONE)
    assert (only.text, only.weight) == ("(a:1.5) BREAK [b]", 1)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", {8: "a cat"}),
        ("a [red:green:3] cat", {3: "a red cat", 8: "a green cat"}),
        ("a [red:green:0.5] cat", {4: "a red cat", 8: "a green cat"}),
        ("a [red: .25 ]", {2: "a ", 8: "a red"}),
        ("a [red::5]", {5: "a red", 8: "a "}),
        ("a [red:green:99]", {8: "a red"}),
        ("a [red:green:0] [b:-1]", {8: "a green b"}),
        ("[[a:b:2]:[c]:4]", {2: "a", 4: "b", 8: "[c]"}),
        ("([a:b:2]:1.2)", {2: "(a:1.2)", 8: "(b:1.2)"}),
        ("[(x:1.3):2]", {2: "", 8: "(x:1.3)"}),
        (r"[a\:b:2] \[c:d:3]", {2: r" \[c:d:3]", 8: r"a\:b \[c:d:3]"}),
        ("[a:b:c:2] [d:2]", {2: "[a:b:c:2] ", 8: "[a:b:c:2] d"}),
        ("((a][:b:c [d:3]", {3: "((a][:b:c ", 8: "((a][:b:c d"}),
        ("[a:b] (c", {8: "[a:b] (c"}),
        ("a | b [c:3]", {8: "a | b [c:3]"}),
        ("[a|b:3]", {8: "[a|b:3]"}),
        ("[c:3] \\", {8: "[c:3] \\"}),
    ],
)
def test_schedules_are_read_as_in_the_webui(prompt: str, expected: dict[int, str]) -> None:
    assert {w.until: w.text for w in schedule_of(prompt, Clock(8))} == expected


def test_alternations_change_at_every_call() -> None:
    words = schedule_of("[fe|||(b:2)]male", Clock(5))
    assert [w.text for w in words] == ["female", "male", "male", "(b:2)male", "female"]


def test_in_hires_fix_steps_go_on_counting_and_shares_run_from_one_to_two() -> None:
    prompt = "[a:b:1.5] [c:d:10] [e:f:0.5] [g:h:3]"
    words = schedule_of(prompt, Clock(6, before=8))
    assert [(w.until, w.text) for w in words] == [
        (2, "a c f h"),
        (3, "a d f h"),
        (6, "b d f h"),
    ]


def test_deep_brackets_are_read_without_recursion() -> None:
    deep = "[" * 5000 + "a" + ":9]" * 5000
    assert [w.text for w in schedule_of(deep, Clock(10))] == ["", "a"]
    assert schedule_of("[(" * 5000, Clock(10))[0].text == "[(" * 5000


def test_subprompts_have_the_weight_behind_their_last_colon() -> None:
    assert subprompts_of("a cat :1.2 AND a\ndog AND sAND:-0.5 AND x :. ") == [
        ("a cat", 1.2),
        (" a\ndog", 1),
        (" sAND", -0.5),
        (" x :.", 1),
    ]


def test_networks_are_named_with_weights_by_place_or_by_name() -> None:
    asked = networks_of(
        "<lora:a><lyco:b:0.5><lora:c:0.5:0.7:8><lora:d:te=0.1:unet=-1:dyn=4>"
        "<hypernet:e:0.3><hypernet:f> a < b:c"
    )
    assert asked.loras == (
        LoraAsk("a", 1, 1),
        LoraAsk("b", 0.5, 0.5),
        LoraAsk("c", 0.5, 0.7, 8),
        LoraAsk("d", 0.1, -1, 4),
    )
    assert asked.hypernetworks == (HypernetworkAsk("e", 0.3), HypernetworkAsk("f", 1))
    assert asked.problems == ()


def blocks_of(tag: str, presets: Mapping[str, str] | None = PRESETS) -> dict[str, float]:
    """The blocks of a tag's LoRA that do not weigh 0."""
    (ask,) = networks_of(tag, presets).loras
    weights = zip(BLOCKS, ask.blocks or (), strict=bool(ask.blocks))
    return {block: weight for block, weight in weights if weight}


def test_blocks_have_weights_by_presets_and_by_lists() -> None:
    assert blocks_of("<lora:a:1>") == {}
    ins = dict.fromkeys(["BASE", "IN01", "IN02", "IN04"], 1)
    assert blocks_of("<lora:a:1:lbw=INS>") == blocks_of("<lora:a:1:INS>") == ins
    assert list(blocks_of("<lora:a:lbw=ALL>")) == [
        *("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00"),
        *(f"OUT{i:02}" for i in range(3, 12)),
    ]
    assert set(blocks_of("<lora:a:lbw=ALL0.5>").values()) == {0.5}
    for count, block in ((12, "OUT05"), (17, "OUT11"), (20, "OUT08"), (26, "OUT11")):
        numbers = ",".join(["0"] * (count - 1) + ["-0.3"])
        assert blocks_of(f"<lyco:a:1:1:w={numbers}>") == {block: -0.3}
    dynamic = {"UP": ",".join(["X", *["0"] * 15, "X-0.2"])}
    assert blocks_of("<lora:a:1:UP:0.7>", dynamic) == pytest.approx({"BASE": 0.7, "OUT11": 0.5})
    assert blocks_of("<lora:a:lbw=UP:x=0.4>", dynamic) == pytest.approx({"BASE": 0.4, "OUT11": 0.2})
    assert blocks_of("<lora:a:lbw=UP>", dynamic) == pytest.approx({"BASE": 1, "OUT11": 0.8})
    # The strength stays what it is, and where the presets are switched off they count for nothing.
    (ask,) = networks_of("<lora:a:0.5:INS>").loras
    assert (ask.text, ask.unet, ask.rank) == (0.5, 0.5, None)
    assert networks_of("<lora:a:1:lbw=INS:start=3>", None) == Networks((LoraAsk("a", 1, 1),))


def test_block_weights_that_mean_nothing_are_told() -> None:
    (name, random, part) = networks_of(
        f"<lora:a:lbw=FOO><lora:a:lbw={'R,' * 16}1><lora:a:start=3:lbwe=ATTNDEEPON>"
    ).problems[:3]
    assert name.startswith("<lora:a:lbw=FOO>: the weights of its blocks were ignored: 'FOO' is no")
    assert "(R, U) are not drawn here" in random
    assert part == "<lora:a:start=3:lbwe=ATTNDEEPON>: lbwe= is not supported yet."


def test_a_users_own_presets_come_with_the_scripts_arguments() -> None:
    numbers = ",".join(["1"] * 17)
    text = f"MINE:{numbers}\n# OLD:{numbers}\nodd:1,2\n"
    scripts = {"LoRA Block Weight": {"args": [text, True, False, "values"]}}
    assert read_presets(Fields({"alwayson_scripts": scripts})) == {"MINE": numbers}
    scripts["LoRA Block Weight"]["args"][1] = False
    assert read_presets(Fields({"alwayson_scripts": scripts})) is None
    assert read_presets(Fields({"alwayson_scripts": {"x": {"args": [text, True]}}})) == PRESETS


def test_a_call_reads_the_words_that_hold_then_and_behind_the_end_the_first() -> None:
    states = tuple(Reading(torch.full((77, 4), float(i))) for i in range(2))
    conditioning = Conditioning((3, 8), states)
    read = [conditioning.at(call).tokens for call in (0, 3, 4, 8, 9)]
    assert [float(tokens[0, 0]) for tokens in read] == [0, 0, 1, 1, 0]


def test_subprompts_of_unlike_length_repeat_their_last_token() -> None:
    short, long = (
        Conditioning((8,), (Reading(torch.arange(n * 77.0)[:, None].repeat(1, 4)),)) for n in (1, 2)
    )
    towards, away = Guidance(((short, 1), (long, 1)), short).at(0)
    assert towards.tokens.shape == (2, 154, 4)
    assert towards.tokens[0, 76:, 0].unique().tolist() == [76]
    assert away.tokens.shape == (1, 77, 4)
    filler = torch.full((77, 4), -1.0)
    padded = Guidance(((short, 1), (long, 1)), short, filler)
    assert padded.is_padded_at(0)
    assert padded.at(0)[1].tokens[0, 77:].unique().tolist() == [-1]
    assert not Guidance(((short, 1),), short, filler).is_padded_at(0)


class Reader:
    """The encoder beside a text encoder whose last layer tells its tokens' vectors apart."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = CLIPTextModel(TextShape(49408, 77, 64, 256, 2).config()).eval()
        self.text_encoder = TextEncoder(SD1.texts[0], self.model)
        # A mean that is not all but 0, as trained encoders have it: emphasis divides by it.
        torch.nn.init.normal_(self.model.final_layer_norm.bias, mean=0.5)
        self.encoder = PromptEncoder()

    def states(self, *texts: str, **settings: object) -> list[torch.Tensor]:
        chosen = TextSettings(**settings)  # type: ignore[arg-type]
        read = self.encoder.encode([self.text_encoder], texts, chosen, self.embeddings)
        return [reading.tokens for reading in read]

    embeddings: tuple[Embedding, ...] = ()


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


def test_a_chunk_of_a_long_prompt_is_read_like_a_prompt_of_its_own(reader: Reader) -> None:
    (long,) = reader.states("red " * 75 + "green " * 75 + "ring")
    assert long.shape == (3 * 77, 64)
    for at, own in enumerate(("red " * 75, "green " * 75, "ring")):
        (alone,) = reader.states(own)
        assert torch.allclose(long[77 * at : 77 * (at + 1)], alone, atol=1e-5)


def test_words_behind_a_comma_go_to_the_next_chunk_together(reader: Reader) -> None:
    head, tail = "red " * 60 + ",", "green " * 30
    (moved,), (apart,) = (reader.states(f"{head} {tail}", backtrack=n) for n in (20, 10))
    (first,), (second,) = reader.states(head), reader.states(tail)
    assert torch.allclose(moved, torch.cat([first, second]), atol=1e-5)
    assert not torch.allclose(apart, moved, atol=1e-2)


def test_texts_of_one_schedule_are_as_long_as_the_longest(reader: Reader) -> None:
    short, long = reader.states("red", "red BREAK green")
    (empty,) = reader.states("")
    assert torch.allclose(short[77:], empty, atol=1e-5)
    assert short.shape == long.shape == (154, 64)


def test_original_emphasis_keeps_the_mean_of_all_texts_together(reader: Reader) -> None:
    texts = ("a (red:1.4) ring", "a green ring", "a green ring")
    plain, weighted = (
        torch.stack(reader.states(*texts, emphasis=kind))
        for kind in (Emphasis.IGNORE, Emphasis.NO_NORM)
    )
    factor = plain.mean() / weighted.mean()
    kept = torch.stack(reader.states(*texts))
    assert torch.allclose(kept, weighted * factor, rtol=1e-3)
    assert torch.allclose(weighted[0, 2], plain[0, 2] * 1.4)  # the begin token, "a", "red"


def test_an_embedding_takes_the_place_of_its_name(reader: Reader) -> None:
    """With a word's own vectors it changes nothing; the longest name wins."""
    table = reader.model.embeddings.token_embedding.weight.detach()
    tokenizer = reader.encoder._tokenizer
    ids = tokenizer("bright red", add_special_tokens=False).input_ids
    other = Embedding("glow", "", {"": torch.zeros(1, 64)})
    reader.embeddings = (other, Embedding("glow-worm", "", {"": table[ids]}))
    try:
        (named,) = reader.states("a (Glow-Worm:1.3) ring, glow")
        reader.embeddings = (other,)
        (written,) = reader.states("a (bright red:1.3) ring, glow")
        (without,) = reader.states("a (glow-worm:1.3) ring, glow")
    finally:
        reader.embeddings = ()
    assert torch.allclose(named, written, atol=1e-5)
    assert not torch.allclose(named, without, atol=1e-2)
