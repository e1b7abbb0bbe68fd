"""The packaged SmolLM2 through the torch forward: what transformers says, in chunks and with neighbours."""

from __future__ import annotations

import pytest
import torch

from engine import paged
from trimtab.engine.backbone import Backbone
from trimtab.models import load_base

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real"), pytest.mark.timeout(600)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-3), ("bfloat16", 1.5)])
def test_smollm2(dtype, tolerance):
    exact = load_base("smollm2", dtype="float32").model
    backbone = Backbone(load_base("smollm2", dtype=dtype).model, kernels="torch")
    backbone.allocate(paged.PAGES)
    texts = paged.texts(paged.LENGTHS, vocabulary=49_000)
    paged.give_pages(texts, paged.PAGES)
    paged.read(backbone.run, texts, paged.STEPS)
    paged.check(exact, texts, tolerance)
    # A token's own neighbours do not matter, beyond rounding.
    alone = [paged.Text(text.ids, pages=text.pages) for text in texts[:1]]
    paged.read(backbone.run, alone, [[len(alone[0].ids)]])
    torch.testing.assert_close(alone[0].logits[0], torch.cat(texts[0].logits), atol=tolerance, rtol=tolerance)
