"""A job's LoRAs, embeddings and hypernetworks: which its prompts mean, and what is amiss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.networks.adapters import Lora
from middleware_api.container.networks.hypernetworks import Hypernetwork
from middleware_api.container.networks.patches import Patch, UsedHypernetwork, UsedLora, patch_of
from middleware_api.container.prompts.embeddings import Embedding
from middleware_api.container.prompts.networks import LoraAsk, Networks


class JobNetworks:
    """Lives as long as its job: what networks make of a model is reckoned once."""

    def __init__(
        self,
        loras: Sequence[Lora] = (),
        embeddings: Sequence[Embedding] = (),
        hypernetworks: Sequence[Hypernetwork] = (),
    ) -> None:
        self._loras, self._embeddings = loras, embeddings
        self._hypernetworks = {each.name: each for each in hypernetworks}
        self._patches: dict[tuple[int, Networks], Patch] = {}

    def patch(self, model: StableDiffusion, asked: Networks) -> Patch:
        """What the networks that are there make of this model."""
        key = (id(model.unet), asked)
        if key not in self._patches:
            hypernetworks = [
                UsedHypernetwork(self._hypernetworks[ask.name], ask.weight)
                for ask in asked.hypernetworks
                if ask.name in self._hypernetworks
            ]
            loras = [used for used in self.loras(asked) if not _is_foreign(used.lora, model)]
            self._patches[key] = patch_of(model, loras, hypernetworks)
        return self._patches[key]

    def loras(self, asked: Networks) -> list[UsedLora]:
        """Those that are there, in the prompt's order."""
        found = [(ask, self._lora(ask)) for ask in asked.loras]
        return [
            UsedLora(lora, a.text, a.unet, a.rank, a.blocks)
            for a, lora in found
            if lora is not None
        ]

    def lora_hashes(self, asked: Networks) -> dict[str, str]:
        """By the names that the prompt uses."""
        found = [(ask.name, self._lora(ask)) for ask in asked.loras]
        return {name: lora.short_hash for name, lora in found if lora is not None}

    def embeddings(self, model: StableDiffusion) -> list[Embedding]:
        """Those that this model can read."""
        return [each for each in self._embeddings if each.widths == _widths(model)]

    def problems(self, model: StableDiffusion, asked: Networks) -> list[str]:
        """A sentence for each network that the pictures will not show in full."""
        found = [*asked.problems]
        for name in dict.fromkeys(ask.name for ask in asked.loras if self._lora(ask) is None):
            found.append(_missing("LoRA", name, "Lora"))
        for ask in asked.hypernetworks:
            if ask.name not in self._hypernetworks:
                found.append(_missing("Hypernetwork", ask.name, "hypernetworks"))
        for used in self.loras(asked):
            if used.lora.unread:
                found.append(_unread(used.lora))
            found += _misfit(used.lora, model, self.patch(model, asked).unfit)
        for each in self._embeddings:
            if each.widths != _widths(model):
                found.append(
                    f"Embedding {each.name} was made for another kind of model than {model.name}, "
                    f"which is of {model.family.name}: it was left out."
                )
        return found

    def unused(self, asked: Sequence[Networks]) -> list[str]:
        """A sentence for each LoRA of the job that no prompt means."""
        meant = {used.lora.name for each in asked for used in self.loras(each)}
        names = [lora.name for lora in self._loras if lora.name not in meant]
        return [f"Lora file {name} is not named by the request and was ignored." for name in names]

    def _lora(self, ask: LoraAsk) -> Lora | None:
        """By its file's name, or else by the name it was trained under."""
        named = [lora for lora in self._loras if lora.name == ask.name]
        return next(iter([*named, *(one for one in self._loras if one.alias == ask.name)]), None)


def _misfit(lora: Lora, model: StableDiffusion, unfit: Mapping[str, int]) -> Iterator[str]:
    """What of a LoRA this model has no place for."""
    count = unfit.get(lora.name, 0)
    if _is_foreign(lora, model):
        yield (
            f"LoRA {lora.name} was made for {lora.family} and {model.name} is of "
            f"{model.family.name}: it was left out."
        )
    elif count == len(lora.layers):
        yield (
            f"LoRA {lora.name} was made for another kind of model than {model.name}, which is "
            f"of {model.family.name}: it was left out."
        )
    elif count:
        yield (
            f"LoRA {lora.name}: {count} of its layers do not fit {model.name} and were left out."
        )


def _unread(lora: Lora) -> str:
    first = min(lora.unread)
    return (
        f"LoRA {lora.name}: {len(lora.unread)} of its layers are of a kind that this engine does "
        f"not read and were left out, {first} ({', '.join(lora.unread[first])}) among them."
    )


def _is_foreign(lora: Lora, model: StableDiffusion) -> bool:
    """Whether its file names another family; a refiner counts as one of SDXL."""
    return bool(lora.family) and not model.family.name.startswith(lora.family)


def _widths(model: StableDiffusion) -> dict[str, int]:
    """What an embedding must have for this model's encoders."""
    return {each.source.embedding: each.width for each in model.text_encoders}


def _missing(kind: str, name: str, folder: str) -> str:
    return (
        f"{kind} {name!r} is not among the job's {folder} files and was left out. Add it to the "
        "job's models."
    )
