"""A stand-in for the WebUI's `modules`: its names and order of calls, none of its work."""
