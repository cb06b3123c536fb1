"""What the routes refuse, and how they say it; uploads; paging. No worker is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.server import REPOSITORY, Server
from tests.weights import safetensors

MIB = 1024 * 1024
MODELS = {"Stable-diffusion": ["absent.safetensors"]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """One server for tests that leave nothing behind that another would see."""
    running = Server(tmp_path_factory.mktemp("shared") / "var")
    yield running
    running.stop()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/nope", None, 404, "GET /docs"),
        ("GET", "/_objects/data", None, 422, "signature"),
        ("DELETE", "/checkpoints", None, 405, "Not Allowed"),
        ("GET", "/inference/get-inference-job", None, 422, "jobID"),
        ("GET", "/inference/get-inference-job?jobID=ghost", None, 404, "ghost"),
        ("GET", "/inference/get-inference-job-image-output?jobID=ghost", None, 404, "ghost"),
        ("GET", "/inference/get-endpoint-deployment-job?jobID=string", None, 404, "string"),
        ("GET", "/checkpoint?id=ghost", None, 404, "ghost"),
        ("GET", "/checkpoint/ghost/upload", None, 404, "ghost"),
        ("GET", "/checkpoints?types=Nonsense", None, 422, "Stable-diffusion"),
        ("GET", "/checkpoints?cursor=nonsense", None, 422, "X-Next-Cursor"),
        ("GET", "/checkpoints?limit=1001", None, 422, "1000"),
        ("POST", "/inference/v2", {}, 422, "task_type"),
        ("POST", "/inference/v2", {"task_type": "txt2img", "models": MODELS}, 404, "absent"),
        (
            "POST",
            "/inference/v2",
            {"task_type": "interrogate", "models": MODELS},
            404,
            "absent",
        ),
        ("POST", "/inference/v2", {"task_type": "txt2img", "models": {}}, 422, "to sample with"),
        (
            "POST",
            "/inference/v2",
            {"task_type": "txt2img", "models": MODELS, "steps": 501},
            422,
            "500",
        ),
        (
            "POST",
            "/inference/v2",
            {"task_type": "txt2img", "models": MODELS, "prompt": "a" * 32769},
            422,
            "32 KiB",
        ),
        ("PUT", "/inference/v2/ghost/run", None, 404, "ghost"),
        ("PUT", "/inference/v2/ghost/run", {"train_type": "Stable-diffusion"}, 422, "model_id"),
        ("POST", "/inference/v2/ghost/cancel", None, 404, "ghost"),
        ("POST", "/endpoints", {"instance_type": "big one"}, 422, "instance_type"),
        ("POST", "/endpoints", {"instance_type": "local", "initial_instance_count": 7}, 422, "6"),
        ("POST", "/endpoints", {"delete_endpoint_list": ["ghost"]}, 404, "ghost"),
        ("DELETE", "/endpoints", None, 422, "delete_endpoint_list"),
        ("POST", "/checkpoint", {"checkpoint_type": "Lora", "filenames": []}, 422, "filenames"),
        (
            "POST",
            "/checkpoint",
            {"checkpoint_type": "Lora", "filenames": [{"filename": "../../etc/passwd"}]},
            422,
            "a name may have",
        ),
        ("PUT", "/checkpoint", {"checkpoint_id": "ghost", "status": "Active"}, 404, "ghost"),
        ("PUT", "/checkpoint", {"checkpoint_id": "ghost", "status": "Initial"}, 422, "Active"),
    ],
)
def test_refusals_say_what_and_why(
    shared: Server, method: str, path: str, body: object, status: int, says: str
) -> None:
    answer = shared.client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.text
    if status == 422:
        assert {"loc", "msg", "type"} == set(answer.json()["detail"][0])
    else:
        envelope = answer.json()
        assert envelope["statusCode"] == status
        assert envelope["request_id"] == answer.headers["X-Request-Id"]


def test_only_the_token_opens(shared: Server) -> None:
    token = shared.client.headers["x-api-key"]
    path = shared.url + "/inference/test-connection"
    assert httpx.get(path).status_code == 401
    assert httpx.get(path, headers={"x-api-key": token + "x"}).status_code == 401
    assert httpx.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200
    for user in ("", "anybody"):
        assert httpx.get(path, auth=(user, token)).status_code == 200
    for header in ("Basic", "Basic ?", "Basic " + token, "Basic /w=="):
        refused = httpx.get(path, headers={"Authorization": header})
        assert refused.status_code == 401
    challenges = refused.headers["WWW-Authenticate"]
    assert challenges.startswith("Bearer, Basic realm=")
    staged = shared.url + "/prod/inference/test-connection"
    assert httpx.get(staged, headers={"x-api-key": token}).json() == {"message": "Success"}
    assert httpx.get(shared.url + "/openapi.json").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"[" * 100_000,
        b'{"a": "\\ud800"}',
        b'{"a": "\xed\xa0\x80"}',
    ],
)
def test_what_is_not_json_is_refused(shared: Server, body: bytes) -> None:
    answer = shared.client.post(
        "/inference/v2", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert "Not JSON" in answer.json()["detail"][0]["msg"]


def test_a_body_over_six_mib_is_pointed_to_the_upload_route(shared: Server) -> None:
    answer = shared.client.post("/inference/v2", json={"init_images": ["x" * (7 * MIB)]})
    assert answer.status_code == 413
    assert "upload_params" in answer.json()["error"]


def test_pages_are_newest_first_and_follow_the_cursor(server: Server) -> None:
    for number in range(5):
        kind = "Lora" if number % 2 else "VAE"
        server.client.post(
            "/checkpoint",
            json={"checkpoint_type": kind, "filenames": [{"filename": f"{number}.safetensors"}]},
        )
    names: list[str] = []
    cursor = None
    while True:
        answer = server.client.get(
            "/checkpoints", params={"limit": 2, **({"cursor": cursor} if cursor else {})}
        )
        names += [c["name"][0] for c in answer.json()["checkpoints"]]
        cursor = answer.headers.get("X-Next-Cursor")
        assert cursor == answer.json()["next_cursor"]
        if cursor is None:
            break
    assert names == [f"{n}.safetensors" for n in (4, 3, 2, 1, 0)]
    loras = server.client.get("/checkpoints", params={"types": ["Lora"], "status": ["Initial"]})
    assert [c["name"][0] for c in loras.json()["checkpoints"]] == ["3.safetensors", "1.safetensors"]


def test_an_upload_goes_on_after_the_server_was_killed(server: Server) -> None:
    content = safetensors(bytes(range(256)) * (12 * MIB // 256))
    created = server.client.post(
        "/checkpoint",
        json={
            "checkpoint_type": "Lora",
            "filenames": [{"filename": "l.safetensors", "parts_number": 3, "size": len(content)}],
        },
    ).json()
    target, checkpoint_id = created["s3PresignUrl"][0], created["checkpoint"]["id"]
    size = target["part_size"]
    assert (size, len(target["parts"])) == (5 * MIB, 3)
    # Any order; then the plug is pulled.
    httpx.put(target["parts"][2]["url"], content=content[2 * size :]).raise_for_status()
    server.kill()
    again = Server(server.data_dir)
    resumed = again.client.get(f"/checkpoint/{checkpoint_id}/upload").json()["s3PresignUrl"][0]
    assert [part["PartNumber"] for part in resumed["arrived"]] == [3]
    assert [part["PartNumber"] for part in resumed["parts"]] == [1, 2]
    tags = [{"PartNumber": 3, "ETag": resumed["arrived"][0]["ETag"]}]
    for part in resumed["parts"]:
        start = (part["PartNumber"] - 1) * size
        sent = httpx.put(part["url"], content=content[start : start + size])
        tags.append({"PartNumber": part["PartNumber"], "ETag": sent.headers["ETag"]})
    finish = {"checkpoint_id": checkpoint_id, "status": "Active"}
    early = again.client.put("/checkpoint", json=finish)
    assert (early.status_code, early.json()["code"]) == (409, "parts_missing")
    tags.sort(key=lambda tag: int(tag["PartNumber"]))
    # The source's example keys carry a trailing .tar.
    done = again.client.put(
        "/checkpoint", json={**finish, "multi_parts_tags": {"l.safetensors.tar": tags}}
    )
    assert done.json()["checkpoint"]["status"] == "Active", done.text
    (listed,) = again.client.get("/checkpoints").json()["checkpoints"]
    assert listed["size"] == len(content)
    stored = again.data_dir / "objects" / "Lora" / "checkpoint" / checkpoint_id / "l.safetensors"
    assert stored.read_bytes() == content
    same = again.client.post(
        "/checkpoint",
        json={
            "checkpoint_type": "Lora",
            "filenames": [{"filename": "l.safetensors", "sha256": listed["sha256"][0]}],
        },
    ).json()
    assert (same["checkpoint"]["id"], same["s3PresignUrl"]) == (checkpoint_id, [])
    again.stop()


def test_damaged_bytes_never_become_active(shared: Server) -> None:
    created = shared.client.post(
        "/checkpoint",
        json={
            "checkpoint_type": "VAE",
            "filenames": [{"filename": "v.pt", "size": 4, "sha256": "0" * 64}],
        },
    ).json()
    (part,) = created["s3PresignUrl"][0]["parts"]
    etag = httpx.put(part["url"], content=b"abcd").headers["ETag"]
    body = {
        "checkpoint_id": created["checkpoint"]["id"],
        "status": "Active",
        "multi_parts_tags": {"v.pt": [{"PartNumber": 1, "ETag": etag}]},
    }
    answer = shared.client.put("/checkpoint", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "content_differs")
    after = shared.client.get("/checkpoint", params={"id": created["checkpoint"]["id"]}).json()
    assert after["checkpoint"]["status"] == "Fail"
    assert "sha256" in after["checkpoint"]["error"]


def test_signed_urls_reach_one_object_and_cannot_be_changed(shared: Server) -> None:
    created = shared.client.post(
        "/checkpoint", json={"checkpoint_type": "VAE", "filenames": [{"filename": "x.pt"}]}
    ).json()
    url = created["s3PresignUrl"][0]["parts"][0]["url"]
    assert shared.client.headers["x-api-key"] not in url
    assert httpx.put(url.replace("x.pt", "y.pt"), content=b"x").status_code == 403
    assert httpx.get(url).status_code in (403, 422)
    assert httpx.put(url.replace("partNumber=1", "partNumber=2"), content=b"x").status_code == 403


def test_a_second_server_on_the_same_folder_refuses(server: Server) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "middleware_api", "serve", "--port=0"],
        cwd=REPOSITORY,
        env={"SDAWS_DATA_DIR": str(server.data_dir), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 1
    assert "Another server already uses" in second.stderr


def test_strangers_are_let_in_only_with_a_long_token(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "middleware_api", "serve", "--port=0", "--host=0.0.0.0"],
        cwd=REPOSITORY,
        env={"SDAWS_DATA_DIR": str(tmp_path), "SDAWS_API_TOKEN": "short", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 1
    assert "at least 20 characters" in refused.stderr
    assert "short" not in refused.stderr


def test_the_token_file_is_the_owners_alone(shared: Server) -> None:
    assert (shared.data_dir / "api_token").stat().st_mode & 0o777 == 0o600


def test_a_part_that_is_wrong_is_named(shared: Server) -> None:
    created = shared.client.post(
        "/checkpoint",
        json={
            "checkpoint_type": "VAE",
            "filenames": [{"filename": "p.pt", "parts_number": 2}],
        },
    ).json()
    etags = [
        httpx.put(part["url"], content=b"short").headers["ETag"]
        for part in created["s3PresignUrl"][0]["parts"]
    ]

    def complete(*tags: tuple[int, str]) -> httpx.Response:
        named = [{"PartNumber": number, "ETag": etag} for number, etag in tags]
        return shared.client.put(
            "/checkpoint",
            json={
                "checkpoint_id": created["checkpoint"]["id"],
                "status": "Active",
                "multi_parts_tags": {"p.pt": named},
            },
        )

    for tags, code in (
        ([(1, "other")], "part_differs"),
        ([(2, etags[1]), (1, etags[0])], "parts_out_of_order"),
        ([(1, etags[0]), (2, etags[1])], "part_too_small"),
        ([(3, etags[0])], "parts_missing"),
    ):
        answer = complete(*tags)
        assert (answer.status_code, answer.json()["code"]) == (409, code)
    unknown = shared.client.put(
        "/checkpoint",
        json={
            "checkpoint_id": created["checkpoint"]["id"],
            "status": "Active",
            "multi_parts_tags": {"q.pt": [{"PartNumber": 1, "ETag": "x"}]},
        },
    )
    assert (unknown.status_code, "p.pt" in unknown.text) == (422, True)
