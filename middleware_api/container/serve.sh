#!/bin/sh
# What SageMaker starts: `docker run IMAGE serve`. `exec`, so that its SIGTERM reaches Python.
cd "${SDAWS_PROGRAM:-/opt/program}" && exec python -m middleware_api.container.crew \
    --host 0.0.0.0 --port 8080 "$@"
