"""How a server runs. No web framework in here, so that the command line starts fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


def _option(default: Any, description: str, **limits: Any) -> Any:
    if isinstance(default, type):
        return Field(default_factory=default, description=description, json_schema_extra={"panel": "Server"}, **limits)
    return Field(default, description=description, json_schema_extra={"panel": "Server"}, **limits)


class ServerConfig(BaseModel):
    """How a server runs; the names are those of vLLM's ``serve`` where it has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = _option("127.0.0.1", "Address to listen on; one that others can reach needs an API key.")
    port: int = _option(8000, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    api_key: list[str] = _option(
        list,
        "Key that clients must send (repeatable). Other users of the machine see it in the list of processes: better "
        "--api-key-file, or TRIMTAB_API_KEY with keys between commas.",
    )
    api_key_file: Path | None = _option(None, "File with one key a line; lines that begin with # are left out.")
    insecure: bool = _option(False, "Listen on an address that others can reach without an API key.")
    served_model_name: str | None = _option(None, "Name of the model in the API. Default: the base's.")
    presets: Path | None = _option(None, "YAML file of named guidance; each is served as a model NAME:PRESET.")
    max_model_len: int | None = _option(None, "Most tokens of prompt and answer. Default: the base's context.", ge=2)
    max_queued_requests: int = _option(128, "Most answers that wait; beyond them the server answers 429.", ge=0)
    max_n: int = _option(8, "Most answers to one request.", ge=1, le=128)
    max_logprobs: int = _option(20, "Most alternatives listed for a token.", ge=0, le=100)
    max_guidance: float = _option(
        100.0, "Most that the absolute weights of one request may sum to, strength included.", gt=0, allow_inf_nan=False
    )
    max_request_bytes: int = _option(4 * 2**20, "Longest body of a request, in bytes.", ge=1024)
    max_header_bytes: int = _option(32 * 2**10, "Longest head of a request, in bytes.", ge=1024, le=2**20)
    max_json_depth: int = _option(32, "Deepest nesting of a request's JSON.", ge=4, le=200)
    max_connections: int = _option(1024, "Most connections at a time.", ge=1)
    client_timeout: float = _option(
        30.0,
        "Seconds that a client may take to send a request's head, then its body, and to take what is written.",
        gt=0,
        allow_inf_nan=False,
    )
    keep_alive_timeout: int = _option(5, "Seconds that a connection stays open without a request.", ge=1)
    request_timeout: float = _option(300.0, "Seconds after which an answer is given up.", gt=0, allow_inf_nan=False)
    shutdown_timeout: float = _option(
        30.0, "Seconds that running answers get to finish after SIGTERM.", ge=0, allow_inf_nan=False
    )
    allowed_origins: list[str] = _option(list, "Web origin whose pages may call the API (repeatable). None: only ours.")
    root_path: str = _option("", "Path under which a proxy serves this.")
    trusted_proxy: list[str] = _option(
        list, "Address of a proxy whose X-Forwarded-For and -Proto are believed (repeatable). None: nobody's."
    )
    ssl_keyfile: Path | None = _option(None, "Private key, for TLS.")
    ssl_certfile: Path | None = _option(None, "Certificate, for TLS.")
    playground: bool = _option(True, "Serve the page at /.")
    log_format: Literal["text", "json"] = _option("text", "Log lines as text or as JSON.")
    enable_log_requests: bool = _option(False, "Log prompts and answers too. Off: neither is ever logged.")
