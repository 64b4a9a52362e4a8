from __future__ import annotations

import re

import pytest
import torch
import transformers
from torch import nn

import multiflow as mf
from multiflow.base.adapter import regex_of
from multiflow.cli import main
from multiflow.families.automatic.roles import find_roles
from tests.families.automatic import tiny
from tests.families.automatic.contract import (
    check_pruning,
    layer_inputs,
    moved_tokens,
    real_tokens,
    with_other_padding,
)

CROSS_SECTION = {  # a cut through the kinds of model: dual encoders, projectors, packed and padded patches, decoders
    "clip": ("CLIPModel", {"vision": 12, "text": 12}),
    "siglip2": ("Siglip2Model", {"vision": 12, "text": 12}),
    "llava": ("LlavaForConditionalGeneration", {"vision": 6, "connector": 2, "text": 14}),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", {"vision": 10, "connector": 2, "text": 14}),
    "smolvlm": ("SmolVLMForConditionalGeneration", {"vision": 12, "connector": 1, "text": 14}),
    "paligemma": ("PaliGemmaForConditionalGeneration", {"vision": 12, "connector": 1, "text": 14}),
    "florence2": ("Florence2ForConditionalGeneration", {"vision": 16, "connector": 1, "text": 32}),
    "blip-2": ("Blip2ForConditionalGeneration", {"vision": 8, "connector": 17, "text": 12}),
    "vision-encoder-decoder": ("VisionEncoderDecoderModel", {"vision": 12, "text": 12, "fusion": 8}),
    "git": ("GitForCausalLM", {"vision": 12, "connector": 1, "text": 12}),
    "idefics2": ("Idefics2ForConditionalGeneration", {"vision": 12, "connector": 24, "text": 14}),
    "vilt": ("ViltForQuestionAnswering", {"fusion": 12}),
}


@pytest.fixture(params=CROSS_SECTION)
def kind(request):
    return request.param


def built(kind):
    return tiny.build(kind, CROSS_SECTION[kind][0])


def test_a_cross_section_is_pruned_saved_and_trained(kind, tmp_path):
    model = built(kind)
    adapter, batch = mf.adapter_for(model), tiny.batch(model)
    layout = adapter.layout(model)
    assert {group: len(layers) for group, layers in layout.groups.items()} == CROSS_SECTION[kind][1]
    check_pruning(model, adapter, [batch, tiny.batch(model, padded=False)], tmp_path)


def by_hand(kind, batch, name, shape):
    """Which tokens of a layer's input ``(*shape, in)`` are real, from what `tiny.batch` pads and nothing else."""
    ones, text = torch.ones(shape, dtype=torch.bool), batch.get("attention_mask", torch.zeros(0)).bool()
    rows = torch.tensor([[True] * 16, [True] * 8 + [False] * 8])  # the lower half of the second image's 4 x 4 patches
    if kind == "git" and ".encoder.layer." in name:
        return torch.cat([ones[:, text.shape[1] :], text], 1)
    if kind == "vilt":
        return torch.cat([text, ones[:, text.shape[1] :]], 1)
    if name.startswith(("decoder.bert", "model.language_model.decoder")) and not is_source(name):
        return torch.tensor([[True] * 4, [True] * 3 + [False]])  # begin, 8, end, padding
    if kind == "vision-encoder-decoder" or ("vision" in name and kind not in ("siglip2", "smolvlm", "idefics2")):
        return ones
    if "vision" in name:
        return rows
    if "connector" in name or "projector" in name or "qformer" in name or "merger" in name or "_projection" in name:
        pooled = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
        return {("smolvlm", 4): pooled, ("idefics2", 16): rows}.get(
            (kind, shape[1] if len(shape) > 1 else 0),
            torch.cat([rows, ones[:, 16:]], 1) if (kind, *shape[1:]) == ("idefics2", 20) else ones,
        )
    return text.reshape(shape) if shape.numel() == text.numel() else ones  # OPT flattens (B, L, in) to (B L, in)


def is_source(name):
    return re.search(r"(encoder_attn|crossattention)\..*(k_proj|v_proj|key|value)$", name) is not None


