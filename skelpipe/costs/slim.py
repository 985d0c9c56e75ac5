"""What one training step of SLiM must compute and move at least, and what it keeps in memory."""

from __future__ import annotations

from skelpipe.config import SLiMRecipe
from skelpipe.costs.roofline import DTYPES, STORED, Work


def step_rows(recipe: SLiMRecipe, *, samples: int, bodies: float, joints: int) -> list[Work]:
    """The work of one step, piece by piece.

    Operations. A body has its views (two globals, ``views.anchors * views.crops`` of each local
    size), each of T / P_T * J + 1 + registers tokens. The student goes forward and back, and back
    has two products for each one forward (one for the patch projection, whose input needs no
    gradient); the teacher goes forward. A row of a head is a class token of a view or a masked
    token of a global view (the mean share of them). Prototypes: a row of K logits takes a product
    with the teacher's directions, one with the student's and two for the gradients. As no logits
    are kept, the teacher's are made again: once in each of Sinkhorn's iterations, and once more
    beside the student's row in the loss. "Recomputed" is what that adds to the four.

    Bytes, in the run's precision unless it says otherwise:

    - Encoder and head MLPs: every tensor between two products (and before a norm) is written once
      and read once; by the student's backward pass, or by the teacher's next product. Of a block
      8 + 2 * mlp_ratio times D a token: two inputs of norms, their results, q, k, v, what was
      attended, and the MLP's hidden features before and after GELU. Attention's scores stay on
      the chip. The student's weights are read forward and back and their gradients written in
      float32 in every pass (globals, and each size of locals); the teacher's are read.
    - Prototypes, a chunk of rows at a time: the teacher's logits are written and read once each
      time they are made; the student's are written and read, and their gradient is written and
      read by two products. Directions are read once a pass, their gradient written in float32.
    - Optimiser, float32: gradients are read for their norm; AdamW reads weight, gradient and two
      moments, and writes all but the gradient. Teacher: reads both networks and writes one.

    The views themselves, elementwise operations and what moves between ranks are left out.

    Args:
        recipe: What is run.
        samples: Samples of the step.
        bodies: Mean bodies of a sample.
        joints: J.
    """
    views, loss, dim, head = recipe.views, recipe.loss, recipe.encoder.dim, recipe.head
    size, stored = DTYPES[recipe.train.precision].itemsize, STORED[recipe.train.precision]
    in_encoder, in_head = parameters(recipe, joints)
    people = samples * bodies
    crops = views.anchors * views.crops

    def student(what: str, sizes: list[tuple[int, int]]) -> Work:
        """One pass for each (number of views, frames)."""
        patches = sum(count * patch_macs(recipe, frames, joints) for count, frames in sizes)
        blocks = sum(count * block_macs(recipe, frames, joints) for count, frames in sizes)
        cells = sum(count * cells_of(recipe, frames, joints) for count, frames in sizes)
        weights = len(sizes) * in_encoder * (2 * size + stored)
        return Work(
            what, 2 * people * (2 * patches + 3 * blocks), 2 * size * people * cells + weights
        )

    macs = patch_macs(recipe, views.frames, joints) + block_macs(recipe, views.frames, joints)
    cells = cells_of(recipe, views.frames, joints)
    rows = [
        student(
            "encoder, student's globals",
            [(2, views.frames)] * (2 if loss.clean_pass else 1),
        ),
        student("encoder, student's locals", [(crops, local.frames) for local in views.local]),
        Work(
            "encoder, teacher",
            2 * people * 2 * macs,
            2 * size * people * 2 * cells + in_encoder * size,
        ),
    ]

    masked = people * masked_tokens(recipe, joints)
    student_rows = masked + people * (2 + crops * len(views.local))
    teacher_rows = masked + people * 2
    mlp = dim * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    cells = dim + 4 * head.hidden + 2 * head.bottleneck
    directions = head.prototypes * head.bottleneck
    rows.append(
        Work(
            "head MLPs",
            2 * mlp * (3 * student_rows + teacher_rows),
            2 * size * cells * (student_rows + teacher_rows)
            + 2 * (in_head - directions) * (3 * size + stored),
        )
    )
    again = teacher_rows * (loss.sinkhorn_iterations - 1) + student_rows
    rows += [
        Work(
            "prototypes",
            2 * directions * (3 * student_rows + teacher_rows),
            size * head.prototypes * (5 * student_rows + 2 * teacher_rows)
            + 2 * directions * (2 * size + stored),
        ),
        Work(
            "prototypes, recomputed",
            2 * directions * again,
            size * head.prototypes * 2 * again + 2 * directions * loss.sinkhorn_iterations * size,
        ),
    ]
    weights = in_encoder + 2 * in_head
    rows += [
        Work("optimiser", 0.0, 8 * stored * weights),
        Work("teacher's average", 0.0, 3 * stored * weights),
    ]
    return rows


