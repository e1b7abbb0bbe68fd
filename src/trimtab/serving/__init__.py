"""The server: an OpenAI-compatible API over one engine, and a page to try it."""
