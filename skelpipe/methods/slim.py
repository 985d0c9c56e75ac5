"""SLiM (arXiv 2603.10648): decoder-free masked feature modelling and global-local contrast.

A batch goes in, named losses come out. Letters: N samples, B bodies of all samples, W frames of a
view, J joints, S temporal tokens, D features, K prototypes. "Rows" are (body, view) pairs in which
the body is present; every loss is averaged over a sample's bodies, then over samples (S8).
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from skelpipe.config import Recipe
from skelpipe.methods import prototypes
from skelpipe.methods.momentum import update_teacher
from skelpipe.methods.slim_views import ViewGroup, draw_views
from skelpipe.models.heads import PrototypeHead
from skelpipe.models.vit import SkeletonViT
from skelpipe.optim import cosine
from skelpipe.skeleton import Topology
from skelpipe.stream.source import Batch
from skelpipe.views.masking import contiguous_subsets
from skelpipe.views.sampling import Bodies


class Network(nn.Module):
    """Encoder g and heads h_CL and h_MAE: the student, and the teacher of the same shape."""

    def __init__(self, recipe: Recipe, topology: Topology) -> None:
        super().__init__()
        self.encoder = SkeletonViT(len(topology.joints), **recipe.encoder.model_dump())
        self.class_head = PrototypeHead(recipe.encoder.dim, **recipe.head.model_dump())
        self.patch_head = PrototypeHead(recipe.encoder.dim, **recipe.head.model_dump())


class SLiM(nn.Module):
    """Student, teacher and objective."""

    def __init__(self, recipe: Recipe, topology: Topology) -> None:
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

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The objective of a batch and its parts.

        Args:
            batch: N samples with the keys of their draws.
            progress: Share of the run done, in [0, 1].

        Returns:
            "loss" (Eq. 7 and KoLeo, to be minimised), "mfm" (Eq. 4), "glcl" (Eq. 6), "koleo", and
            without gradient "class_entropy", "patch_entropy" (of the teacher's targets, nats) and
            "class_spread" (entropy of their mean; ln K when all prototypes are used alike).
        """
        settings = self.recipe.loss
        with torch.no_grad():
            with torch.autocast(batch.key_N.device.type, enabled=False):  # metres stay float32
                bodies, globals_, locals_ = self.views(batch)
            targets_class, targets_patch = self._teach(globals_, self.teacher_temperature(progress))

        # Student: both globals masked (S37), and for the class token too unless asked (S9).
        tokens = self.student.encoder(globals_.x_BWJC, globals_.mask_BSJ)
        student_patch = self.student.patch_head(tokens.patch_BSJD[globals_.mask_BSJ])
        global_class = tokens.class_BD
        if settings.clean_pass:
            global_class = self.student.encoder(globals_.x_BWJC).class_BD
        local_class = [
            self.student.encoder(group.x_BWJC, group.mask_BSJ).class_BD for group in locals_
        ]
        student_class = self.student.class_head(torch.cat([global_class, *local_class]))

        mfm = self._masked_modelling(targets_patch, student_patch, globals_, bodies)
        glcl = self._contrast(targets_class, student_class, globals_, locals_, bodies)
        # S23: on the student's global class tokens before the head, each view by itself.
        koleo = torch.stack(
            [
                prototypes.koleo(
                    global_class[globals_.view_B == view],
                    bodies.sample_B[globals_.body_B[globals_.view_B == view]],
                )
                for view in (0, 1)
            ]
        ).sum()
        loss = (
            settings.mask_weight * mfm
            + settings.contrast_weight * glcl
            + settings.koleo_weight * koleo
        )
        with torch.no_grad():
            class_entropy, class_spread = prototypes.target_entropy(targets_class)
            patch_entropy, _ = prototypes.target_entropy(targets_patch)
        return {
            "loss": loss,
            "mfm": mfm,
            "glcl": glcl,
            "koleo": koleo,
            "class_entropy": class_entropy,
            "class_spread": class_spread,
            "patch_entropy": patch_entropy,
        }

    def views(self, batch: Batch) -> tuple[Bodies, ViewGroup, list[ViewGroup]]:
        """All views of a batch, of `slim_views.draw_views`."""
        return draw_views(batch, self.recipe, self.topology, self._subsets)

    def _teach(self, globals_: ViewGroup, temperature: float) -> tuple[Tensor, Tensor]:
        """Targets from the unmasked globals: of class tokens (rows, K), of masked tokens (., K).

        Sinkhorn-Knopp runs over both globals jointly, for class tokens and for masked tokens.
        """
        tokens = self.teacher.encoder(globals_.x_BWJC)
        iterations = self.recipe.loss.sinkhorn_iterations

        def assign(head: PrototypeHead, x_ND: Tensor) -> Tensor:
            logits = head(x_ND) @ head.directions().T
            return prototypes.sinkhorn_knopp(logits, temperature, iterations)

        return (
            assign(self.teacher.class_head, tokens.class_BD),
            assign(self.teacher.patch_head, tokens.patch_BSJD[globals_.mask_BSJ]),
        )

    def _masked_modelling(
        self, target_NK: Tensor, student_NP: Tensor, globals_: ViewGroup, bodies: Bodies
    ) -> Tensor:
        """Eq. 4, averaged over a view's masked tokens, then bodies, views and samples (S10)."""
        terms = prototypes.cross_entropy(
            target_NK,
            student_NP,
            self.student.patch_head.directions(),
            self.recipe.loss.student_temperature,
        )
        mask = globals_.mask_BSJ.flatten(1)
        per_row = torch.zeros(mask.shape, device=terms.device).masked_scatter(mask, terms).sum(1)
        sample = bodies.sample_B[globals_.body_B]
        return prototypes.mean_over_groups(per_row / mask.sum(1), sample * 2 + globals_.view_B)

    def _contrast(
        self,
        target_NK: Tensor,
        student_NP: Tensor,
        globals_: ViewGroup,
        locals_: list[ViewGroup],
        bodies: Bodies,
    ) -> Tensor:
        """Eq. 6, averaged over its pairs (S10): an anchor with the other global and its locals."""
        body = torch.cat([globals_.body_B, *(group.body_B for group in locals_)])
        view = torch.cat([globals_.view_B, *(group.view_B for group in locals_)])
        # A global view is compared with the teacher's other global view.
        anchor = torch.cat([1 - globals_.view_B, *(group.anchor_B for group in locals_)])
        place = torch.full((len(bodies.sample_B), 2), -1, device=body.device)
        place[globals_.body_B, globals_.view_B] = torch.arange(
            len(globals_.body_B), device=body.device
        )
        teacher_row = place[body, anchor]
        both = teacher_row >= 0  # the body is present in the anchor too
        terms = prototypes.cross_entropy(
            target_NK[teacher_row[both]],
            student_NP[both],
            self.student.class_head.directions(),
            self.recipe.loss.student_temperature,
        )
        views = int(view.max()) + 1
        return prototypes.mean_over_groups(terms, bodies.sample_B[body[both]] * views + view[both])


def chance_loss(recipe: Recipe) -> float:
    """ln K: the class-token loss of a student that tells nothing apart; it collapsed if stuck."""
    return math.log(recipe.head.prototypes)
