"""PCM3 (ACM MM 2023): prompted contrast with masked motion modelling.

A batch goes in, gradients and named losses come out, computed as the released code does (its
deviations from the paper are named where they are followed). Letters: N samples of this rank, G of
the global batch, T frames, C channels (all coordinates of a frame), D features, P dimensions of
embeddings, K keys in the queue.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelpipe import distributed
from skelpipe.config import PCM3Recipe
from skelpipe.methods.momentum import update_teacher
from skelpipe.methods.pcm3_views import Views, check_fit, draw_views
from skelpipe.methods.queue import KeyQueue
from skelpipe.models.decoder import MotionDecoder
from skelpipe.models.encoder import build_encoder
from skelpipe.models.heads import Projector
from skelpipe.models.prompts import DomainPrompts, TaskPrompts
from skelpipe.skeleton import Topology
from skelpipe.stream.source import Batch

_VIEWS = ("intra", "inter", "mask", "predict")


class Query(nn.Module):
    """What is trained: encoder f_q, projector h_q, the decoder, and the prompts."""

    def __init__(self, recipe: PCM3Recipe, topology: Topology) -> None:
        super().__init__()
        channels = len(topology.joints) * 3 * recipe.views.bodies
        features = 2 * recipe.encoder.hidden
        self.encoder = build_encoder(recipe, topology)
        self.projector = Projector(features, out=recipe.loss.embedding)
        self.decoder = MotionDecoder(features, **recipe.decoder.model_dump(), channels=channels)
        self.domain_prompts = (
            None if recipe.prompts.domain == "none" else DomainPrompts(_VIEWS, channels)
        )
        self.task_prompts = (
            TaskPrompts(recipe.encoder.hidden, recipe.prompts.width)
            if recipe.prompts.task
            else None
        )


class Key(nn.Module):
    """The moving average f_k, h_k of encoder and projector, and the keys that they have made."""

    def __init__(self, query: Query, recipe: PCM3Recipe) -> None:
        super().__init__()
        self.encoder = deepcopy(query.encoder)
        self.projector = deepcopy(query.projector)
        self.queue = KeyQueue(recipe.loss.queue, recipe.loss.embedding)
        self.requires_grad_(False)


class PCM3(nn.Module):
    """Query ("student"), key ("teacher") and objective."""

    def __init__(self, recipe: PCM3Recipe, topology: Topology) -> None:
        super().__init__()
        check_fit(recipe, topology)
        self.recipe = recipe
        self.topology = topology
        self.student = Query(recipe, topology)
        self.teacher = Key(self.student, recipe)

    def update_teacher(self, progress: float) -> None:
        """Move the key network after a step: as the released code does before the next one."""
        momentum = self.recipe.optim.key_momentum
        update_teacher(self.teacher.encoder, self.student.encoder, momentum)
        update_teacher(self.teacher.projector, self.student.projector, momentum)

    def views(self, batch: Batch) -> Views:
        """All views of a batch, of `pcm3_views.draw_views`."""
        return draw_views(batch, self.recipe, self.topology)

    def learn(self, batch: Batch, progress: float, micro: int | None = None) -> dict[str, Tensor]:
        """Add the gradient of a global batch's objective to the query's, and tell its losses.

        The batch is this rank's part of the global batch. Each pass through the encoder is followed
        by its backward pass, so that one at a time is in memory. What carries gradient:

        - the masked error (Eq. 4): the masked pass's encoder, the prediction prompt, the decoder;
        - the predicted view's terms: the query encoder, and the decoder through a second pass of
          it, of features and prompt that are detached (Sec. 3.3: nothing where
          ``loss.detach_predicted``), but not the masked pass's encoder;
        - all contrastive terms: the contrast prompt and the projector; no key carries any.

        Args:
            batch: Samples with the keys of their draws.
            progress: Share of the run done; nothing here depends on it.
            micro: None, or all samples: batch norms take their statistics of the whole batch.

        Returns:
            "loss" (Eq. 7, to be minimised) and its terms, of the global batch: InfoNCE (Eq. 1, in
            nats) of each positive ("intra", "inter", "mask", "predict"), their KL terms ("kl_…",
            Eq. 3 less the teacher's entropy, P4), and "error" (Eq. 4 a coordinate, P3).
        """
        if micro is not None and micro < len(batch):
            raise ValueError("PCM3 takes no micro-batches")
        settings = self.recipe.loss
        with torch.no_grad(), torch.autocast(batch.key_N.device.type, enabled=False):
            views = self.views(batch)
        own_NP, all_GP = self._keys(views, batch.key)
        terms: dict[str, Tensor] = {}

        def contrast(view: str, feature_NTD: Tensor, key_NP: Tensor) -> Tensor:
            """Loss of a positive pair; its terms are noted."""
            query_NP = self._embed(self.student, feature_NTD, batch.key, view)
            nce, kl = self._compare(query_NP, key_NP)
            terms[view] = nce.detach()
            if settings.kl_weight:
                terms[f"kl_{view}"] = kl.detach()
            return nce + settings.kl_weight * kl

        if "intra" in settings.positives:
            feature_NTD = self._encode(self.student, views.query_NTC, "intra")
            contrast("intra", feature_NTD, own_NP).backward()
        if settings.mask_weight or {"mask", "predict"} & set(settings.positives):
            shown_NTC = torch.where(views.masked_NTC, 0, views.clip_NTC)
            feature_NTD = self._encode(self.student, shown_NTC, "mask")
            told_NTD = self._prompted(feature_NTD, "prediction", batch.key, "prediction")
            losses = []
            if "mask" in settings.positives:
                losses.append(contrast("mask", feature_NTD, own_NP))
            if settings.mask_weight:
                error = self._error(told_NTD, views)
                terms["error"] = error.detach()
                losses.append(settings.mask_weight * error)
            if losses:
                torch.stack(losses).sum().backward()
            if "predict" in settings.positives:
                with torch.set_grad_enabled(not settings.detach_predicted):
                    predicted_NTC = self.student.decoder(told_NTD.detach()).to(shown_NTC.dtype)
                filled_NTC = torch.where(views.masked_NTC, predicted_NTC, shown_NTC)
                feature_NTD = self._encode(self.student, filled_NTC, "predict")
                contrast("predict", feature_NTD, own_NP).backward()
        if "inter" in settings.positives:
            share = views.share_N[:, None].to(own_NP.dtype)
            mixed_NP = F.normalize(own_NP * (1 - share) + all_GP[views.partner_N] * share, dim=-1)
            feature_NTD = self._encode(self.student, views.mixed_NTC, "inter")
            contrast("inter", feature_NTD, mixed_NP).backward()
        self.teacher.queue.enqueue(all_GP)  # clean keys alone (P13), once they were compared
        return self._told(terms)

    @torch.no_grad()
    def _keys(self, views: Views, key: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the key views: of this rank, (N, P), and of all, (G, P); none if unused."""
        if not self.recipe.loss.positives:
            nothing = self.teacher.queue.keys_KP[:0]
            return nothing, nothing
        feature_NTD = self._encode(self.teacher, views.key_NTC, "intra")
        own_NP = self._embed(self.teacher, feature_NTD, key, "key")
        return own_NP, distributed.gather_rows(own_NP)[0]

    def _encode(self, network: Query | Key, x_NTC: Tensor, view: str) -> Tensor:
        """Features of a view of all frames, (N, T, D), with the view's domain prompt (P17)."""
        prompts = self.student.domain_prompts
        if prompts is None:
            out: Tensor = network.encoder(x_NTC)
        elif self.recipe.prompts.domain == "before_bn":
            out = network.encoder(x_NTC + prompts[view])
        else:
            out = network.encoder(x_NTC, prompts[view])
        return out

    def _prompted(self, feature: Tensor, task: str, key: Tensor, use: str) -> Tensor:
        prompts = self.student.task_prompts
        return feature if prompts is None else prompts(feature, task, key, use)

    def _embed(self, network: Query | Key, feature_NTD: Tensor, key: Tensor, use: str) -> Tensor:
        """Embedding of a clip, (N, P), with the contrast prompt."""
        pooled_ND = network.encoder.pool(feature_NTD)
        out: Tensor = network.projector(self._prompted(pooled_ND, "contrast", key, use))
        return out

    def _compare(self, query_NP: Tensor, key_NP: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's share of InfoNCE (Eq. 1) and of KL over all of the queue (Eq. 3)."""
        settings, queue_KP = self.recipe.loss, self.teacher.queue.keys_KP
        samples = len(query_NP) * distributed.world()
        with torch.autocast(query_NP.device.type, enabled=False):  # similarities stay float32
            alike_N = (query_NP * key_NP).sum(1)
            negative_NK = query_NP @ queue_KP.T
            logits = torch.cat([alike_N[:, None], negative_NK], 1) / settings.temperature
            nce = (logits.logsumexp(1) - logits[:, 0]).sum() / samples
            if not settings.kl_weight:
                return nce, nce.new_zeros(())
            student = F.log_softmax(negative_NK / settings.student_temperature, 1)
            teacher = F.log_softmax(key_NP @ queue_KP.T / settings.teacher_temperature, 1)
            kl = F.kl_div(student, teacher, reduction="sum", log_target=True) / samples
        return nce, kl

    def _error(self, told_NTD: Tensor, views: Views) -> Tensor:
        """This rank's share of the squared error a masked coordinate, in metres squared (P3)."""
        predicted_NTC: Tensor = self.student.decoder(told_NTD).to(views.clip_NTC.dtype)
        count = distributed.sum_over_ranks(views.masked_NTC.sum())
        square_NTC = (predicted_NTC - views.clip_NTC).square()
        return torch.where(views.masked_NTC, square_NTC, 0).sum() / count

    def _told(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses over all ranks, and what they add up to."""
        names = list(terms)
        values = torch.stack([terms[name].double() for name in names])
        told = dict(zip(names, distributed.sum_over_ranks(values), strict=True))
        settings = self.recipe.loss
        weights = {"error": settings.mask_weight} | {f"kl_{v}": settings.kl_weight for v in _VIEWS}
        loss = torch.stack([weights.get(name, 1.0) * told[name] for name in names]).sum()
        return {"loss": loss, **told}
