"""Guide folders that must not load: each is refused in one clear line that names the file, before any harm."""

from __future__ import annotations

import json
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import guides
import tiny
from trimtab.errors import GuideError
from trimtab.models import load_base
from trimtab.rewards import (
    artifact,
    check_base,
    check_folder,
    load_adapter_config,
    load_adapter_tensors,
    load_guide_model,
    read_manifest,
)

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def made(llama_folder, tmp_path_factory):
    return guides.saved(llama_folder, tmp_path_factory.mktemp("guide") / "polite")


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "polite"))


def refused(folder, base, *expected: str) -> str:
    """Load, expect one line with every word of ``expected``, and that the base took no harm."""
    before = [name for name, _ in base.model.named_parameters()]
    with pytest.raises(GuideError) as caught:
        load_guide_model(folder, base)
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 600
    for word in expected:
        assert word in line
    assert [name for name, _ in base.model.named_parameters()] == before
    return line


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = value
    path.write_text(json.dumps(content))


def forget_hash(folder: Path) -> None:
    """As an attacker would: the manifest's hash does not protect against somebody who writes the manifest."""
    edit(folder / "guide.json", weights_sha256={})


# another base, another tokenizer


def test_another_base_names_both(made, llama_folder, tmp_path):
    other = tiny.save_base(tmp_path / "other", tiny.make_llama(vocab_size=320, seed=3), tiny.make_tokenizer())
    line = refused(made[1], load_base(str(other), dtype="float32"), str(llama_folder), str(other), "other weights")
    assert made[0].fingerprint in line


def test_another_revision_is_named(llama_folder, tmp_path):
    _, folder = guides.saved(llama_folder, tmp_path / "g", id="org/model", revision="v2")
    edit(folder / "guide.json", base={**json.loads((folder / "guide.json").read_text())["base"], "fingerprint": "00"})
    refused(folder, load_base(str(llama_folder)), "'org/model@v2'")


def test_the_same_base_from_another_place_in_another_dtype_is_accepted(made, llama_folder, tmp_path):
    copy = shutil.copytree(llama_folder, tmp_path / "elsewhere")
    base = load_base(str(copy), dtype="bfloat16")
    model = load_guide_model(made[1], base)
    assert model.dtype == torch.bfloat16


def test_another_tokenizer_is_refused(made, llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    refused(made[1], load_base(str(folder)), "another tokenizer", made[0].id.rpartition("/")[0][:4])


def test_a_full_fine_tune_fits_any_base(llama_folder, gpt2_folder, tmp_path):
    _, folder = guides.saved(llama_folder, tmp_path / "g", adapter="full")
    check_base(read_manifest(folder), load_base(str(gpt2_folder)), folder)


# damaged weights


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_cut_off_file(folder, made, keep):
    forget_hash(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:keep])
    refused(folder, made[0], WEIGHTS, "cut off or damaged", "copy")


def test_a_changed_file(folder, made):
    """One flipped bit in a weight: still a valid safetensors file, but not the one that was saved."""
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    refused(folder, made[0], WEIGHTS, "not the file that guide.json describes")


def test_a_missing_file(folder, made):
    (folder / WEIGHTS).unlink()
    refused(folder, made[0], WEIGHTS, "is missing")
    forget_hash(folder)
    refused(folder, made[0], WEIGHTS, "cannot be read")


def write_safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def entry(shape, offsets, dtype="F32"):
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({}, b"", 2**63),
        ({}, b"", 2**64 - 1),
        (b"not json", b"", None),
        (b"[" * 200_000, b"", None),
        ([1], b"", None),
        ({"t": 1}, b"", None),
        (entry([1], [0, 4], dtype="F1"), b"1234", None),
        (entry([10**9, 10**9], [0, 4]), b"1234", None),
        (entry([-1, -1], [0, 4]), b"1234", None),
        (entry([1.0], [0, 4]), b"1234", None),
        (entry([1], [4, 8]), b"12345678", None),
        (entry([1], [0, 4]), b"12345678", None),
        (entry([1], [8, 4]), b"12345678", None),
        (entry([True], [0, 4]), b"1234", None),
        ({**entry([1], [0, 4]), "u": entry([1], [0, 4])["t"]}, b"1234", None),
        ({**entry([1], [0, 4]), "\x1b[31m": 3}, b"1234", None),
    ],
)
def test_headers_that_do_not_describe_their_file(folder, made, header, data, length):
    forget_hash(folder)
    write_safetensors(folder / WEIGHTS, header, data, length)
    refused(folder, made[0], WEIGHTS, "cut off or damaged")


