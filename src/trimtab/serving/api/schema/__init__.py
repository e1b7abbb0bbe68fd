"""What clients send and get, as pydantic models; bounds that depend on the server are checked where it is known."""