def test_statistics_equal_those_of_all_inputs_without_the_padding(kind):
    model = built(kind)
    adapter, batch = mf.adapter_for(model), tiny.batch(model)
    stats = mf.calibrate(model, [batch], adapter=adapter, statistics=["input_norm", "input_moment"])
    for name, inputs in layer_inputs(model, adapter, batch).items():
        tokens = torch.cat([x[by_hand(kind, batch, name, x.shape[:-1])] for x in inputs])
        assert stats.counts["input_norm"][name] == len(tokens), name
        moment = tokens.T @ tokens / len(tokens)
        torch.testing.assert_close(stats["input_norm"][name].double(), moment.diag().sqrt(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(stats["input_moment"][name].double(), moment, rtol=1e-3, atol=1e-5)


def test_what_counts_as_real_does_not_move_with_the_padding_and_all_else_does(kind):
    model = built(kind).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in tiny.batch(model).items()}
    adapter = mf.adapter_for(model)
    moved = moved_tokens(model, adapter, batch, with_other_padding(batch))
    for name, inputs in moved.items():
        stream = adapter.stream(name)
        for tokens in inputs:
            real = real_tokens(adapter, batch, name, tokens[..., None])
            if stream == "text" and kind == "smolvlm":
                continue  # squares of padding alone reach the language model as image tokens, which are real there
            assert not (tokens & real).any(), name
            assert stream == "decoder" or (tokens | real).all(), name  # labels are no input to change


@pytest.mark.parametrize("tokens", ["text", "image"])
def test_tokens_of_one_kind_alone_count(tokens):
    model = built("llava")
    adapter, batch = mf.adapter_for(model, tokens=tokens), tiny.batch(model)
    stats = mf.calibrate(model, [batch], adapter=adapter)
    image = batch["input_ids"] == model.config.image_token_index
    wanted = batch["attention_mask"].bool() & (image if tokens == "image" else ~image)
    assert stats.counts["input_norm"]["model.language_model.layers.0.mlp.up_proj"] == int(wanted.sum())
    assert stats.counts["input_norm"]["model.multi_modal_projector.linear_1"] == int(image.sum())


def test_what_stays_dense_says_why():
    dense = mf.adapter_for(built("llava")).dense
    assert "output embeddings" in dense["lm_head"]
    assert "vision_feature_layer is -2" in dense["model.vision_tower.encoder.layers.1.mlp.fc1"]
    heads = mf.adapter_for(built("siglip2")).dense
    assert {"head or pooler"} == {why for path, why in heads.items() if ".head." in path}


def test_the_user_overrides_one_piece_at_a_time():
    model = built("llava")
    adapter = mf.adapter_for(model, exclude=r"mlp\.fc2$", groups={"late": r"language_model\.layers\.1\."})
    layout = adapter.layout(model)
    assert {group: len(layers) for group, layers in layout.groups.items()} == {
        "vision": 5, "connector": 2, "text": 7, "late": 7,
    }  # fmt: skip
    assert adapter.dense["model.vision_tower.encoder.layers.0.mlp.fc2"] == "excluded"
    with pytest.raises(mf.MultiflowError, match="'nowhere' of exclude matches no module"):
        mf.adapter_for(model, exclude="nowhere")


def test_parts_that_cannot_be_placed_are_all_named_with_one_regex():
    pi0 = tiny.build("pi0", "PI0ForConditionalGeneration")  # which moves a robot's arm
    with pytest.raises(mf.MultiflowError) as caught:
        mf.adapter_for(pi0)
    regex = re.search(r"exclude=r'(\S+)'", str(caught.value))[1]
    assert "'model.dit' (GemmaModel)" in str(caught.value)
    assert "text" in mf.adapter_for(pi0, exclude=regex).layout(pi0).groups


def test_what_stands_in_the_place_of_an_image_has_a_group_and_padding_of_its_own():
    model = tiny.build("evolla", "EvollaForProteinText2Text")
    batch = tiny.batch(model)
    adapter = mf.adapter_for(model)
    counts = mf.calibrate(model, [batch], adapter=adapter).counts["input_norm"]
    found = {group: {counts[layer.name] for layer in of} for group, of in adapter.layout(model).groups.items()}
    parts, latents = int(batch["protein_attention_mask"].sum()), 2 * model.config.resampler_num_latents
    words = int(batch["attention_mask"].sum())
    assert found == {"protein": {parts}, "connector": {latents, latents + parts}, "text": {words, latents}}


def test_more_learnt_queries_than_patches_are_all_real():
    model = built("idefics2")
    model.config.perceiver_config.resampler_n_latents = 40  # of 16 patches
    connector = mf.adapter_for(model).token_masks(tiny.batch(model))["connector"]
    assert connector("q_proj", torch.ones(2, 40, 8)).all()
    assert connector("k_proj", torch.ones(2, 56, 8)).sum() == 2 * 40 + 24


def test_stacks_that_nobody_tells_apart_are_refused():
    with torch.device("meta"):
        model = transformers.LxmertModel(transformers.LxmertConfig())  # text, regions and both, in three lists
    lists = model.encoder._modules  # the names of this model tell them apart, others need not
    for before, after in {"layer": "first", "r_layers": "second", "x_layers": "third"}.items():
        lists[after] = lists.pop(before)
    with pytest.raises(mf.MultiflowError, match=r"encoder\.first'.*encoder\.second'.*encoder\.third'"):
        mf.adapter_for(model)
    groups = {"text": r"encoder\.first\.", "vision": r"encoder\.second\.", "fusion": r"encoder\.third\."}
    layout = mf.adapter_for(model, groups=groups).layout(model)
    assert set(layout.groups) == {*groups, "connector"}


def test_a_joint_sequence_of_which_no_rule_is_known_is_refused_where_it_is_padded():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    image = small | {"image_size": 16, "patch_size": 8}
    config = transformers.FlavaConfig(
        image_config=image, text_config=small | {"vocab_size": 64}, multimodal_config=small, hidden_size=16
    )
    config.model_type = "unheard-of"
    model = transformers.FlavaModel(config).eval()
    batch = {"pixel_values": torch.rand(2, 3, 16, 16), "input_ids": torch.randint(1, 60, (2, 5))}
    batch["attention_mask"] = torch.ones(2, 5, dtype=torch.long)
    mf.prune(model, "wanda", 0.5, [batch])
    batch["attention_mask"][1, 3:] = 0
    with pytest.raises(mf.MultiflowError, match="multimodal_model.* no mask of its stream 'text' fits"):
        mf.prune(model, "wanda", 0.5, [batch])


def test_a_tower_with_nothing_to_prune_is_refused():
    align = tiny.build("align", "AlignModel")  # its vision tower is an EfficientNet
    with pytest.raises(mf.MultiflowError, match=r"no linear layer to prune in 'vision_model' .*\d% of its weights"):
        mf.adapter_for(align)
    layout = mf.adapter_for(align, exclude="^vision_model").layout(align)
    assert set(layout.groups) == {"text"}


def test_a_decoder_that_stores_its_weights_transposed_is_pruned(tmp_path):
    vision = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=16, add_cross_attention=True, **tokens
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    model = transformers.VisionEncoderDecoderModel(config).eval()
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    adapter = mf.adapter_for(model)
    layout = adapter.layout(model)
    assert {group: len(layers) for group, layers in layout.groups.items()} == {"vision": 6, "text": 4, "fusion": 3}
    assert layout["decoder.transformer.h.0.attn.c_attn"].shape == (48, 16)
    assert layout["decoder.transformer.h.0.crossattention.c_attn"].stream == "source"
    batch = {"pixel_values": torch.rand(2, 3, 16, 16), "labels": torch.tensor([[5, 6, 7, 2], [8, 2, -100, -100]])}
    stats = mf.calibrate(model, [batch], adapter=adapter)
    assert (
        stats.counts["input_norm"]["decoder.transformer.h.0.mlp.c_fc"] == 7
    )  # of both texts the last word is no input
    for name, inputs in layer_inputs(model, adapter, batch).items():
        real = [x[real_tokens(adapter, batch, name, x)] for x in inputs]
        norm = torch.cat(real).square().mean(0).sqrt()
        torch.testing.assert_close(stats["input_norm"][name].double(), norm, rtol=1e-4, atol=1e-6)
    check_pruning(model, adapter, [batch, batch], tmp_path)


@pytest.mark.filterwarnings("ignore:.*saw no token")
@pytest.mark.parametrize("kind", ["qwen3_vl_moe", "aria", "llama4"])
def test_statistics_of_experts_are_those_of_the_tokens_that_are_sent_there(kind):
    model = tiny.build(*next(pair for pair in tiny.types() if pair[0] == kind))
    adapter, batch = mf.adapter_for(model), tiny.batch(model)
    stats = mf.calibrate(model, [batch], adapter=adapter, statistics=["input_norm", "input_moment"])
    real = batch["attention_mask"].bool().flatten()
    experts = {name: m for name, m in model.named_modules() if name.endswith(".experts")}
    assert set(experts) == {name.rsplit(".", 2)[0] for name in adapter.layout(model) if ".experts." in name}
    for path, inputs in experts_inputs(model, experts, batch).items():
        for expert, (rows, states) in enumerate(inputs):
            module, count = experts[path], int(real[rows].sum())
            assert stats.counts["input_norm"][f"{path}.gate_up_proj.{expert}"] == count
            if not count:
                continue
            up, down = module.gate_up_proj[expert].double(), module.down_proj[expert].double()
            up, down = (up, down) if kind == "qwen3_vl_moe" else (up.T, down.T)
            gate, rest = (states @ up.T).chunk(2, -1)
            for name, x in (("gate_up_proj", states), ("down_proj", module.act_fn(gate) * rest)):
                moment = x[real[rows]].T @ x[real[rows]] / count
                found = {key: stats[key][f"{path}.{name}.{expert}"].double() for key in stats}
                torch.testing.assert_close(found["input_moment"], moment, rtol=1e-4, atol=1e-7)
                torch.testing.assert_close(found["input_norm"], moment.diag().sqrt(), rtol=1e-4, atol=1e-7)


def experts_inputs(model, experts, batch):
    """Brute force: of each module of experts, for each expert the rows of its tokens and their states in float64."""
    found = {}

    def keep(module, args, path):
        states = args[0].detach().double()
        if len(args) == 1:  # Llama 4: the tokens once for each expert, times their share of it
            of = states.view(module.num_experts, -1, states.shape[-1])
            chosen = [x.abs().sum(1).nonzero()[:, 0] for x in of]
            found[path] = [(rows, x[rows]) for rows, x in zip(chosen, of, strict=True)]
        else:
            chosen = [(args[1] == expert).any(1).nonzero()[:, 0] for expert in range(module.num_experts)]
            found[path] = [(rows, states[rows]) for rows in chosen]

    hooks = [
        module.register_forward_pre_hook(lambda m, args, path=path: keep(m, args, path))
        for path, module in experts.items()
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return found


def test_what_is_no_layer_of_any_kind_is_said_with_its_share():
    model = tiny.build("gemma3", "Gemma3ForConditionalGeneration")
    weights = dict(model.named_parameters())["model.multi_modal_projector.mm_input_projection_weight"].numel()
    share = weights / sum(p.numel() for p in model.parameters())
    with pytest.warns(UserWarning, match=rf"{share:.0%} of the weights .* stay dense: .*mm_input_projection_weight"):
        adapter = mf.adapter_for(model)
    result = mf.prune(model, "magnitude", 0.5, adapter=adapter)
    shares = result.settings["prunable"]
    assert shares["model"] == adapter.layout(model).size / sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("method", ["multiflow", "snip"])
def test_batches_of_text_alone_are_said_at_once_and_refused_early(method, caplog):
    model = built("llava")
    batch = tiny.batch(model)
    text = {name: value for name, value in batch.items() if name != "pixel_values"}
    text["input_ids"] = text["input_ids"].clamp(max=99)
    seen = []
    batches = (seen.append(number) or text for number in range(100))
    with pytest.raises(mf.MultiflowError, match="6 layers of group 'vision' .* 8 batches"):
        mf.prune(model, method, 0.5, batches)
    assert len(seen) < 12
    assert "the first batch holds nothing that the 6 layers of group 'vision' see" in caplog.text


def test_padding_that_nobody_declared_is_said_with_its_share():
    model = built("clip")
    batch = tiny.batch(model)
    share = f"{1 - batch['attention_mask'].float().mean():.0%}"
    undeclared = mf.Adapter(groups={"text": r"^text_model\.encoder\..*fc1"})
    with pytest.warns(UserWarning, match=f"{share} of the tokens are padding .*'attention_mask'"):
        mf.prune(model, "wanda", 0.5, [batch], adapter=undeclared)
    declared = mf.Adapter(
        groups=undeclared.groups,
        streams={"^text_model": "text"},
        token_masks=lambda batch: {"text": batch["attention_mask"].bool()},
    )
    mf.prune(model, "wanda", 0.5, [batch], adapter=declared)


def test_the_command_line_shows_and_prunes_a_folder(tmp_path, capsys):
    model = built("llava")
    model.save_pretrained(tmp_path / "model")
    adapter = tmp_path / "mine.py"
    adapter.write_text("import multiflow as mf\nadapter = mf.Adapter(groups={'text': r'language_model'})\n")
    assert main(["show", str(tmp_path / "model"), "--exclude", "fc2$"]) == 0
    said = capsys.readouterr().out
    assert "excluded" in said
    assert "output embeddings" in said
    prune = ["prune", str(tmp_path / "model"), "--method", "magnitude", "--sparsity", "0.5"]
    assert main([*prune, "--group", "late=layers.1.mlp", "--out", str(tmp_path / "run")]) == 0
    masks = mf.Masks.load(tmp_path / "run" / "mask-0.5.safetensors")
    assert set(masks.layout.groups) == {"vision", "connector", "text", "late"}
    assert main([*prune, "--adapter", str(adapter), "--out", str(tmp_path / "own")]) == 0
    assert set(mf.Masks.load(tmp_path / "own" / "mask-0.5.safetensors").layout.groups) == {"text"}
    assert "of the model (" in capsys.readouterr().out
    adapter.write_text("adapters = 1\n")
    for wrong, why in (
        (["--group", "late"], "is not NAME=REGEX"),
        (["--adapter", str(tmp_path / "none.py")], "is no Python file"),
        (["--adapter", str(adapter), "--exclude", "fc2"], "say it in that file"),
    ):
        assert main([*prune, *wrong, "--out", str(tmp_path / "no")]) == 2
        assert why in capsys.readouterr().err


def test_padding_that_no_mask_explains_is_refused():
    model = built("git")
    adapter, batch = mf.adapter_for(model), tiny.batch(model)
    batch["attention_mask"] = batch["attention_mask"][:, :-1]
    name = next(iter(adapter.layout(model).groups["text"])).name
    mask = adapter.token_masks(batch | {"attention_mask": batch["attention_mask"][1:]})["text"]
    with pytest.raises(mf.MultiflowError, match="no mask of its stream 'text' fits"):
        mask(name, torch.ones(2, 4, 8))


def test_losses():
    model = built("clip")
    batch = tiny.batch(model)
    ours = mf.adapter_for(model).loss(model, batch)
    torch.testing.assert_close(ours, model(**batch, return_loss=True).loss)
    siglip = tiny.build("siglip", "SiglipModel")
    batch = tiny.batch(siglip)
    torch.testing.assert_close(mf.adapter_for(siglip).loss(siglip, batch), siglip(**batch, return_loss=True).loss)
    llava = built("llava")
    batch = tiny.batch(llava)
    torch.testing.assert_close(mf.adapter_for(llava).loss(llava, batch), llava(**batch).loss)
    del batch["labels"]
    with pytest.raises(mf.MultiflowError, match="no 'labels'"):
        mf.adapter_for(llava).loss(llava, batch)


def test_groups_at_full_size():
    with torch.device("meta"):
        model = transformers.MllamaForConditionalGeneration(transformers.MllamaConfig())
    layout = mf.adapter_for(model).layout(model)
    cross = {int(layer.name.split(".")[3]) for layer in layout.groups["fusion"]}
    assert cross == set(model.config.text_config.cross_attention_layers)
    assert len(layout.groups["text"]) == 7 * 32
    assert {layer.name for layer in layout.groups["connector"]} == {"model.multi_modal_projector"}
    assert find_roles(model).towers == {"model.vision_model": "vision", "model.language_model": "text"}


def test_regexes_find_the_paths_and_no_others():
    paths = ["a.0.fc", "a.1.fc", "a.1.norm", "b", "c.0.x", "c.1.x"]
    for wanted in (["a.0.fc", "a.1.fc"], ["a.0.fc"], ["b", "c.1.x"], paths):
        regex = regex_of(wanted, paths)
        assert [path for path in paths if re.search(regex, path)] == wanted


def test_a_model_of_no_library_is_refused():
    with pytest.raises(mf.MultiflowError, match="no adapter for a Linear without config"):
        mf.adapter_for(nn.Linear(2, 2))


def test_a_model_with_a_tower_that_cannot_be_pruned_does_its_tasks_all_the_same():
    model = tiny.build("align", "AlignModel")
    adapter = mf.adapter_for(model, exclude=r"^vision_model(\.|$)")
    masks = mf.prune(model, "magnitude", 0.5, adapter=adapter).masks[0.5]
    assert masks.is_applied(mf.task_model(model, "retrieval", masks))
    assert type(mf.task_model(model, "retrieval")) is type(model)


def test_a_batch_of_another_processor_is_said_in_a_sentence():
    model = built("llava")
    batch = tiny.batch(model)
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][0, 3] = 5  # one place for a patch less
    for method in ("wanda", "snip"):
        with pytest.raises(
            mf.MultiflowError, match=r"batch 1 does not fit a LlavaForConditionalGeneration .*processor"
        ):
            mf.prune(model, method, 0.5, [batch])


@pytest.mark.parametrize(
    ("kind", "name", "groups"),
    [
        ("mllama", "MllamaModel", {"vision": 24, "text": 7, "fusion": 7, "connector": 1}),
        ("kosmos-2", "Kosmos2Model", {"vision": 12, "text": 12, "connector": 5}),
        ("janus", "JanusModel", {"vision": 12, "text": 14, "connector": 2}),
        ("groupvit", "GroupViTModel", {"vision": 102, "text": 12}),
        ("modernvbert", "ModernVBertModel", {"vision": 12, "text": 8, "connector": 1}),
    ],
)
def test_models_without_a_head_have_the_groups_of_those_with_one(kind, name, groups):
    model = tiny.build(kind, name)
    result = mf.prune(model, "wanda", 0.5, [tiny.batch(model)])
    assert {group: len(layers) for group, layers in result.masks[0.5].layout.groups.items()} == groups
    assert "unused" not in result.settings


@pytest.mark.parametrize("method", ["snip", "chita", "wanda"])
def test_texts_alone_are_refused_whatever_the_method_measures(method):
    model = built("llava")
    batch = {name: value[:, -4:] for name, value in tiny.batch(model).items() if name != "pixel_values"}
    with pytest.raises(mf.MultiflowError, match=r"group 'vision'.*no batch holds what"):
        mf.prune(model, method, 0.5, [batch] * 3)


@pytest.mark.parametrize("kind", ["clip", "blip-2", "vilt"])
def test_a_batch_that_lacks_what_the_model_needs_is_one_sentence(kind):
    model = built(kind)
    batch = {name: value for name, value in tiny.batch(model).items() if name != "pixel_values"}
    with pytest.raises(mf.MultiflowError, match=r"^batch 1 has no 'pixel_values', which a \w+ takes; it has input_ids"):
        mf.prune(model, "wanda", 0.5, [batch])


@pytest.mark.parametrize("given", [{"exclude": "(("}, {"groups": {"vision": "["}}, {"streams": {"*": "text"}}])
def test_what_is_no_regular_expression_is_said(given):
    with pytest.raises(mf.MultiflowError, match="is not a regular expression"):
        mf.adapter_for(built("llava"), **given)
