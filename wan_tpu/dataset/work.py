"""Encodes what a folder lacks, beside other processes that do the same."""

import collections
import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence

from wan_tpu.dataset.cache import CONDITION, IMAGE, LATENTS, SAMPLES, TEXT, TEXTS, Cache, Made
from wan_tpu.dataset.claims import Claims
from wan_tpu.dataset.decode import Frames, read_window
from wan_tpu.dataset.digests import Digests
from wan_tpu.dataset.encode import Encoders
from wan_tpu.dataset.faults import Finding, kind_of_error
from wan_tpu.dataset.jobs import Job
from wan_tpu.errors import MediaError
from wan_tpu.pipeline.progress import Watch

WAIT_SECONDS = 0.2
"""Between two looks at what other processes are making."""

LoadEncoders = Callable[[], Encoders]


class Work:
    """What this process does at a folder.

    Attributes:
        num_made: captions and samples that it has encoded.
    """

    def __init__(self, cache: Cache, claims: Claims, watch: Watch):
        self.num_made = 0
        self._cache, self._claims, self._watch = cache, claims, watch

    def captions(self, captions: Mapping[str, str], made: Made, load: LoadEncoders) -> None:
        """Ends when the embeddings of all captions are there.

        Args:
            captions: by key.
            made: what makes them.
            load: the text encoder, where any is missing.
        """
        share = _Share(self._cache, self._claims, TEXTS, tuple(captions))
        if share.is_over:
            return
        encoders = load()
        with self._watch.stage("captions", share.total) as report:
            while not share.is_over:
                key = share.take()
                if key is None:
                    share.wait()
                else:
                    caption = captions[key]
                    embeddings = encoders.text(caption, self._watch)
                    self._cache.write(TEXTS, made.text(caption), {TEXT: embeddings})
                    share.done(key)
                    self.num_made += 1
                report(share.num_over)

    def clips(
        self,
        jobs: Mapping[str, Job],
        inputs: Sequence[str],
        digests: Digests,
        load: LoadEncoders,
        *,
        workers: int,
    ) -> dict[str, Finding]:
        """Ends when the latents of all clips are there that can be decoded.

        Args:
            jobs: by key.
            inputs: frames that the model is given.
            digests: of files.
            load: the autoencoder and the image encoder, where any clip is missing.
            workers: clips that are decoded at a time, while another one is encoded.

        Returns:
            What is wrong with the others, by key.
        """
        share = _Share(self._cache, self._claims, SAMPLES, tuple(jobs))
        undecoded: dict[str, Finding] = {}
        if share.is_over:
            return undecoded
        encoders = load()
        pool = concurrent.futures.ThreadPoolExecutor(workers, "decode")
        decoding: collections.deque[tuple[Job, concurrent.futures.Future[Frames]]] = (
            collections.deque()
        )
        try:
            with self._watch.stage("clips", share.total) as report:
                while not share.is_over:
                    while len(decoding) <= workers and (key := share.take()) is not None:
                        job = jobs[key]
                        decoding.append((job, pool.submit(_frames_of, job, digests)))
                    if not decoding:
                        share.wait()
                    else:
                        job, frames = decoding.popleft()
                        found = self._clip(job, frames, frozenset(inputs), encoders)
                        if found is not None:
                            undecoded[job.key] = found
                        share.done(job.key)
                    report(share.num_over)
        finally:
            pool.shutdown(cancel_futures=True)
        return undecoded

    def _clip(
        self,
        job: Job,
        frames: concurrent.futures.Future[Frames],
        inputs: frozenset[str],
        encoders: Encoders,
    ) -> Finding | None:
        """Encodes a clip that is decoded, or being so; returns what is wrong with it."""
        try:
            decoded = frames.result()
        except MediaError as error:
            name = job.placed.entry.name
            words = str(error).removeprefix(f"{name}: ")
            return Finding(name=job.name, kind=kind_of_error(words), words=words)
        encoded = encoders.clip(decoded, job.placed.geometry, inputs, self._watch)
        arrays = {LATENTS: encoded.latents, CONDITION: encoded.condition, IMAGE: encoded.image}
        there = {name: array for name, array in arrays.items() if array is not None}
        self._cache.write(SAMPLES, job.made, there)
        self.num_made += 1
        return None


def _frames_of(job: Job, digests: Digests) -> Frames:
    """The frames that the job's key speaks of."""
    placed = job.placed
    frames = read_window(placed.entry, placed.window, placed.geometry, fps=job.fps)
    if digests.of(placed.entry.path) != job.made["media"]:
        raise MediaError(f"{placed.entry.name}: it was changed while it was read")
    return frames


class _Share:
    """What is missing, and this process's part of it: whatever no other is making."""

    def __init__(self, cache: Cache, claims: Claims, kind: str, keys: Sequence[str]):
        self._cache, self._claims, self._kind = cache, claims, kind
        self._left = collections.deque(key for key in keys if not cache.has(kind, key))
        self._mine: set[str] = set()
        self._others: list[str] = []
        self.total = len(self._left)

    @property
    def num_over(self) -> int:
        """Those that are there now, or will never be."""
        return self.total - len(self._left) - len(self._mine) - len(self._others)

    @property
    def is_over(self) -> bool:
        return self.num_over == self.total

    def take(self) -> str | None:
        """Claims one; None where others are making all that are left."""
        while self._left:
            key = self._left.popleft()
            if not self._claims.claim(key):
                self._others.append(key)
            elif self._cache.has(self._kind, key):  # by another process, meanwhile
                self._claims.release(key)
            else:
                self._mine.add(key)
                return key
        return None

    def done(self, key: str) -> None:
        """What was taken is there, or cannot be made."""
        self._mine.remove(key)
        self._claims.release(key)

    def wait(self) -> None:
        """Gives others a moment; what they were making may be there then, or be left over."""
        if self._others:
            time.sleep(WAIT_SECONDS)
            self._left.extend(self._others)
            self._others.clear()