def test_a_header_of_100_mb_is_refused_without_reading_it(folder, made):
    forget_hash(folder)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", 100 * 2**20))
        file.truncate(101 * 2**20)  # sparse: takes no space
    started = time.perf_counter()
    refused(folder, made[0], WEIGHTS, "claims 104857600 bytes")
    assert time.perf_counter() - started < 0.5


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_the_file_gets_past_the_check_as_a_crash(folder, made, data):
    """Any bytes overwritten anywhere: either the tensors load and are finite, or it is a GuideError."""
    content = bytearray((made[1] / WEIGHTS).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + 8] = data.draw(st.binary(min_size=0, max_size=16))
    (folder / WEIGHTS).write_bytes(content)
    try:
        tensors = load_adapter_tensors(folder)
    except GuideError as error:
        assert "\n" not in str(error)
    else:
        assert all(bool(torch.isfinite(t).all()) for t in tensors.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(folder, made, value):
    forget_hash(folder)
    tensors = load_file(folder / WEIGHTS)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = value
    save_file(tensors, folder / WEIGHTS)
    refused(folder, made[0], WEIGHTS, "NaN or infinity", name, "diverged")


# tensors and config that do not belong together


@pytest.mark.parametrize("rank", [8, 10**9, 0, -1, True, 2.5, "4", None])
def test_a_rank_that_is_not_the_tensors(folder, made, rank):
    edit(folder / CONFIG, r=rank)
    started = time.perf_counter()
    refused(folder, made[0], CONFIG, "rank")
    assert time.perf_counter() - started < 1.0


def test_a_rank_pattern_of_ten_to_the_nine_for_a_module_without_tensors(folder, made):
    content = json.loads((folder / CONFIG).read_text())
    edit(folder / CONFIG, target_modules=[*content["target_modules"], "k_proj"], rank_pattern={"k_proj": 65536})
    refused(folder, made[0], "k_proj", "is missing")


def test_factors_of_another_width(folder, made):
    forget_hash(folder)
    tensors = load_file(folder / WEIGHTS)
    name = next(n for n in sorted(tensors) if "q_proj.lora_A" in n)
    tensors[name] = torch.zeros(4, 999)
    save_file(tensors, folder / WEIGHTS)
    refused(folder, made[0], WEIGHTS, "[4, 999]", "[32, 32]")


def test_a_module_the_base_does_not_have(folder, made):
    forget_hash(folder)
    tensors = load_file(folder / WEIGHTS)
    save_file({n.replace("layers.1.", "layers.7."): t for n, t in tensors.items()}, folder / WEIGHTS)
    refused(folder, made[0], "model.layers.7", "does not have")


def test_half_of_a_pair_of_factors(folder, made):
    forget_hash(folder)
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(next(n for n in sorted(tensors) if "lora_B" in n))
    save_file(tensors, folder / WEIGHTS)
    refused(folder, made[0], "lacks one of the two factors")


def test_no_tensors_at_all(folder, made):
    forget_hash(folder)
    save_file({}, folder / WEIGHTS)
    refused(folder, made[0], "no LoRA tensors")


def test_an_extra_tensor(folder, made):
    forget_hash(folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.model.norm.weight"] = torch.zeros(32)
    save_file(tensors, folder / WEIGHTS)
    refused(folder, made[0], "model.norm.weight", "would overwrite the base")
    tensors["base_model.model.model.layers.0.self_attn.lora_A.q.weight"] = tensors.pop(
        "base_model.model.model.norm.weight"
    )
    save_file(tensors, folder / WEIGHTS)
    refused(folder, made[0], "lora_A.q.weight", "not wanted")


def test_the_base_survives_a_tensor_that_names_one_of_its_own(folder, made):
    """The second line of defence, behind the names: what loading does to the base's own tensors."""
    expected = {name: value.clone() for name, value in made[0].model.state_dict().items()}
    tensors = load_adapter_tensors(folder)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"] = torch.zeros(32, 32)
    with pytest.raises(ValueError, match="overwrite the base's own"):
        artifact._inject(made[0].model, load_adapter_config(folder), tensors)
    artifact._restore(made[0].model)
    state = made[0].model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_a_second_guide_on_the_same_base(folder, made):
    base = load_base(made[0].id, dtype="float32")
    first = load_guide_model(folder, base)
    refused(folder, base, "already carries an adapter", "unload()")
    first.unload()
    load_guide_model(folder, base)


# code, pickles, links


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "x.pt", "x.PTH", "training_args.bin", "x.pkl", "x.ckpt", "x.pickle"]
)
def test_a_pickle_in_the_folder(folder, made, name):
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    refused(folder, made[0], name, "pickle", "safetensors")


def test_pickles_in_subfolders_are_not_looked_at(folder, made):
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"state")
    load_guide_model(folder, load_base(made[0].id, dtype="float32"))


