"""All that one click has made in the cloud: its jobs sent, followed, shown, and brought home.

The host's state is read and written by the generation's own thread alone; the threads that follow
the jobs only talk to the server.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import gradio as gr
from modules import shared
from PIL import Image

from aws_extension.answers import Checkpoint
from aws_extension.client import CloudClient, WaitStatus
from aws_extension.collected import CollectedJobs
from aws_extension.errors import CloudError
from aws_extension.fan_out import Capacity, FanOut, Job, Order, Result
from aws_extension.infotext import parameters_of
from aws_extension.lazy_picture import LazyPicture
from aws_extension.pictures import open_picture
from aws_extension.webui.host_options import overridden_options
from aws_extension.webui.saving import add_to_infotext, correct_colours, infotext_of, save_picture
from middleware_api.contract import CheckpointState

# How soon Interrupt is heard, and how often the bar moves.
TICK_SECONDS = 0.1


class Batch:
    """One of the host's batches as it was when it was ordered; scripts go on changing theirs."""

    def __init__(self, p: Any, shares: int, label: str = "") -> None:
        self.p = copy.copy(p)
        self.p.extra_generation_params = dict(p.extra_generation_params)
        self.p.override_settings = dict(p.override_settings)
        self.label = label
        self.shares = self.unsettled = shares

    @property
    def bar_jobs(self) -> int:
        """What the host counts it for on its bar: a hires pass is another job."""
        return 2 if getattr(self.p, "enable_hr", False) else 1


@dataclass(eq=False)
class Share:
    """What one job makes of a batch: its pictures from `first` on, and their infotexts.

    The texts are the host's own from the start; what only the engine knows comes in at the end.
    `maps` are what ControlNet's units saw, if they were asked for.
    """

    batch: Batch
    job: Job
    first: int
    pictures: list[LazyPicture] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    maps: list[Image.Image] = field(default_factory=list)
    is_settled: bool = False

    def pairs(self, made_only: bool) -> list[tuple[Image.Image, str]]:
        """Pictures with their infotexts; those that came, or all."""
        until = len(self.images) if made_only else len(self.pictures)
        return list(zip(self.pictures[:until], self.texts[:until]))  # noqa: B905