def tokens_of(recipe: SLiMRecipe, frames: int, joints: int) -> int:
    """Tokens of a view: patches, class token if there is one, and registers."""
    encoder = recipe.encoder
    return frames // encoder.patch_frames * joints + encoder.class_token + encoder.registers


def block_macs(recipe: SLiMRecipe, frames: int, joints: int) -> int:
    """Multiply-adds of all blocks on one view: layers * (N * (4 + 2 h) D^2 + 2 N^2 D)."""
    encoder, tokens = recipe.encoder, tokens_of(recipe, frames, joints)
    hidden = int(encoder.dim * encoder.mlp_ratio)
    of_weights = tokens * encoder.dim * (4 * encoder.dim + 2 * hidden)
    return encoder.layers * (of_weights + 2 * tokens**2 * encoder.dim)


def patch_macs(recipe: SLiMRecipe, frames: int, joints: int) -> int:
    """Multiply-adds of projecting the patches of one view: every coordinate with D weights."""
    return frames * joints * 3 * recipe.encoder.dim


def masked_tokens(recipe: SLiMRecipe, joints: int) -> float:
    """Masked tokens of a body's two global views on average (S7)."""
    if recipe.mask.global_kind == "none":
        return 0.0
    patches = recipe.views.frames // recipe.encoder.patch_frames * joints
    return 2 * patches * sum(recipe.mask.ratio) / 2


def parameters(recipe: SLiMRecipe, joints: int) -> tuple[int, int]:
    """Numbers that the encoder holds, and that each of the two heads holds."""
    encoder, head = recipe.encoder, recipe.head
    dim, hidden = encoder.dim, int(encoder.dim * encoder.mlp_ratio)
    block = 4 * dim**2 + 2 * dim * hidden + 9 * dim + hidden  # with biases and two norms
    tokens = joints + 1 + encoder.class_token + encoder.registers  # one is the mask token
    if encoder.positions == "learned":
        tokens += recipe.most_steps
    start = dim * (3 * encoder.patch_frames + 1) + dim * tokens
    mlp = dim * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    mlp += 2 * head.hidden + head.bottleneck
    return (
        start + encoder.layers * block + 2 * dim,
        mlp + head.prototypes * head.bottleneck,
    )


def cells_of(recipe: SLiMRecipe, frames: int, joints: int) -> float:
    """Numbers that one view writes between the encoder's products."""
    encoder, tokens = recipe.encoder, tokens_of(recipe, frames, joints)
    block = 8 * encoder.dim + 2 * int(encoder.dim * encoder.mlp_ratio)
    return frames * joints * 3 + tokens * (encoder.layers * block + 2 * encoder.dim)


def fixed_memory(recipe: SLiMRecipe, joints: int) -> float:
    """Bytes whatever the micro-batch: weights, optimiser, gradients, and a chunk of logits."""
    of_encoder, of_head = parameters(recipe, joints)
    size, head = DTYPES[recipe.train.precision].itemsize, recipe.head
    # Student, teacher, gradients (and their sum over ranks) and two moments; of the prototypes
    # also both directions and the gradient before normalising, in both heads.
    weights = 6 * 4 * (of_encoder + 2 * of_head) + 6 * 4 * head.prototypes * head.bottleneck
    return weights + 2 * 2048 * head.prototypes * size


def sample_memory(recipe: SLiMRecipe, *, bodies: float, joints: int) -> float:
    """Bytes that one sample's forward pass keeps for its backward pass."""
    views, head = recipe.views, recipe.head
    cells = 2 * cells_of(recipe, views.frames, joints) * (2 if recipe.loss.clean_pass else 1)
    for local in views.local:
        cells += views.anchors * views.crops * cells_of(recipe, local.frames, joints)
    cells += masked_tokens(recipe, joints) * (4 * head.hidden + 4 * head.bottleneck)
    return 1.2 * bodies * cells * DTYPES[recipe.train.precision].itemsize


def checkpoint_bytes(recipe: SLiMRecipe, joints: int) -> int:
    """Of student, teacher and two moments."""
    of_encoder, of_head = parameters(recipe, joints)
    return 4 * 4 * (of_encoder + 2 * of_head)