@pytest.mark.parametrize("name", [CONFIG, "guide.json", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", ["auto_map", "_attn_implementation_internal"])
def test_a_config_that_names_code(folder, made, name, key):
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit(folder / name, deeper=[{key: {"AutoModel": "evil.Model"}}])
    refused(folder, made[0], name, key, "never runs code")


@pytest.mark.parametrize("target", ["outside", "missing", "/etc/hostname", ".."])
def test_a_link_out_of_the_folder(folder, made, target):
    (folder.parent / "outside").write_text("secret")
    (folder / "notes.txt").symlink_to(target if target.startswith((".", "/")) else folder.parent / target)
    refused(folder, made[0], "notes.txt", "link")


def test_a_link_within_the_folder_and_the_hubs_own_links_are_fine(made, tmp_path):
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in made[1].iterdir():
        shutil.copy(path, tmp_path / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    (snapshot / "latest.json").symlink_to("guide.json")
    check_folder(snapshot)
    assert read_manifest(snapshot) == read_manifest(made[1])


def test_options_that_import_code_or_change_the_base(folder, made):
    for option, value in {
        "megatron_config": {"x": 1},
        "layer_replication": [[0, 2]],
        "bias": "all",
        "init_lora_weights": "pissa",
        "target_parameters": ["x"],
    }.items():
        shutil.copy(made[1] / CONFIG, folder / CONFIG)
        edit(folder / CONFIG, **{option: value})
        refused(folder, made[0], CONFIG, option)


def test_a_regular_expression_bomb(folder, made):
    """PEFT would match this against each module's name: on a 30-letter name that is 2**30 steps."""
    edit(folder / CONFIG, rank_pattern={r"(\w+\.?)+!": 4})
    refused(folder, made[0], CONFIG, "rank_pattern")
    edit(folder / CONFIG, rank_pattern={}, target_modules=r"(\w+\.?)+!")
    started = time.perf_counter()
    load_guide_model(folder, load_base(made[0].id, dtype="float32"))
    assert time.perf_counter() - started < 2.0


# guide.json and adapter_config.json


def test_a_plain_peft_folder(folder, made):
    (folder / "guide.json").unlink()
    refused(folder, made[0], "PEFT adapter but not a guide", "guide.json", "trimtab train")


def test_no_folder_and_no_guide_in_it(made, tmp_path):
    refused(tmp_path / "nowhere", made[0], "There is no guide folder", "nowhere")
    refused(tmp_path, made[0], "has no guide.json")
    with pytest.raises(GuideError, match="There is no guide folder"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["guide.json", CONFIG])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"beta": NaN}', b"[" * 100_000, b'{"a": \x00}', b"1" * 10_000]
)
def test_damaged_json(folder, made, name, content):
    (folder / name).write_bytes(content)
    refused(folder, made[0], name, "is damaged")


def test_huge_json(folder, made):
    with (folder / "guide.json").open("wb") as file:
        file.truncate(2**30)  # sparse: takes no space
    refused(folder, made[0], "guide.json", "1073741824 bytes")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wieght": 1}, ["unknown key 'wieght'", "Did you mean 'weight'?"]),
        ({"base": {"id": "x", "revison": None}}, ["unknown key 'base.revison'", "Did you mean 'revision'?"]),
        ({"\x1b[2J": 1}, ["unknown key"]),
        ({"beta": "much"}, ["'beta'", "'much'"]),
        ({"beta": -1}, ["'beta'", "greater than 0"]),
        ({"objectives": []}, ["'objectives'"]),
        ({"objectives": [{"name": "a"}, {"name": "a"}]}, ["'objectives'", "name of its own"]),
        ({"schema_version": 2, "library_version": "9.9"}, ["newer trimtab ('9.9', schema 2", "upgrade"]),
        ({"schema_version": 0}, ["'schema_version'"]),
    ],
)
def test_manifests_that_cannot_be_used(folder, made, change, words):
    edit(folder / "guide.json", **change)
    refused(folder, made[0], "guide.json", *words)


@pytest.mark.parametrize("key", ["beta", "objectives", "base", "tokenizer_hash", "eos_token_id"])
def test_a_key_that_must_be_there(folder, made, key):
    content = json.loads((folder / "guide.json").read_text())
    del content[key]
    (folder / "guide.json").write_text(json.dumps(content))
    refused(folder, made[0], "guide.json", f"'{key}'", "required")


def test_a_hash_for_a_file_elsewhere(folder, made):
    edit(folder / "guide.json", weights_sha256={"../../secret": "00"})
    refused(folder, made[0], "secret", "is missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, ["'IA3'", "LoRA"]),
        ({"peft_type": None}, ["None", "LoRA"]),
        ({"lora_alhpa": 3}, ["'lora_alhpa'", "Did you mean 'lora_alpha'?"]),
        ({"target_modules": 3}, []),
        ({"rank_pattern": [1]}, []),
        ({"lora_alpha": "x"}, ["lora_alpha"]),
        ({"lora_alpha": 1e999}, []),
    ],
)
def test_adapter_configs_that_cannot_be_used(folder, made, change, words):
    edit(folder / CONFIG, **change)
    refused(folder, made[0], CONFIG, *words)


def test_an_option_of_a_newer_peft_that_is_off_does_not_matter(folder, made):
    edit(folder / CONFIG, some_future_option=None, runtime_config={"ephemeral_gpu_offload": False})
    load_guide_model(folder, load_base(made[0].id, dtype="float32"))


def test_a_damaged_full_fine_tune(llama_folder, tmp_path):
    base, folder = guides.saved(llama_folder, tmp_path / "g", adapter="full")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    refused(folder, base, "model.safetensors", "cut off")
    weights.unlink()
    forget_hash(folder)
    refused(folder, base, "no weights")
    tensors = {"lm_head.weight": torch.full((3, 3), float("nan"))}
    save_file(tensors, weights)
    refused(folder, base)
