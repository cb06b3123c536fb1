"""The whole way with the real programs: a checkpoint, its model, a LoRA, a picture made with it."""

from __future__ import annotations

import io
from typing import Any

import httpx
from PIL import Image

from tests.server import Server, until

KIND = "Stable-diffusion"


def made(server: Server, model_id: str) -> dict[str, Any]:
    """A model, once its making has ended."""
    return until(
        lambda: next(
            model
            for model in server.client.get("/models").json()["models"]
            if model["id"] == model_id
        ),
        lambda model: model["status"] != "Creating",
    )


def look(server: Server, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = server.client.get("/train", params={"train_job_id": job_id}).json()["job"]
    return job


def dataset(server: Server, name: str) -> None:
    """Two pictures, Enabled."""
    content = [{"filename": f"{n}.png", "name": f"{n}.png"} for n in range(2)]
    answer = server.client.post("/dataset", json={"dataset_name": name, "content": content})
    for number, file in enumerate(answer.json()["s3PresignUrl"]):
        target = io.BytesIO()
        Image.new("RGB", (64, 64), (200 * number, 90, 40)).save(target, "PNG")
        httpx.put(file["url"], content=target.getvalue()).raise_for_status()
    body = {"dataset_name": name, "status": "Enabled"}
    server.client.put("/dataset", json=body).raise_for_status()


def test_a_lora_is_trained_and_used(studio: Server) -> None:
    client = studio.client
    (base,) = (
        one["id"]
        for one in client.get("/checkpoints").json()["checkpoints"]
        if one["name"] == ["tiny.safetensors"]
    )
    model = {"model_type": KIND, "name": "tiny", "checkpoint_id": base}
    model_id = client.post("/model", json=model).json()["job"]["id"]
    client.put("/model", json={"model_id": model_id, "status": "Creating"}).raise_for_status()
    ended = made(studio, model_id)
    assert ended["status"] == "Complete", ended
    dataset(studio, "real-dots")
    concept = {
        "instance_data_dir": "s3:///dataset/real-dots",
        "instance_prompt": "a sks dot",
        "save_infer_steps": 1,
    }
    config = {
        "use_lora": True, "custom_model_name": "real-dot", "num_train_epochs": 2, "resolution": 64,
        "save_preview_every": 1, "concepts_list": [concept],
    }  # fmt: skip
    job = client.post(
        "/train",
        json={"train_type": KIND, "model_id": model_id, "params": {"config_params": config}},
    ).json()["job"]
    client.put("/train", json={"train_job_id": job["id"], "status": "Training"}).raise_for_status()
    done = until(lambda: look(studio, job["id"]), lambda seen: seen["status"] != "Training")
    assert (done["status"], done["error"]) == ("Complete", "")
    assert (done["checkpoint_type"], done["checkpoint_names"]) == ("Lora", ["real-dot.safetensors"])
    assert done["step"] == done["steps"] == len(done["losses"]) > 0
    picture = Image.open(io.BytesIO(httpx.get(done["samples"][0]["url"]).content))
    assert picture.size == (64, 64)
    made_with = studio.submit(
        task_type="txt2img",
        models={KIND: ["tiny.safetensors"], "Lora": ["real-dot.safetensors"]},
        prompt="a sks dot <lora:real-dot:1>",
        steps=1,
        width=64,
        height=64,
        seed=1,
    )
    job = studio.finished(made_with)
    assert job["status"] == "succeed", job
    answer = client.get("/inference/get-inference-job-param-output", params={"jobID": made_with})
    output = httpx.get(answer.json()[0]).json()
    assert "real-dot: " in str(output["info"]), "its hash is told: it was found and used"
