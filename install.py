"""Run by the WebUI before it starts: `requests`, which it has already, and a fast CRC-32."""

import launch

# The second only makes uploads cheaper (see middleware_api/crc32.py); it has no dependencies.
MISSING = [
    wanted
    for module, wanted in (("requests", '"requests>=2.25"'), ("zlib_ng", '"zlib-ng==1.1.0"'))
    if not launch.is_installed(module)
]
if MISSING:
    launch.run_pip(f"install {' '.join(MISSING)}", "what the cloud extension needs")
