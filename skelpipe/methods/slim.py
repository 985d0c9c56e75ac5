"""SLiM (arXiv 2603.10648): decoder-free masked feature modelling and global-local contrast.

Micro-batches go in, gradients and named losses come out. Letters: N samples, B bodies of all
samples, W frames of a view, J joints, S temporal tokens, D features, K prototypes. "Rows" are
(body, view) pairs in which the body is present; every loss is averaged over a sample's bodies, then
over samples (S8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skelpipe import distributed
from skelpipe.config import SLiMRecipe
from skelpipe.methods import prototypes
from skelpipe.methods.groups import mean_weights
from skelpipe.methods.koleo import koleo_gradient
from skelpipe.methods.momentum import update_teacher
from skelpipe.methods.slim_views import ViewGroup, draw_views
from skelpipe.models.encoder import build_encoder
from skelpipe.models.heads import PrototypeHead
from skelpipe.models.vit import Tokens
from skelpipe.optim import cosine
from skelpipe.skeleton import Topology
from skelpipe.stream.source import Batch
from skelpipe.views.masking import contiguous_subsets
from skelpipe.views.sampling import Bodies


class Network(nn.Module):
    """Encoder g and heads h_CL and h_MAE: the student, and the teacher of the same shape."""

    def __init__(self, recipe: SLiMRecipe, topology: Topology) -> None:
        super().__init__()
        self.encoder = build_encoder(recipe, topology)
        self.class_head = PrototypeHead(recipe.encoder.dim, **recipe.head.model_dump())
        self.patch_head = PrototypeHead(recipe.encoder.dim, **recipe.head.model_dump())


@dataclass(frozen=True)
class Part:
    """The views of a micro-batch, and how its terms enter the means over the global batch.

    Attributes:
        globals_, locals_: Of `draw_views`.
        token_T: View, step and joint of each masked token of the globals.
        sample_B: Number of the sample of each row of the globals, the same on all ranks.
        first_V: Of the masked tokens, the first of each view that has any.
        token_weight_T: Of each masked token of the globals: means over a view's tokens, then over
            a sample's bodies.
        student_P, teacher_P: Pairs of class tokens to compare: rows of the student's (globals, then
            locals) and of the teacher's globals.
        pair_weight_P: Of each pair: means over a sample's bodies.
        groups: How many views of samples have masked tokens, and how many have pairs.
    """

    globals_: ViewGroup
    locals_: list[ViewGroup]
    token_T: tuple[Tensor, ...]
    sample_B: Tensor
    first_V: Tensor
    token_weight_T: Tensor
    student_P: Tensor
    teacher_P: Tensor
    pair_weight_P: Tensor
    groups: tuple[int, int]


@dataclass(frozen=True)
class Taught:
    """What the teacher says of one kind of token: `prototypes.targets` of these.

    Attributes:
        rows: Bottleneck vectors, one tensor for each micro-batch.
        directions_KP: Prototypes.
        log_scaling_K: Of Sinkhorn-Knopp over the global batch.
        temperature: Of the targets.
    """

    rows: tuple[Tensor, ...]
    directions_KP: Tensor
    log_scaling_K: Tensor
    temperature: float


class SLiM(nn.Module):
    """Student, teacher and objective."""

    def __init__(self, recipe: SLiMRecipe, topology: Topology) -> None:
        super().__init__()
        self.recipe = recipe
        self.topology = topology
        self.student = Network(recipe, topology)
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self._subsets = contiguous_subsets(topology, recipe.mask.subset)

    def update_teacher(self, progress: float) -> None:
        """Move the teacher after a step; ``progress`` is the share of the run done, in [0, 1]."""
        update_teacher(self.teacher, self.student, cosine(*self.recipe.optim.momentum, progress))

    def teacher_temperature(self, progress: float) -> float:
        """Linear from the first to the last temperature over the warm-up share (S25)."""
        first, last = self.recipe.loss.teacher_temperature
        share = self.recipe.loss.teacher_warmup
        return last if progress >= share else first + (last - first) * progress / share

    def learn(self, batch: Batch, progress: float, micro: int | None = None) -> dict[str, Tensor]:
        """Add the gradient of a global batch's objective to the student's, and tell its losses.

        The batch is this rank's part of the global batch, from which the student learns in
        micro-batches. However it is divided, the losses are the same and the gradients add up to
        the same over the ranks: all views are drawn and the teacher sees them before the student
        learns, so that its targets, KoLeo's neighbours and the numbers that means divide by are of
        the global batch.

        Args:
            batch: Samples with the keys of their draws.
            progress: Share of the run done, in [0, 1].
            micro: Samples at once; all where None.

        Returns:
            "loss" (Eq. 7 and KoLeo, to be minimised) and its terms, of the global batch: "mfm"
            (Eq. 4), "glcl" (Eq. 6), "koleo"; and in nats "class_entropy" and "patch_entropy" of
            the teacher's targets (the latter of the first masked token of each view) and
            "class_spread" (entropy of the class targets' mean; ln K when all prototypes are used
            alike). What belongs to a term of weight 0 is left out.
        """
        settings = self.recipe.loss
        device = batch.key_N.device
        with torch.no_grad():
            with torch.autocast(device.type, enabled=False):  # metres stay float32
                parts = self._parts(batch, micro or len(batch))
            counts = torch.tensor([part.groups for part in parts], device=device).sum(0)
            mask_groups, pair_groups = distributed.sum_over_ranks(counts).clamp(min=1)
            classes, patches = self._teach(parts, self.teacher_temperature(progress))

        ahead = self._koleo_ahead(parts)
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            tokens, class_BD = self._see(part.globals_)
            terms: dict[str, Tensor] = {}
            if patches is not None:
                terms["mfm"] = self._match(
                    self.student.patch_head,
                    tokens.patch_BSJD[part.token_T],
                    patches,
                    patches.rows[number],
                    part.token_weight_T / mask_groups,
                )
            if classes is not None:
                local_BD = [self.student.encoder(v.x_BWJC, v.mask_BSJ)[0] for v in part.locals_]
                terms["glcl"] = self._match(
                    self.student.class_head,
                    torch.cat([class_BD, *local_BD])[part.student_P],
                    classes,
                    classes.rows[number][part.teacher_P],
                    part.pair_weight_P / pair_groups,
                )
            loss = sum(
                (weight * terms[name] for name, weight in self._weights().items() if name in terms),
                start=class_BD.new_zeros(()),
            )
            if settings.koleo_weight:
                value, pull_BD = ahead[number] if ahead else self._koleo(part, class_BD, len(parts))
                loss = loss + settings.koleo_weight * (class_BD * pull_BD).sum()
                terms["koleo"] = value
            loss.backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach().double()
        return self._told(sums, parts, classes, patches)

    def views(self, batch: Batch) -> tuple[Bodies, ViewGroup, list[ViewGroup]]:
        """All views of a batch, of `slim_views.draw_views`."""
        return draw_views(batch, self.recipe, self.topology, self._subsets)

    def _weights(self) -> dict[str, float]:
        settings = self.recipe.loss
        return {
            "mfm": settings.mask_weight,
            "glcl": settings.contrast_weight,
            "koleo": settings.koleo_weight,
        }

    def _parts(self, batch: Batch, micro: int) -> list[Part]:
        """Draw all views at once, since their many small operations cost by the call, and cut."""
        bodies, globals_, locals_ = self.views(batch)
        groups = [globals_, *locals_]
        edge_M = torch.arange(0, len(batch) + micro, micro, device=bodies.sample_B.device)
        body_M = torch.searchsorted(bodies.sample_B, edge_M)
        rows = torch.stack([torch.searchsorted(views.body_B, body_M) for views in groups]).tolist()
        return [
            self._part(
                batch,
                bodies,
                *(
                    views[first[part] : first[part + 1]]
                    for views, first in zip(groups, rows, strict=True)
                ),
            )
            for part in range(len(edge_M) - 1)
        ]

    def _part(self, batch: Batch, bodies: Bodies, globals_: ViewGroup, *locals_: ViewGroup) -> Part:
        """Weigh what will be compared in the views of a micro-batch."""
        sample_B = bodies.sample_B[globals_.body_B]
        token_T = globals_.mask_BSJ.nonzero(as_tuple=True)
        masked_B = globals_.mask_BSJ.flatten(1).sum(1)
        learns = masked_B.nonzero().squeeze(1)
        weight_B, mask_groups = mean_weights((sample_B * 2 + globals_.view_B)[learns])
        token_weight_T = (weight_B / masked_B[learns]).repeat_interleave(
            masked_B[learns], output_size=len(token_T[0])
        )

        body = torch.cat([globals_.body_B, *(group.body_B for group in locals_)])
        view = torch.cat([globals_.view_B, *(group.view_B for group in locals_)])
        # A global view is compared with the teacher's other global view.
        anchor = torch.cat([1 - globals_.view_B, *(group.anchor_B for group in locals_)])
        place = torch.full((len(bodies.sample_B), 2), -1, device=body.device)
        place[globals_.body_B, globals_.view_B] = torch.arange(
            len(globals_.body_B), device=body.device
        )
        teacher = place[body, anchor]
        student_P = (teacher >= 0).nonzero().squeeze(1)  # the body is in the anchor too
        spec = self.recipe.views
        views = 2 + spec.anchors * spec.crops * len(spec.local)
        pair_weight_P, pair_groups = mean_weights(
            bodies.sample_B[body[student_P]] * views + view[student_P]
        )
        return Part(
            globals_=globals_,
            locals_=list(locals_),
            token_T=token_T,
            sample_B=batch.row_N[sample_B],
            first_V=(masked_B.cumsum(0) - masked_B)[learns],
            token_weight_T=token_weight_T,
            student_P=student_P,
            teacher_P=teacher[student_P],
            pair_weight_P=pair_weight_P,
            groups=(mask_groups, pair_groups),
        )

    def _teach(
        self, parts: Sequence[Part], temperature: float
    ) -> tuple[Taught | None, Taught | None]:
        """Targets from the unmasked globals: of class tokens, and of masked tokens.

        Sinkhorn-Knopp runs over both globals jointly, for class tokens and for masked tokens.
        """
        settings = self.recipe.loss
        rows: dict[str, list[Tensor]] = {"class": [], "patch": []}
        for part in parts:
            tokens = self.teacher.encoder(part.globals_.x_BWJC)
            if settings.contrast_weight:
                rows["class"].append(self.teacher.class_head(tokens.class_BD))
            if settings.mask_weight:
                rows["patch"].append(self.teacher.patch_head(tokens.patch_BSJD[part.token_T]))

        def assign(head: PrototypeHead, parts: list[Tensor]) -> Taught | None:
            if not parts:
                return None
            directions_KP = head.directions()
            log_scaling_K = prototypes.log_column_scaling(
                torch.cat(parts), directions_KP, temperature, settings.sinkhorn_iterations
            )
            return Taught(tuple(parts), directions_KP, log_scaling_K, temperature)

        return (
            assign(self.teacher.class_head, rows["class"]),
            assign(self.teacher.patch_head, rows["patch"]),
        )

    def _see(self, globals_: ViewGroup) -> tuple[Tokens, Tensor]:
        """The student's tokens of the masked globals (S37), and its class tokens of them.

        The latter are of the masked pass too, unless a clean one is asked for (S9).
        """
        tokens = self.student.encoder(globals_.x_BWJC, globals_.mask_BSJ)
        if self.recipe.loss.clean_pass:
            return tokens, self.student.encoder(globals_.x_BWJC).class_BD
        return tokens, tokens.class_BD

    def _match(
        self,
        head: PrototypeHead,
        tokens_ND: Tensor,
        taught: Taught,
        teacher_NP: Tensor,
        weight_N: Tensor,
    ) -> Tensor:
        """Cross-entropy of the student's tokens against the teacher's targets for them."""
        return prototypes.cross_entropy(
            head(tokens_ND),
            head.directions(),
            teacher_NP,
            taught.directions_KP,
            taught.log_scaling_K,
            weight_N,
            student_temperature=self.recipe.loss.student_temperature,
            teacher_temperature=taught.temperature,
        )

    def _koleo_ahead(self, parts: Sequence[Part]) -> list[tuple[Tensor, Tensor]] | None:
        """KoLeo's share and gradient of each micro-batch where one alone does not tell them.

        The neighbours may be in another micro-batch, so one more pass of the globals finds them.
        """
        settings = self.recipe.loss
        if not settings.koleo_weight or settings.koleo_scope == "local" or len(parts) == 1:
            return None
        with torch.no_grad():
            features = [self._see(part.globals_)[1] for part in parts]
        torch.clear_autocast_cache()  # older torch would use weights cast here, without gradients
        value, pull_BD = koleo_gradient(
            torch.cat(features),
            torch.cat([part.sample_B for part in parts]),
            torch.cat([part.globals_.view_B for part in parts]),
            gather=True,
        )
        share = value / len(parts) / distributed.world()
        return [(share, pull) for pull in pull_BD.split([len(rows) for rows in features])]

    def _koleo(self, part: Part, class_BD: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        """KoLeo's share and gradient of a micro-batch with neighbours in it and on other ranks."""
        alone = self.recipe.loss.koleo_scope == "local"
        value, pull_BD = koleo_gradient(
            class_BD, part.sample_B, part.globals_.view_B, gather=not alone
        )
        if alone:
            pull_BD = pull_BD / (parts * distributed.world())
        return value / parts / distributed.world(), pull_BD

    @torch.no_grad()
    def _told(
        self,
        sums: dict[str, Tensor],
        parts: Sequence[Part],
        classes: Taught | None,
        patches: Taught | None,
    ) -> dict[str, Tensor]:
        """Losses over all ranks, and what the targets are like."""
        names = list(sums)
        values = distributed.sum_over_ranks(torch.stack([sums[name] for name in names]))
        told = dict(zip(names, values, strict=True))
        weights = self._weights()
        told = {"loss": torch.stack([weights[name] * told[name] for name in names]).sum(), **told}
        if classes is not None:
            told["class_entropy"], mean_K = _target_statistics(classes, classes.rows)
            told["class_spread"] = torch.special.entr(mean_K).sum()
        if patches is not None:
            firsts = [
                rows_TP[part.first_V] for rows_TP, part in zip(patches.rows, parts, strict=True)
            ]
            told["patch_entropy"], _ = _target_statistics(patches, firsts)
        return told


def _target_statistics(taught: Taught, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean entropy of rows of all ranks, in nats, and the mean of their targets, shape (K,)."""
    rows_NP = torch.cat(list(parts))
    entropy, mass_K = prototypes.target_entropy(
        rows_NP, taught.directions_KP, taught.temperature, taught.log_scaling_K
    )
    total = torch.cat([entropy[None], mass_K, entropy.new_full((1,), len(rows_NP))])
    total = distributed.sum_over_ranks(total)
    total = total[:-1] / total[-1].clamp(min=1)
    return total[0], total[1:]


def chance_loss(recipe: SLiMRecipe) -> float:
    """ln K: the class-token loss of a student that tells nothing apart; it collapsed if stuck."""
    return math.log(recipe.head.prototypes)
