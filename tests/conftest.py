"""Shared fixtures: one thread (two busy cores make two threads slower, not faster), tiny bases on disk."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch

import tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama (tied, vocabulary padded beyond the tokenizer) with a chat template."""
    folder = tmp_path_factory.mktemp("llama")
    return tiny.save_base(folder, tiny.make_llama(vocab_size=320), tiny.make_tokenizer())


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 (absolute positions) without a chat template."""
    folder = tmp_path_factory.mktemp("gpt2")
    return tiny.save_base(folder, tiny.make_gpt2(), tiny.make_tokenizer(chat=False))
