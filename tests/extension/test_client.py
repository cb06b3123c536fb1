"""The client's retries, errors and waiting, without a network."""

from __future__ import annotations

import json

import pytest
import requests

from aws_extension import errors
from aws_extension.client import LOST_PATIENCE_SECONDS, WaitStatus
from aws_extension.fake_transport import FakeAnswer
from middleware_api.contract import BODY_MAX_BYTES, CheckpointType, InferenceState, TaskType
from tests.extension.conftest import TOKEN, URL

SUBMITTED = {"inference_id": "j1", "status": "inprogress", "endpoint_name": "e", "output_path": "p"}
MODELS = {CheckpointType.STABLE_DIFFUSION: ["demo.safetensors"]}


def job(status="inprogress", **more):
    return {"InferenceJobId": "j1", "status": status, "taskType": "txt2img", **more}


def script(*answers):
    """Answers in turn; the last one for ever."""
    left = list(answers)
    return lambda sent: left.pop(0) if len(left) > 1 else left[0]


def test_the_token_goes_in_its_header_only(fake_client):
    client, transport = fake_client(script(FakeAnswer(body={"message": "Success"})))
    client.test_connection()
    (sent,) = transport.sent
    assert sent.headers["x-api-key"] == TOKEN
    assert TOKEN not in sent.url
    client.download("http://store.test/picture?signature=s")
    assert TOKEN not in str(transport.sent[-1].headers)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.Unauthorised),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (418, errors.ApiError),
    ],
)
def test_a_refusal_is_typed_and_keeps_the_servers_words(fake_client, status, kind):
    body = {
        "statusCode": status,
        "error": "No, because.",
        "code": "why",
        "request_id": "7f3a99ffee",
    }
    client, transport = fake_client(script(FakeAnswer(status, body)))
    with pytest.raises(kind) as raised:
        client.list_endpoints()
    assert str(raised.value) == "No, because. [req 7f3a99ff]"
    assert (raised.value.code, raised.value.request_id) == ("why", "7f3a99ffee")
    assert len(transport.sent) == 1


def test_a_field_that_does_not_fit_is_named(fake_client):
    detail = [{"loc": ["body", "steps"], "msg": "too many", "type": "t"}]
    client, _ = fake_client(script(FakeAnswer(422, {"detail": detail})))
    with pytest.raises(errors.InvalidRequest, match="steps: too many"):
        client.submit(TaskType.TXT2IMG, MODELS, {})


@pytest.mark.parametrize("trouble", [FakeAnswer(503), FakeAnswer(429), requests.ConnectionError()])
def test_passing_trouble_is_tried_again_with_the_same_key(fake_client, fake_time, trouble):
    client, transport = fake_client(script(trouble, trouble, FakeAnswer(body=SUBMITTED)))
    assert client.submit(TaskType.TXT2IMG, MODELS, {"prompt": "x"}).job_id == "j1"
    assert len({sent.headers["Idempotency-Key"] for sent in transport.sent}) == 1
    assert fake_time.slept == [0.5, 1.0]
    client.submit(TaskType.TXT2IMG, MODELS, {"prompt": "x"})
    assert len({sent.headers["Idempotency-Key"] for sent in transport.sent}) == 2


def test_retry_after_is_honoured(fake_client, fake_time):
    busy = FakeAnswer(429, headers={"Retry-After": "7"})
    client, _ = fake_client(script(busy, FakeAnswer(body=[])))
    client.list_endpoints()
    assert fake_time.slept == [7.0]


def test_a_new_endpoint_is_asked_for_once(fake_client):
    client, transport = fake_client(script(requests.ConnectionError()))
    with pytest.raises(errors.ConnectionLost):
        client.create_endpoint("local")
    assert len(transport.sent) == 1


def test_a_lasting_fault_ends_with_what_to_do(fake_client):
    client, transport = fake_client(script(requests.ConnectTimeout()))
    with pytest.raises(errors.ConnectionLost, match="Check that it runs"):
        client.test_connection()
    assert len(transport.sent) == 5


def test_a_redirect_is_not_followed_with_the_token(fake_client):
    client, transport = fake_client(script(FakeAnswer(302, headers={"Location": "http://evil/"})))
    with pytest.raises(errors.UnexpectedAnswer, match="evil"):
        client.test_connection()
    assert len(transport.sent) == 1


def test_a_web_page_is_no_answer(fake_client):
    client, _ = fake_client(script(FakeAnswer(body=b"<html>")))
    with pytest.raises(errors.UnexpectedAnswer, match="Connection page"):
        client.test_connection()


