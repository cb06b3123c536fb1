"""Run by the WebUI before it starts: the client needs `requests`, which the WebUI has already."""

import launch

if not launch.is_installed("requests"):
    launch.run_pip('install "requests>=2.25"', "requests for the cloud extension")
