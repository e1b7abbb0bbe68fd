"""Loading bases: what is accepted, what is refused, and what two vocabularies share."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import tiny
from trimtab.errors import DataError, ModelError, VocabularyMismatchError
from trimtab.models import encode_prompt, encode_response, end_of_response_id, load_base, reconcile
from trimtab.models.chat import render_prompt, stop_ids
from trimtab.models.loading import resolve_dtype, weights_fingerprint


def test_base_loads_with_padded_vocabulary(llama_folder):
    base = load_base(str(llama_folder), dtype="float32")
    assert base.vocabulary_size == 320 > len(base.tokenizer)
    assert base.context_length == 512
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())


def test_fingerprint_is_of_the_weights_not_of_dtype_or_place(llama_folder, tmp_path):
    shutil.copytree(llama_folder, tmp_path / "copy")
    a = load_base(str(llama_folder), dtype="float32")
    b = load_base(str(tmp_path / "copy"), dtype="bfloat16")
    assert a.fingerprint == b.fingerprint
    assert weights_fingerprint(tiny.make_llama(vocab_size=320, seed=1)) != a.fingerprint


def test_fingerprint_looks_below_adapters():
    from peft import LoraConfig, get_peft_model

    model = tiny.make_llama(tied=False)
    plain = weights_fingerprint(model)
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    assert weights_fingerprint(adapted) == weights_fingerprint(model) == plain


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_folder_with_its_own_code_is_refused(llama_folder, tmp_path, file):
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    content = json.loads((folder / file).read_text())
    content["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="auto_map"):
        load_base(str(folder))


def test_a_pickle_is_refused(llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickled"):
        load_base(str(folder))


def test_a_truncated_file_is_one_clear_line(llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_base(str(folder))
    assert "\n" not in str(caught.value)


def test_missing_model_names_what_was_tried():
    with pytest.raises(ModelError, match="There is no model 'nobody/nothing'"):
        load_base("nobody/nothing")


def test_unknown_dtype():
    with pytest.raises(ModelError, match="Unknown dtype 'int3'"):
        resolve_dtype("int3")


def test_prompt_forms(tokenizer):
    chat = [{"role": "user", "content": "hi"}]
    assert render_prompt(tokenizer, chat) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(tokenizer, "hi") == "hi"
    plain = tiny.make_tokenizer(chat=False)
    assert render_prompt(plain, chat) == "User: hi\n\nAssistant:"
    assert encode_prompt(tokenizer, chat)[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    with pytest.raises(DataError, match="no messages"):
        encode_prompt(tokenizer, [])


def test_empty_text_prompt_is_bos_where_there_is_one(tokenizer):
    assert encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]


def test_response_has_no_special_tokens(tokenizer):
    ids = encode_response(tokenizer, [{"role": "assistant", "content": "ok ü"}])
    assert tokenizer.decode(ids) == "ok ü"
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_end_of_response_is_read_off_the_template():
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_response_id(tokenizer, [{"role": "user", "content": "x"}]) == end
    assert end_of_response_id(tokenizer, "x") == tokenizer.eos_token_id
    assert stop_ids(tiny.make_llama(), tokenizer) == {end, tokenizer.eos_token_id}


def _reconcile(a, b, na, nb):
    return reconcile(a, b, base_size=na, guide_size=nb, base_name="big", guide_name="small")


def test_same_tokenizer_is_identity(tokenizer):
    assert _reconcile(tokenizer, tiny.make_tokenizer(), 300, 300).is_identity


def test_padding_rows_are_cut(tokenizer):
    n = len(tokenizer)
    mapping = _reconcile(tokenizer, tokenizer, n + 20, n)
    scores = mapping.gather(torch.zeros(2, n))
    assert scores.shape == (2, n + 20)
    assert torch.isfinite(scores[:, :n]).all()
    assert torch.isinf(scores[:, n:]).all()


def test_added_tokens_are_cut_and_a_new_eos_is_mapped(tokenizer):
    other = tiny.make_tokenizer()
    other.add_special_tokens({"eos_token": "<|stop|>"})
    n = len(tokenizer)
    mapping = _reconcile(other, tokenizer, n + 1, n)
    scores = torch.arange(n, dtype=torch.float32)
    assert mapping.gather(scores)[other.eos_token_id] == scores[tokenizer.eos_token_id]


def test_a_true_mismatch_names_both(tokenizer):
    other = tiny.make_tokenizer(vocab_size=280)
    with pytest.raises(VocabularyMismatchError, match=r"'big'.*'small'"):
        _reconcile(tokenizer, other, 300, 300)
