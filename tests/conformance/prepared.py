"""What the examples speak of, brought about in a deployment, and the ids that it gets there."""

from __future__ import annotations

from typing import Any

import httpx

from middleware_api.contract import PART_MIN_BYTES
from tests.conformance.examples import Example
from tests.server import until
from tests.weights import HEADER_BYTES, safetensors

CHECKPOINT = "v1-5-pruned-emaonly.safetensors"
ENDPOINT = "infer-endpoint-cb821ea"
_ETAGS = (
    "cc95c41fa28463c8e9b88d67805f24e0",
    "e4378bd84b0497559c55be8373cb79d0",
    "815b68042f6ac5e60b9cff5c697ffea6",
    "2c6cfbd9bfbafd5664cdc8b3ba07df6d",
    "e613d37e5065b0cd63f1cad216423141",
)


class Prepared:
    """A deployment with an endpoint of the examples' name; `weights` make a checkpoint that the
    container can load, None where there is no container."""

    def __init__(self, client: httpx.Client, weights: bytes | None) -> None:
        self._client = client
        self._own_endpoint: dict[str, str] = {}
        self._job_id = ""
        self._endpoint_id = self._post(
            "/endpoints", instance_type="ml.g4dn.xlarge", endpoint_name=ENDPOINT
        )["EndpointDeploymentJobId"]
        for type_ in ("embeddings", "Lora", "hypernetworks", "ControlNet"):
            self._active_checkpoint(type_, f"{type_}.safetensors", safetensors())
        if weights is not None:
            self._make_picture(weights)

    def substitutions(self, example: Example) -> dict[str, str]:
        """What to write for the ids and names that the document made up, just before the example
        is run; brings about what it needs."""
        section = example.section.title
        if section == "/endpoints(DELETE)":
            made = {"instance_type": "ml.g4dn.xlarge", "endpoint_name": f"for-{example.language}"}
            name = self._post("/endpoints", **made)["endpoint_name"]
            return {"infer-endpoint-XXXXXX": name, "infer-endpoint-YYYYYY": name}
        if section == "/inference/get-endpoint-deployment-job":
            if example.language == "python":
                return {"'string'": f"'{self._endpoint_id}'"}
            return {"=string": f"={self._endpoint_id}"}
        if section.startswith("/inference/get-inference-job"):
            return {f"{section}'": f"{section}?jobID={self._job_id}'"}
        if section == "/inference/generate-s3-presigned-url-for-uploading":
            return {f"{section}'": f"{section}?key=uploads/picture.png'"}
        if section == "/checkpoint(put)":
            made = self._post(
                "/checkpoint",
                checkpoint_type="Stable-diffusion",
                filenames=[{"filename": CHECKPOINT, "parts_number": 5}],
            )
            etags = self._upload(made["s3PresignUrl"][0])
            return {"906a5a1f-6833-45aa-8a10-fb0e983e0eae": made["checkpoint"]["id"], **etags}
        if section == "/model(PUT)":
            job = self._model(example.language)
            etags = self._upload(job["s3PresignUrl"][0])
            return {"c9f59ee7-0672-4fd1-8a45-8a494de8a48d": job["id"], **etags}
        if section == "/inference/v2/{id}/run(PUT)":
            model_id = self._model(f"{example.language}-train")["id"]
            location = self._dataset(f"{example.language}-train")
            return {"7ec754d6-1f68-46ea-9cfe-efeeed0c986c": model_id, "s3:///dataset/": location}
        if section == "/train(PUT)":
            newest = self._client.get("/trains").json()["trainJobs"][0]
            return {"b5183dd3-0279-46ff-b64e-6cd687c0fe71": newest["id"]}
        if section == "/dataset(POST)":
            return {"test_dataset": f"dataset-{example.language}"}
        if section == "/dataset(PUT)":
            name = f"filled-{example.language}"
            self._dataset(name)
            return {"test_dataset": name}
        if section == "/{dataset_name}/data":
            return {"{dataset_name}": f"dataset-{example.language}"}
        return {}

    def _make_picture(self, weights: bytes) -> None:
        self._active_checkpoint("Stable-diffusion", CHECKPOINT, weights)
        until(
            lambda: self._get("/inference/get-endpoint-deployment-job", self._endpoint_id),
            lambda endpoint: endpoint["endpoint_status"] == "InService",
        )
        self._job_id = self._post(
            "/inference/v2",
            task_type="txt2img",
            models={"Stable-diffusion": [CHECKPOINT]},
            width=64,
            height=64,
            steps=2,
        )["inference_id"]
        until(
            lambda: self._get("/inference/get-inference-job", self._job_id),
            lambda job: job["status"] == "succeed",
        )

    def _active_checkpoint(self, type_: str, filename: str, weights: bytes) -> None:
        made = self._post(
            "/checkpoint",
            checkpoint_type=type_,
            filenames=[{"filename": filename, "parts_number": 1, "size": len(weights)}],
        )
        (part,) = made["s3PresignUrl"][0]["parts"]
        sent = httpx.put(part["url"], content=weights).raise_for_status()
        tags = {filename: [{"PartNumber": 1, "ETag": sent.headers["ETag"]}]}
        self._client.put(
            "/checkpoint",
            json={
                "checkpoint_id": made["checkpoint"]["id"],
                "status": "Active",
                "multi_parts_tags": tags,
            },
        ).raise_for_status()

    def _model(self, name: str) -> dict[str, Any]:
        made = self._post(
            "/model",
            model_type="Stable-diffusion",
            name=f"model-{name}",
            filenames=[{"filename": f"{CHECKPOINT}.tar", "parts_number": 5}],
            params={"create_model_params": {"new_model_name": name}},
        )
        job: dict[str, Any] = made["job"]
        return job

    def _dataset(self, name: str) -> str:
        """One with its file there; returns where it lies."""
        content = [{"filename": "/path/to/a/file.png", "name": "another_name", "type": "png"}]
        made = self._post("/dataset", dataset_name=name, content=content, params={})
        (file,) = made["s3PresignUrl"]
        httpx.put(file["url"], content=b"picture").raise_for_status()
        location: str = file["s3"].removesuffix("another_name")
        return location

    def _upload(self, target: dict[str, Any]) -> dict[str, str]:
        """Five parts; their ETags for the document's."""
        etags = {}
        content = safetensors(bytes(len(_ETAGS) * PART_MIN_BYTES - HEADER_BYTES))
        for documented, part in zip(_ETAGS, target["parts"], strict=True):
            sent = httpx.put(part["url"], content=content[:PART_MIN_BYTES]).raise_for_status()
            content = content[PART_MIN_BYTES:]
            etags[documented] = sent.headers["ETag"].strip('"')
        return etags

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self._client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def _get(self, path: str, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get(path, params={"jobID": job_id}).json()
        return found
