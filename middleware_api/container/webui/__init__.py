"""The engine `webui`: AUTOMATIC1111's WebUI does the work, by its own HTTP API (`--api`)."""
