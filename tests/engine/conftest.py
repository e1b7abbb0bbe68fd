from __future__ import annotations

import pytest

from engine.worlds import make_world


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def world(request, tmp_path_factory):
    return make_world(request.param, tmp_path_factory.mktemp("world"))
