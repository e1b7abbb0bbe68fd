from __future__ import annotations

import pytest

from engine.worlds import make_world
from trimtab.engine.backbone import Backbone


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def world(request, tmp_path_factory):
    return make_world(request.param, tmp_path_factory.mktemp("world"))


@pytest.fixture
def reads(monkeypatch):
    """What every forward read: for each of its spans (slot, tokens)."""
    seen = []
    original = Backbone.run_async

    def run(self, spans):
        seen.append([(span.slot, len(span.tokens)) for span in spans])
        return original(self, spans)

    monkeypatch.setattr(Backbone, "run_async", run)
    return seen
