"""From text to tokens and back over HTTP, and what single tokens are."""

from __future__ import annotations

import pytest

from serving.talk import MESSAGES
from trimtab.models import encode_prompt
from trimtab.models.token_text import TokenTexts

TEXT = "the quick ☃ bröwn <|im_end|>"


def test_tokens_and_back(client, engine):
    said = client.post("/tokenize", json={"prompt": TEXT, "return_token_strs": True}).json()
    assert said["tokens"] == engine.base.tokenizer(TEXT)["input_ids"]
    assert said["count"] == len(said["tokens"]) == len(said["token_strs"])
    assert said["max_model_len"] == 512
    assert client.post("/detokenize", json={"tokens": said["tokens"]}).json() == {"prompt": TEXT}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_tokens_of_a_conversation_are_those_that_chat_reads(client, engine):
    said = client.post("/tokenize", json={"messages": MESSAGES}).json()
    assert said["tokens"] == encode_prompt(engine.base.tokenizer, MESSAGES)
    assert said["token_strs"] is None


def test_what_the_tokenizer_is(client, engine):
    info = client.get("/tokenizer_info").json()
    tokenizer = engine.base.tokenizer
    for name in ("bos_token", "eos_token", "pad_token", "chat_template"):
        assert info[name] == getattr(tokenizer, name)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": [1, 320]}, "tokens.1"),
        ("/detokenize", {"tokens": [True]}, "tokens.0"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_what_cannot_be_done_names_its_field(client, path, body, param):
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_bytes_of_byte_level_tokens(tokenizer):
    texts = TokenTexts(tokenizer)
    for text in (TEXT, "\n\t é 中 🦊", "".join(map(chr, range(1, 256)))):
        ids = tokenizer(text)["input_ids"]
        assert b"".join(texts.raw(token) for token in ids).decode() == text
        assert [byte for token in ids for byte in texts.bytes(token) or []] == list(text.encode())
    assert texts.text(310) == "token_id:310"
    assert texts.bytes(310) is None


def test_bytes_of_tokens_with_byte_fallback():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "▁hi", "a", "<0xE2>", "<0x98>", "<0x83>"]
    raw = Tokenizer(models.BPE({piece: k for k, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=raw))
    assert [texts.text(k) for k in (1, 2, 3)] == [" hi", "a", "bytes:\\xe2"]
    assert [texts.bytes(k) for k in (1, 3)] == [list(b" hi"), [0xE2]]
    assert texts.offsets().next([1, 3, 4, 5, 2]) == [0, 3, 3, 3, 4]


def test_bytes_of_tokens_that_do_not_tell():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordPiece({"[UNK]": 0, "hi": 1, "##ya": 2}, unk_token="[UNK]"))
    raw.decoder = decoders.WordPiece()
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=raw))
    assert texts.text(1) == "hi"
    assert texts.bytes(1) == list(b"hi")
