"""`python -m tests.fuzz`: thousands of requests that fit the OpenAPI document, and that do not,
against a live embedded server. No 5xx, no undocumented status, no answer outside its schema.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.server import REPOSITORY, Server
from tests.weights import safetensors

LEAST_CASES = 2000
CONFIG = Path(__file__).with_name("schemathesis.toml")


def known(server: Server) -> dict[str, list[str]]:
    """Things for the requests to name."""
    checkpoint_id = server.upload(safetensors(), "fuzz.safetensors")
    endpoint = server.deploy("fuzz")
    job_id = server.submit(
        task_type="txt2img", models={"Stable-diffusion": ["fuzz.safetensors"]}, prompt="x"
    )
    source = {"model_type": "Stable-diffusion", "name": "fuzz", "checkpoint_id": checkpoint_id}
    model_id = server.client.post("/model", json=source).json()["job"]["id"]
    training = {"train_type": "Stable-diffusion", "model_id": model_id, "params": {}}
    train_job_id = server.client.post("/train", json=training).json()["job"]["id"]
    content = [{"filename": "one.png", "name": "one.png", "type": "png"}]
    server.client.post("/dataset", json={"dataset_name": "fuzz", "content": content})
    return {
        "model_id": [model_id],
        "train_job_id": [train_job_id],
        "dataset_name": ["fuzz"],
        "id": [checkpoint_id],
        "checkpoint_id": [checkpoint_id],
        "jobID": [job_id, endpoint["EndpointDeploymentJobId"]],
        "job_id": [job_id],
    }


def main() -> int:
    """The fuzzer's exit code; 1 also when it sent fewer requests than were wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="random requests a route")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "var")
        try:
            environment = {
                **os.environ,
                "FUZZ_KNOWN": json.dumps(known(server)),
                "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
            }
            run = subprocess.run(
                [
                    *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
                    *("run", f"{server.url}/openapi.json"),
                    *("--header", f"x-api-key: {server.client.headers['x-api-key']}"),
                    *("--phases", "examples,coverage,fuzzing", "--checks", "all"),
                    *("--max-examples", str(options.examples), "--seed", str(options.seed)),
                ],
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        finally:
            server.stop()
    print(run.stdout)
    sent = re.search(r"(\d+) generated", run.stdout)
    if sent is None or int(sent[1]) < LEAST_CASES:
        print(f"fewer than {LEAST_CASES} requests: raise --examples")
        return 1
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
