"""``trimtab serve``: an OpenAI-compatible server over a steered model."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import Field

from trimtab.cli.console import note
from trimtab.cli.options import command_from, config_file, resolve_config
from trimtab.cli.steering import ModelOptions, describe, guidance_of, load_engine
from trimtab.errors import ConfigError
from trimtab.serving.config import ServerConfig

if TYPE_CHECKING:
    from trimtab.engine import Engine, Guidance
    from trimtab.serving.auth import Keys
    from trimtab.serving.presets import Presets

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_SHOWN = 8  # presets that are listed one by one


class ServeOptions(ServerConfig, ModelOptions):
    """Options of ``trimtab serve``; the file for --config has the same keys."""

    weights: str | None = Field(
        None, description="NAME=W,…: what the model's bare name is guided by. Default: each guide's recommended weight."
    )
    strength: float = Field(1.0, description="Multiplies every weight of the model's bare name.")


def run(given: dict[str, Any], config: Path | None) -> None:
    """Serve a base model and its guides as an OpenAI-compatible API, with a page to try it.

    Clients pick the guidance by the model's name (NAME, NAME:plain, NAME:PRESET) or send it with each request. SIGTERM
    or Ctrl-C lets running answers finish first; a second one ends at once.
    """
    options = resolve_config(ServeOptions, given, config)
    _check_installed()
    from trimtab.serving import logs, run

    # Everything that can be wrong is looked at before a model is loaded.
    server = _server_config(options)
    keys = _keys(server)
    run.check_tls(server)
    guidance = guidance_of(options)
    sockets = run.bind(server)
    try:
        engine = load_engine(options)
        presets = _presets(server, engine, guidance)
        from trimtab.serving.app import create_app
        from trimtab.serving.gateway import Gateway

        gateway = Gateway(engine, server)
        app = create_app(gateway, keys=keys, presets=presets)
        logs.set_up(server.log_format)
        code = run.serve(
            app, gateway, sockets, announce=lambda url: _announce(url, engine, server, keys, presets, guidance)
        )
    finally:
        for sock in sockets:
            sock.close()
    if code:
        raise typer.Exit(code)


command = command_from(ServeOptions, run, extra=[config_file()])


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"'trimtab serve' needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            'installed: pip install "trimtab[serve]"'
        )


def _server_config(options: ServeOptions) -> ServerConfig:
    from trimtab.serving.origins import check_origins

    values = {name: getattr(options, name) for name in ServerConfig.model_fields}
    if values["served_model_name"] is None:
        folder = Path(options.base)
        values["served_model_name"] = folder.resolve().name if folder.is_dir() else options.base
    values["allowed_origins"] = check_origins(options.allowed_origins)
    return ServerConfig(**values)


def _keys(server: ServerConfig) -> Keys:
    from trimtab.serving.auth import ENVIRONMENT, read_keys
    from trimtab.serving.origins import reaches_others

    keys, warnings = read_keys(server, os.environ)
    if not keys and reaches_others(server.host):
        if not server.insecure:
            raise ConfigError(
                f"Others can reach {server.host}, and no API key is set: give --api-key-file or {ENVIRONMENT}, listen "
                "on 127.0.0.1, or say --insecure if everyone who can reach it may use it."
            )
        warnings.append(f"Everyone who can reach {server.host} can use this server: it asks for no key.")
    for warning in warnings:
        note(f"Warning: {warning}")
    return keys


def _presets(server: ServerConfig, engine: Engine, guidance: Guidance) -> Presets:
    from trimtab.engine.guidance import resolve
    from trimtab.serving.presets import DEFAULT, Presets

    guides = list(engine.guides.values())
    presets = Presets({})
    if server.presets is not None:
        presets = Presets.load(server.presets, guides, most=server.max_guidance)
    if guidance.weights or guidance.strength != 1:
        if presets.default is not None:
            raise ConfigError(
                f"--weights or --strength, and the preset 'default' of {server.presets}, both say what the model's "
                "bare name is guided by: leave one of them out."
            )
        resolve(guidance, guides)
        presets = Presets({DEFAULT: guidance, **presets.named}, descriptions=presets.descriptions)
    return presets


def _announce(url: str, engine: Engine, server: ServerConfig, keys: Keys, presets: Presets, guidance: Guidance) -> None:
    name = server.served_model_name
    names = [str(name)]
    if engine.guides:
        names += [f"{name}:plain", *(f"{name}:{preset}" for preset in presets.named)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    note(f"Serving {url}/v1")
    note(f"  Models    {', '.join(names[:_SHOWN])}{more}")
    if engine.guides:
        note(f"  Guidance  {describe(engine, presets.default or guidance)}")
    note(f"  Memory    {engine.memory}")
    asked = f"needed ({len(keys)} {'is' if len(keys) == 1 else 'are'} accepted)" if keys else "none is needed"
    note(f"  API key   {asked}")
    if server.playground:
        note(f"  Page      {url}/")
