#!/bin/sh
# The WebUI without a window, as the worker starts it. All that it writes goes below SDAWS_WEBUI_DATA;
# it is found in SDAWS_WEBUI_DIR, and may be reached from this container alone.
program=${SDAWS_WEBUI_DIR:-/opt/webui}
data=${SDAWS_WEBUI_DATA:-/tmp/webui}
mkdir -p "$data" && ln -sfn "$program/extensions" "$data/extensions" || exit 1
# `exec`, so that signals reach it. Its environment is complete: nothing is looked for or fetched.
cd "$program" && exec venv/bin/python -W ignore launch.py --api --nowebui \
    --server-name 127.0.0.1 --port "${SDAWS_WEBUI_PORT:-7860}" --data-dir "$data" \
    --skip-prepare-environment --skip-version-check --no-download-sd-model \
    --do-not-download-clip --disable-console-progressbars "$@"