class Generation:
    """Takes orders in the order of their pictures, and settles them in that order.

    `state_folder` is where unfinished uploads are remembered, `collected` the jobs whose pictures
    have come home. `gaps_allowed` is for scripts that show a black cell for a picture that failed,
    and go on. As a context it leaves no job behind: whatever ends it, what was made until then is
    saved.
    """

    def __init__(
        self,
        client: CloudClient,
        state_folder: Path,
        collected: CollectedJobs,
        capacity: Capacity,
        gaps_allowed: bool = False,
    ) -> None:
        self.client = client
        self.state_folder = state_folder
        self.failure: CloudError | None = None
        # What a script's check or an earlier cell of it found in the cloud.
        self.known_checkpoints: Sequence[Checkpoint] = ()
        self._collected = collected
        self._made = 0
        self._capacity = capacity
        self._gaps_allowed = gaps_allowed
        self._fan_out = FanOut(client, capacity.jobs_at_once, self._read_preview)
        self._pending: deque[Share] = deque()
        self._final_texts: dict[str, str] = {}
        self._lost: list[LazyPicture] = []
        self._maps: list[Image.Image] = []
        self._shown_job: Job | None = None
        self._preview: Image.Image | None = None
        self._preview_content = b""

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._stop(self._pending)
            self.settle_all()
        finally:
            self._fan_out.close()
            shared.state.textinfo = None

    def add(self, batch: Batch, order: Order, first: int, count: int) -> Share:
        """Order `count` pictures of a batch; waits while enough others are on their way."""
        while len(self._pending) >= 2 * self._capacity.jobs_at_once:
            self._settle_next()
        share = Share(batch, self._fan_out.add(order), first)
        with overridden_options(batch.p):
            for number in range(count):
                share.pictures.append(LazyPicture(self._waiter(share, number)))
                share.texts.append(infotext_of(batch.p, first + number))
        self._pending.append(share)
        return share

    @property
    def is_ending(self) -> bool:
        """Whether nothing more is to be ordered: the user stopped it, or a picture failed."""
        state = shared.state
        failed = self.failure is not None and not self._gaps_allowed
        return bool(state.interrupted or state.stopping_generation or failed)

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The cloud's Active ones, asked for once."""
        if not self.known_checkpoints:
            self.known_checkpoints = self.client.list_checkpoints([CheckpointState.ACTIVE])
        return self.known_checkpoints

    def settle_all(self) -> None:
        """Wait for everything that was ordered; save what comes."""
        while self._pending:
            self._settle_next()

    def note_failure(self, failure: CloudError) -> None:
        """Remember why a picture will not come; some scripts only print what they are told."""
        self.failure = self.failure or failure

    def finish(self, processed: Any, p: Any) -> Any:
        """A script's or a generation's result, complete: final infotexts, and no gaps listed.

        Raises the failure when no picture came at all, or when nobody would see a warning.
        """
        self.settle_all()
        if self.failure and (not self._made or getattr(p, "is_api", False)):
            raise self.failure
        texts = [self._final_texts.get(text, text) for text in processed.infotexts or []]
        with_text = [image for image in processed.images if not self._is_map(image)]
        if len(texts) == len(with_text):
            kept = [at for at, image in enumerate(with_text) if not self._is_lost(image)]
            texts = [texts[at] for at in kept]
        processed.infotexts = texts
        processed.info = self._final_texts.get(processed.info, processed.info)
        processed.images = [image for image in processed.images if not self._is_lost(image)]
        if self.failure:
            gr.Warning(str(self.failure))
            p.comment(str(self.failure))
        processed.comments = "".join(f"{comment}\n" for comment in p.comments)
        return processed

    def _is_lost(self, image: Any) -> bool:
        return any(image is lost for lost in self._lost)

    def _is_map(self, image: Any) -> bool:
        return any(image is one for one in self._maps)

    def _waiter(self, share: Share, number: int) -> Callable[[], Image.Image]:
        def wait() -> Image.Image:
            while not share.is_settled:
                self._settle_next()
            if number < len(share.images):
                return share.images[number]
            if self.failure and not self._gaps_allowed:
                raise self.failure
            return Image.new("RGB", (share.batch.p.width, share.batch.p.height))

        return wait

    def _settle_next(self) -> None:
        share = self._pending[0]
        while not share.job.wait(TICK_SECONDS):
            self._obey(share)
            self._show(share)
        self._show(share)
        self._pending.popleft()
        share.is_settled = True
        self._take(share, share.job.result())
        batch = share.batch
        batch.unsettled -= 1
        if batch.unsettled == 0:
            for _ in range(batch.bar_jobs):
                shared.state.nextjob()
            if self._pending:
                shared.state.skipped = False

    def _obey(self, share: Share) -> None:
        """The user's Interrupt, Skip, and "finish this batch"."""
        state = shared.state
        if state.interrupted:
            self._stop(self._pending)
        elif state.skipped:
            self._stop(s for s in self._pending if s.batch is share.batch)
        elif state.stopping_generation:
            self._stop(s for s in self._pending if not s.job.has_begun)

    @staticmethod
    def _stop(shares: Any) -> None:
        for share in shares:
            share.job.stop()

    def _show(self, share: Share) -> None:
        """Bar, text and preview, of all that is on its way."""
        state = shared.state
        if share.batch.label:
            state.job = share.batch.label
        on_bar = sum(s.batch.bar_jobs * s.job.progress / s.batch.shares for s in self._pending)
        state.sampling_steps = share.batch.p.steps
        state.sampling_step = int(share.batch.p.steps * on_bar)
        state.textinfo = f"Cloud: {self._describe(share)}"
        self._shown_job = next((s.job for s in self._pending if s.job.has_begun), None)
        if self._preview is not None:
            state.assign_current_image(self._preview)
            self._preview = None

    def _describe(self, share: Share) -> str:
        status = share.job.status
        line = status.describe() if status else "sending…"
        if self._capacity.is_asleep and not share.job.has_begun:
            line = "The endpoint was asleep: its first machine takes 5 to 10 minutes to come"
        if len(self._pending) == 1:
            return line
        running = sum(s.job.has_begun and not s.job.is_done for s in self._pending)
        waiting = sum(not s.job.has_begun and not s.job.is_done for s in self._pending)
        return f"{line} ({self._made} done, {running} running, {waiting} waiting)"

    def _read_preview(self, job: Job, status: WaitStatus) -> None:
        """In the job's own thread: the preview of the one that is shown."""
        wanted = job is self._shown_job and not status.job.is_final
        if not (wanted and status.job.preview_url and shared.opts.live_previews_enable):
            return
        try:
            content = self.client.download(status.job.preview_url)
            if content != self._preview_content:
                self._preview_content = content
                self._preview = open_picture(content)
        except CloudError:
            return  # replaced while it was read: the next poll has another

    def _take(self, share: Share, result: Result) -> None:
        """Bring a job's pictures home."""
        p, count = share.batch.p, len(share.pictures)
        failure = result.failure
        for warning in result.output.warnings if result.output else ():
            p.comment(warning)
        output = result.output
        files = output.pictures(result.files) if output else result.files
        maps = output.maps(result.files) if output else ()
        # An engine may answer with a grid before the pictures: the last ones are they.
        try:
            share.images = [open_picture(content) for content in files[-count:]]
            share.maps = [open_picture(content) for content in maps]
        except CloudError as unreadable:
            failure = failure or unreadable
        if failure:
            self.note_failure(failure)
            if not self._gaps_allowed:
                self._stop(self._pending)
        self._lost += share.pictures[len(share.images) :]
        self._maps += share.maps
        with overridden_options(p):
            for number in range(len(share.images)):
                self._finish_picture(share, number, result)
        if share.images and result.job is not None:
            self._collected.add(result.job.id)

    def _finish_picture(self, share: Share, number: int, result: Result) -> None:
        p, in_batch, picture = share.batch.p, share.first + number, share.pictures[number]
        add_to_infotext(p, _engine_says(result, share, number), _facts(result))
        text = infotext_of(p, in_batch)
        share.images[number] = correct_colours(p, share.images[number], in_batch, text)
        picture.load()
        self._final_texts[share.texts[number]] = share.texts[number] = text
        save_picture(p, picture, in_batch, text)
        self._made += 1


def _engine_says(result: Result, share: Share, number: int) -> dict[str, str]:
    texts = result.output.infotexts[-len(share.pictures) :] if result.output else ()
    own = str(share.images[number].info.get("parameters") or "")
    return parameters_of(texts[number] if number < len(texts) else own)


def _facts(result: Result) -> dict[str, str]:
    """Where and how long, as the infotext tells it."""
    if result.job is None:
        return {}
    seconds = result.job.run_seconds
    return {
        "Cloud endpoint": result.job.endpoint_name,
        **({} if seconds is None else {"Cloud time": f"{seconds:.1f} s"}),
    }
