"""Client and uploader against the real embedded server."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from aws_extension import errors
from aws_extension.client import CloudClient, Merge, WaitStatus
from aws_extension.dataset_uploads import DatasetOrder, send, with_captions
from aws_extension.dataset_views import DatasetViews
from aws_extension.pictures import encode_picture
from aws_extension.upload_progress import UploadProgress
from aws_extension.uploader import upload_checkpoint
from middleware_api.contract import (
    BODY_MAX_BYTES,
    MIB,
    CheckpointState,
    CheckpointType,
    DatasetState,
    InferenceState,
    MergeMethod,
    TaskType,
)
from tests.extension.conftest import RealServer
from tests.weights import safetensors

KIND = CheckpointType.STABLE_DIFFUSION
SMALL = {"prompt": "a circle", "steps": 3, "width": 64, "height": 64, "seed": 7}


def models(server: RealServer) -> dict[CheckpointType, list[str]]:
    return {KIND: [server.checkpoint]}


def test_a_prompt_becomes_pictures_with_their_infotext(real_server):
    client = real_server.client()
    told: list[WaitStatus] = []
    sent = client.submit(TaskType.TXT2IMG, models(real_server), {**SMALL, "batch_size": 2})
    job = client.wait_for(sent.job_id, told.append)
    assert job.state is InferenceState.SUCCEEDED
    assert told[-1].job.is_final
    first, second = (Image.open(io.BytesIO(c)) for c in client.download_images(sent.job_id))
    assert first.size == second.size == (64, 64)
    output = client.get_output(sent.job_id)
    assert ["Seed: 7," in output.infotexts[0], "Seed: 8," in output.infotexts[1]] == [True, True]
    assert first.info["parameters"] == output.infotexts[0]
    assert client.list_jobs(1).jobs[0].id == sent.job_id


def test_a_picture_too_large_for_the_gateway_goes_through_the_store(real_server):
    client = real_server.client()
    noise = Image.effect_noise((2000, 2000), 100).convert("RGB")
    fields = {**SMALL, "init_images": [encode_picture(noise)], "denoising_strength": 0.6}
    assert len(fields["init_images"][0]) > BODY_MAX_BYTES / 2
    fields["comment_of_the_test"] = "x" * BODY_MAX_BYTES
    sent = client.submit(TaskType.IMG2IMG, models(real_server), fields)
    assert client.wait_for(sent.job_id).state is InferenceState.SUCCEEDED


def test_cancel_stops_a_long_job(real_server):
    client = real_server.client()
    sent = client.submit(
        TaskType.TXT2IMG, models(real_server), {**SMALL, "steps": 500, "n_iter": 4}
    )
    seen: list[WaitStatus] = []
    job = client.wait_for(
        sent.job_id, seen.append, lambda: any(status.job.progress > 0 for status in seen)
    )
    assert job.state is InferenceState.CANCELLED
    client.cancel_job(sent.job_id)  # a second time is no error


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"steps": 0}, errors.InvalidRequest), ({"sampler_name": "Eular"}, errors.JobFailed)],
)
def test_what_the_server_refuses_is_said_in_its_words(real_server, fields, kind):
    client = real_server.client()
    with pytest.raises(kind, match=r"steps|Eular"):
        client.wait_for(
            client.submit(TaskType.TXT2IMG, models(real_server), {**SMALL, **fields}).job_id
        )


def test_an_unknown_checkpoint_is_named(real_server):
    with pytest.raises(errors.NotFound, match=r"absent\.safetensors"):
        real_server.client().submit(TaskType.TXT2IMG, {KIND: ["absent.safetensors"]}, SMALL)


def test_a_wrong_token_is_refused(real_server):
    with pytest.raises(errors.Unauthorised):
        CloudClient(real_server.url, "not-the-token-of-this-server").test_connection()


def test_an_upload_is_interrupted_resumed_and_not_sent_twice(real_server, tmp_path):
    client = real_server.client()
    path = _large_file(tmp_path)
    told: list[UploadProgress] = []

    def enough() -> bool:
        return any(p.phase == "sending" and p.done >= 10 * MIB for p in told)

    with pytest.raises(errors.Cancelled):
        upload_checkpoint(
            client,
            path,
            CheckpointType.VAE,
            state_folder=tmp_path / "state",
            on_progress=told.append,
            should_cancel=enough,
        )
    again: list[UploadProgress] = []
    made = upload_checkpoint(
        client, path, CheckpointType.VAE, state_folder=tmp_path / "state", on_progress=again.append
    )
    assert made.state is CheckpointState.ACTIVE
    assert next(p for p in again if p.phase == "sending").done > 0
    third: list[UploadProgress] = []
    same = upload_checkpoint(client, path, CheckpointType.VAE, on_progress=third.append)
    assert same.id == made.id
    assert "sending" not in {p.phase for p in third}
    assert [c.names for c in client.list_checkpoints(types=[CheckpointType.VAE])] == [(path.name,)]


def _large_file(folder: Path) -> Path:
    """48 MiB in several parts, no two alike."""
    path = folder / "large.safetensors"
    path.write_bytes(safetensors(b"".join(bytes([number]) * MIB for number in range(48))))
    return path


def test_endpoints_are_made_listed_and_deleted(real_server):
    client = real_server.client()
    made = client.create_endpoint("local", 1, "second")
    assert made.name == "second"
    assert "second" in [e.name for e in client.list_endpoints()]
    client.delete_endpoints(["second"])
    with pytest.raises(errors.NotFound, match="never-there"):
        client.delete_endpoints(["never-there"])


def test_a_merge_makes_a_checkpoint_that_pictures_are_made_with(real_server):
    client = real_server.client()
    both = real_server.checkpoint
    merge = Merge(
        MergeMethod.WEIGHTED_SUM, both, both, multiplier=0, name="merged"
    )  # all of the first
    done = client.wait_for(client.run_merge(merge))
    assert (done.state, done.task) == (InferenceState.SUCCEEDED, "merge")
    with pytest.raises(errors.Conflict, match=r"cannot be named 'merged\.safetensors'"):
        client.run_merge(merge)
    made = {KIND: ["merged.safetensors"]}
    drawn = [
        client.submit(TaskType.TXT2IMG, which, SMALL).job_id
        for which in (made, models(real_server))
    ]
    for job_id in drawn:
        assert client.wait_for(job_id).state is InferenceState.SUCCEEDED
    pixels = [
        Image.open(io.BytesIO(client.download_images(job_id)[0])).tobytes() for job_id in drawn
    ]
    assert pixels[0] == pixels[1]


def test_a_folder_becomes_a_data_set_whose_files_are_changed_one_by_one(real_server, tmp_path):
    client, rows = real_server.client(), real_server.client().datasets
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(b"picture %d" % number)
        (tmp_path / f"{number}.txt").write_text(f"thing {number}")
    order = DatasetOrder("pictures", with_captions(sorted(tmp_path.glob("*.png"))))
    send(client, order)
    (made,) = rows.all([DatasetState.ENABLED])
    assert (made.name, made.files) == ("pictures", 24)
    views = DatasetViews(lambda: client)
    there = {file.name: file for file in views.files("pictures")}
    assert there["3.png"].size == len(b"picture 3")
    assert views.captions("pictures", [there["3.txt"]]) == {"3.txt": "thing 3"}
    client.storage.send("PUT", rows.write("pictures", ["3.txt"])["3.txt"], body=b"a dog")
    views.forget_caption("pictures", "3.txt")
    (caption,) = (file for file in views.files("pictures") if file.name == "3.txt")
    assert views.captions("pictures", [caption]) == {"3.txt": "a dog"}
    rows.remove("pictures", ["0.png", "0.txt"])
    assert len(rows.files("pictures")) == 22
    with pytest.raises(errors.Conflict, match="No file would be left"):
        rows.remove("pictures", [file.name for file in rows.files("pictures")])
    rows.delete("pictures")
    assert rows.all() == []


def test_a_checkpoint_is_renamed_and_found_by_its_new_name_alone(real_server, tmp_path):
    client = real_server.client()
    path = tmp_path / "old.safetensors"
    path.write_bytes(safetensors(b"renamed"))
    made = upload_checkpoint(client, path, CheckpointType.VAE)
    client.rename_checkpoint(made.id, "old.safetensors", "new.safetensors")
    names = [one.names for one in client.list_checkpoints((), [CheckpointType.VAE])]
    assert ("new.safetensors",) in names
    assert ("old.safetensors",) not in names
    with pytest.raises(errors.ApiError, match="ends in"):
        client.rename_checkpoint(made.id, "new.safetensors", "new.ckpt")
    with pytest.raises(errors.Conflict, match="nothing to try again"):
        client.retry_checkpoint(made.id)
    client.delete_checkpoint(made.id)
