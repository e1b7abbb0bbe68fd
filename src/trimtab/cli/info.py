"""``trimtab info``: what a guide's folder says about itself, or what a bug report needs to know of this machine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trimtab._version import __version__
from trimtab.cli.console import escape, out, print_json
from trimtab.errors import GuideError

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.rewards import GuideManifest

Check = dict[str, Any]
"""``{"check": name, "ok": bool, "detail": text}``."""


def info(
    folder: Annotated[
        Path | None, typer.Argument(help="A guide's folder; without it: versions and device.", show_default=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Also check that the guide belongs to this base: 'smollm2', a folder or a hub id."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print what a guide is and whether its folder is sound; without a folder, versions and device for a bug report.

    Exits 1 if a check fails.
    """
    if folder is None:
        _print_environment(environment(), as_json)
        return
    from trimtab.rewards import read_manifest

    manifest = read_manifest(folder)
    weights: dict[str, Any] = {}
    checks = verify(folder, manifest, base, weights)
    if as_json:
        print_json(
            {"folder": str(folder), "manifest": manifest.model_dump(mode="json"), "weights": weights, "checks": checks}
        )
    else:
        _print_guide(folder, manifest, weights, checks)
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def verify(folder: Path, manifest: GuideManifest, base: str | None, weights: dict[str, Any]) -> list[Check]:
    """Run every check that loading runs; ``weights`` is filled with parameters, rank and targets of the tensors."""
    from trimtab.rewards import check_base, check_folder, check_weights

    steps: list[tuple[str, Callable[[], str]]] = [
        ("no pickles, code or links out; safetensors intact", lambda: _said(check_folder(folder))),
        ("weights are the saved ones", lambda: _hashed(check_weights(manifest, folder), manifest)),
        ("tensors fit the config and are finite", lambda: _measure(folder, manifest, weights)),
    ]
    if base is not None:
        name = base

        def belongs() -> str:
            from trimtab.models import load_base

            loaded = load_base(name)
            check_base(manifest, loaded, folder)
            return f"fingerprint {loaded.fingerprint}"

        steps.append((f"belongs to base {base!r}", belongs))
    checks: list[Check] = []
    for name_of_check, step in steps:
        try:
            checks.append({"check": name_of_check, "ok": True, "detail": step()})
        except GuideError as error:
            checks.append({"check": name_of_check, "ok": False, "detail": str(error)})
            break  # what follows would read what has just been refused
    return checks


def environment() -> dict[str, Any]:
    """Return versions, device and caches of this installation."""
    import torch

    from trimtab.models import smollm2
    from trimtab.models.loading import resolve_dtype

    names = ("torch", "transformers", "peft", "safetensors", "accelerate", "datasets", "tokenizers", "trl", "gguf")
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "trimtab": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in names},
        "device": cuda or ["cpu"],
        "threads": torch.get_num_threads(),
        "cpu_bfloat16": resolve_dtype("auto", "cpu") is torch.bfloat16,
        "default_dtype": str(resolve_dtype("auto")).removeprefix("torch."),
        "cache_folder": str(smollm2.cache_folder()),
        "smollm2_ready": smollm2.is_ready(),
    }


def _said(_: None) -> str:
    return ""


def _hashed(_: None, manifest: GuideManifest) -> str:
    return "SHA-256 of " + ", ".join(manifest.weights_sha256) if manifest.weights_sha256 else "no hashes recorded"


def _measure(folder: Path, manifest: GuideManifest, weights: dict[str, Any]) -> str:
    from trimtab.rewards import load_adapter_config, load_adapter_tensors
    from trimtab.rewards.folder import read_header

    if manifest.adapter == "full":
        headers = [read_header(path) for path in sorted(folder.glob("*.safetensors"))]
        if not headers:
            raise GuideError(f"{folder} has no *.safetensors: copy the guide's folder again, or train it again.")
        shapes = [shape for header in headers for _, shape in header.values()]
        weights["parameters"] = sum(_product(shape) for shape in shapes)
        return f"{len(shapes)} tensors, {weights['parameters']:,} parameters"
    config = load_adapter_config(folder)
    tensors = load_adapter_tensors(folder)
    weights |= {
        "parameters": sum(t.numel() for t in tensors.values()),
        "dtype": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        "rank": config.r,
        "alpha": config.lora_alpha,
        "target_modules": sorted({str(name).rpartition(".")[2] for name in config.target_modules}),
    }
    return f"{len(tensors)} tensors, {weights['parameters']:,} parameters"


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))


def _print_environment(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    table = _table("")
    for key, value in {**{k: v for k, v in found.items() if k != "packages"}, **found["packages"]}.items():
        table.add_row(key.replace("_", " "), _shown(_plainly(value)))
    out.print(table)


def _print_guide(folder: Path, manifest: GuideManifest, weights: dict[str, Any], checks: list[Check]) -> None:
    table = _table(f"[bold]Guide {_shown(folder)}[/bold]")
    for objective in manifest.objectives:
        about = f" — {objective.description}" if objective.description else ""
        table.add_row("objective", _shown(f"{objective.name} ({objective.direction}){about}"))
    base, data = manifest.base, manifest.data
    revision = f"@{base.revision}" if base.revision else ""
    template = "none (plain text)" if manifest.chat_template is None else f"{len(manifest.chat_template)} characters"
    rows: dict[str, Any] = {
        "kind": f"{manifest.kind} ({manifest.adapter})"
        + (", told its pull w" if manifest.conditions_on_strength else ""),
        "base": f"{base.id}{revision} ({base.architecture}, weights {base.fingerprint})",
        "tokenizer": f"{manifest.tokenizer_hash}, answers end with token {manifest.eos_token_id}",
        "chat template": template,
        "β_r / weight": f"{manifest.beta:g} / {manifest.weight:g}",
        "trained on": f"{data.comparisons} comparisons from {', '.join(data.files) or '?'}" if data else "not recorded",
        **_flat(manifest.training, "training"),
        **_flat(manifest.metrics, "metrics"),
        **{f"weights.{key}": _plainly(value) for key, value in weights.items()},
        "written by": f"trimtab {manifest.library_version}, schema {manifest.schema_version}",
    }
    for key, value in rows.items():
        table.add_row(_shown(key), _shown(value))
    out.print(table)
    verdicts = _table("[bold]Checks[/bold]")
    for check in checks:
        mark = "[green]ok[/green]" if check["ok"] else "[red]FAILED[/red]"
        verdicts.add_row(mark, _shown(check["check"]), _shown(check["detail"]))
    out.print(verdicts)


def _plainly(value: Any) -> Any:
    if value is None:
        return "not installed"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(cast("list[str]", value)) if isinstance(value, list) else value


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            rows[name] = f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        elif isinstance(value, dict):
            rows |= _flat(cast("dict[str, Any]", value), name)
        else:
            rows[name] = value
    return rows


def _shown(value: Any) -> str:
    """Return text from a folder that is not trusted as it can be printed: no markup, no terminal control codes."""
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))