def test_a_small_body_goes_directly(fake_client):
    client, transport = fake_client(script(FakeAnswer(body=SUBMITTED)))
    client.submit(TaskType.IMG2IMG, MODELS, {"prompt": "x"}, endpoint_name="e")
    assert transport.sent[0].json == {
        "prompt": "x",
        "task_type": "img2img",
        "models": {"Stable-diffusion": ["demo.safetensors"]},
        "sagemaker_endpoint_name": "e",
    }


def large_server(run_answer):
    def answer(sent):
        if sent.url.startswith("http://store.test"):
            return FakeAnswer(body=b"")
        if sent.url.endswith("/run"):
            return run_answer
        if "get-inference-job" in sent.url:
            return FakeAnswer(body=job())
        created = {"status": "created", "api_params_s3_upload_url": "http://store.test/p?sig=1"}
        return FakeAnswer(body={**SUBMITTED, **created})

    return answer


@pytest.mark.parametrize(
    "run_answer", [FakeAnswer(body=SUBMITTED), FakeAnswer(409, {"error": "is inprogress"})]
)
def test_a_large_body_goes_through_the_store(fake_client, run_answer):
    client, transport = fake_client(large_server(run_answer))
    picture = "A" * BODY_MAX_BYTES
    submission = client.submit(TaskType.IMG2IMG, MODELS, {"init_images": [picture]})
    assert submission.state is InferenceState.IN_PROGRESS
    create, put, run = transport.sent[:3]
    assert create.json["upload_params"] is True
    assert "init_images" not in create.json
    assert json.loads(put.body)["init_images"] == [picture]
    assert TOKEN not in str(put.headers)
    assert (run.method, run.url) == ("PUT", f"{URL}/inference/v2/j1/run")


def test_waiting_tells_progress_and_ends_with_the_final_job(fake_client):
    client, _ = fake_client(
        script(
            FakeAnswer(body=job("created", queue_position=2)),
            FakeAnswer(body=job(progress=0.5, eta_seconds=3.2)),
            FakeAnswer(body=job("succeed", progress=1, image_names=["image_0.png"])),
        )
    )
    told: list[WaitStatus] = []
    final = client.wait_for("j1", told.append)
    assert final.image_names == ("image_0.png",)
    assert [status.describe() for status in told] == [
        "Waiting in the queue, 2 jobs ahead",
        "Generating 50%, about 3 s left",
        "Finished",
    ]


def test_a_failed_job_raises_its_reason(fake_client):
    client, _ = fake_client(script(FakeAnswer(body=job("failed", error="Out of memory."))))
    with pytest.raises(errors.JobFailed, match="Out of memory"):
        client.wait_for("j1")


def test_cancelling_reaches_the_server_once(fake_client):
    cancelled = []

    def answer(sent):
        if sent.url.endswith("/cancel"):
            cancelled.append(sent.method)
            return FakeAnswer(body=job("cancelled"))
        return FakeAnswer(body=job("cancelled" if cancelled else "inprogress"))

    client, _ = fake_client(answer)
    assert client.wait_for("j1", should_cancel=lambda: True).state is InferenceState.CANCELLED
    assert cancelled == ["POST"]


def test_a_short_silence_is_survived_and_told(fake_client):
    lost = [requests.ConnectionError()] * 5
    client, _ = fake_client(script(FakeAnswer(body=job()), *lost, FakeAnswer(body=job("succeed"))))
    told: list[WaitStatus] = []
    client.wait_for("j1", told.append)
    assert [status.lost_seconds > 0 for status in told] == [False, True, False]


def test_a_long_silence_ends_with_where_the_pictures_will_be(fake_client, fake_time):
    client, _ = fake_client(script(FakeAnswer(body=job()), requests.ConnectionError()))
    with pytest.raises(errors.ConnectionLost, match="Jobs page"):
        client.wait_for("j1")
    assert LOST_PATIENCE_SECONDS <= fake_time.now < 3 * LOST_PATIENCE_SECONDS


def test_all_pages_of_checkpoints_are_read(fake_client):
    one = {"id": "1", "type": "VAE", "status": "Active", "name": ["a"], "created": 1.5}
    two = {**one, "id": "2"}
    client, transport = fake_client(
        script(
            FakeAnswer(body={"checkpoints": [one]}, headers={"X-Next-Cursor": "n"}),
            FakeAnswer(body={"checkpoints": [two]}),
        )
    )
    assert [c.id for c in client.list_checkpoints()] == ["1", "2"]
    assert "cursor=n" in transport.sent[1].url
