#!/bin/sh
# What SageMaker starts for a training job: `docker run IMAGE train`; `exec` as in serve.sh.
cd /opt/program && exec python -m middleware_api.container.train
