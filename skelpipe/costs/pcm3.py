"""What one training step of PCM3 must compute and move at least, and what it keeps in memory.

Letters: C channels of a frame, T frames, H features of one GRU, D = 2 H of a layer, K queue length.
"""

from __future__ import annotations

from dataclasses import dataclass

from skelpipe.config import PCM3Recipe
from skelpipe.costs.roofline import DTYPES, STORED, Work


@dataclass(frozen=True)
class Part:
    """A part of the student, for one sample.

    Attributes:
        macs: Multiply-adds of a pass forward.
        cells: Numbers that stand between products.
        weights: Numbers that the part holds.
        recurrent: How many of them act on the state of a GRU, and so in every frame.
    """

    macs: int
    cells: int
    weights: int
    recurrent: int = 0


def step_rows(recipe: PCM3Recipe, *, samples: int, joints: int) -> list[Work]:
    """The work of one step, piece by piece.

    Operations. A GRU takes 3 H (I + H) multiply-adds a frame, I being its inputs: the two of all
    layers 2.88 G for 64 frames under the paper's recipe. The student's passes are those of
    `passes`: forward and back, and back has two products for each one forward (the first layer's
    input too, for the prompts before it). The masked view goes back only if its error counts
    (``loss.mask_weight``) or it is drawn to the key: the predicted view is made of its detached
    features. The decoder goes forward and back for the masked error, and a second time for the
    predicted view, forward alone if that is detached. Keys go forward. A row of the queue's K
    similarities takes a product and one for its gradient; its key's, with which distillation
    compares it, takes one.

    Bytes, in the run's precision unless it says otherwise:

    - Encoder, decoder, projector: every tensor between two products is written once and read once;
      by the student's backward pass, or by the next product of the keys. Of a GRU 8 H a frame:
      three gates as its input gives them and as its state gives them, the state, and the state
      again for the layer that follows. Recurrent weights are read anew in every time step, T times
      forward and T times back, however small the batch; all others once forward and once back.
      Gradients are written in float32 in every pass.
    - Queue: a view's similarities are written and read, and so is their gradient; the keys' are
      written and read. The queue is read by every product.
    - Optimiser, float32: SGD reads weight, gradient and momentum, and writes weight and momentum;
      gradients are read for their norm if there is clipping. Key encoder: reads both networks and
      writes one.

    The views themselves, elementwise operations, batch norms and prompts among them, and what moves
    between ranks are left out.

    Args:
        recipe: What is run.
        samples: Samples of the step.
        joints: J.
    """
    loss, frames = recipe.loss, recipe.views.frames
    size, stored = DTYPES[recipe.train.precision].itemsize, STORED[recipe.train.precision]
    encoder, projector = encoder_part(recipe, joints), projector_part(recipe)
    decoder = decoder_part(recipe, joints)

    def work(what: str, part: Part, forward: int, back: int) -> Work:
        """Of so many passes."""
        reads = part.weights - part.recurrent + part.recurrent * frames
        return Work(
            what,
            2.0 * samples * part.macs * (forward + 2 * back),
            2.0 * size * samples * part.cells * forward
            + size * reads * (forward + back)
            + stored * part.weights * back,
        )

    rows = [work(f"encoder, {what}", encoder, 1, back) for what, back in passes(recipe).items()]
    views, keys = len(loss.positives), int(bool(loss.positives))
    rows += [
        work("encoder, keys", encoder, keys, 0),
        work("decoder", decoder, *decoder_passes(recipe)),
        work("projectors", projector, views + keys, views),
    ]
    products, similarities = 2 * views + teacher_rows(recipe), samples * loss.queue
    rows.append(
        Work(
            "queue",
            2.0 * similarities * loss.embedding * products,
            2.0 * size * similarities * products + size * loss.queue * loss.embedding * products,
        )
    )
    moves = 5 + int(recipe.optim.clip > 0)
    weights, of_keys = parameters(recipe, joints)
    rows.append(Work("optimiser", 0.0, float(moves * stored * weights)))
    rows.append(Work("key encoder's average", 0.0, 3.0 * stored * of_keys * keys))
    return [row for row in rows if row.flop or row.bytes]


def passes(recipe: PCM3Recipe) -> dict[str, int]:
    """The views that the student's encoder sees in a step; 1 if a gradient comes back, else 0."""
    loss, positives = recipe.loss, recipe.loss.positives
    found = {}
    if "intra" in positives:
        found["intra view"] = 1
    if loss.mask_weight or "mask" in positives or "predict" in positives:
        found["masked view"] = int(loss.mask_weight > 0 or "mask" in positives)
    if "predict" in positives:
        found["predicted view"] = 1
    if "inter" in positives:
        found["mixed view"] = 1
    return found


def decoder_passes(recipe: PCM3Recipe) -> tuple[int, int]:
    """Passes of the decoder forward, and back."""
    error, predict = recipe.loss.mask_weight > 0, "predict" in recipe.loss.positives
    return error + predict, error + (predict and not recipe.loss.detach_predicted)


def teacher_rows(recipe: PCM3Recipe) -> int:
    """Rows of similarities of a sample's keys: one for each positive that is distilled."""
    return len(recipe.loss.positives) if recipe.loss.kl_weight else 0


def channels(recipe: PCM3Recipe, joints: int) -> int:
    """C: coordinates of all bodies."""
    return 3 * joints * recipe.views.bodies


def encoder_part(recipe: PCM3Recipe, joints: int) -> Part:
    """Two GRUs a layer, on T frames; the input's batch norm."""
    count, hidden, layers = channels(recipe, joints), recipe.encoder.hidden, recipe.encoder.layers
    widths = [count] + [2 * hidden] * (layers - 1)
    products = sum(2 * 3 * hidden * (width + hidden) for width in widths)
    return Part(
        macs=recipe.views.frames * products,
        cells=recipe.views.frames * (count + layers * 2 * 8 * hidden),
        weights=products + layers * 2 * 6 * hidden + 2 * count,
        recurrent=layers * 2 * 3 * hidden * hidden,
    )


def projector_part(recipe: PCM3Recipe) -> Part:
    """Two layers, on the features of a clip."""
    dim, out = 2 * recipe.encoder.hidden, recipe.loss.embedding
    products = dim * dim + dim * out
    return Part(macs=products, cells=3 * dim + out, weights=products + dim + out)


def decoder_part(recipe: PCM3Recipe, joints: int) -> Part:
    """Two layers with a batch norm, GRUs, and a layer to the channels, on T frames."""
    count, dim = channels(recipe, joints), 2 * recipe.encoder.hidden
    hidden, layers = recipe.decoder.hidden, recipe.decoder.layers
    products = (dim + hidden + count) * hidden + layers * 6 * hidden * hidden
    return Part(
        macs=recipe.views.frames * products,
        cells=recipe.views.frames * (dim + (4 + 8 * layers) * hidden + count),
        weights=products + (4 + 6 * layers) * hidden + count,
        recurrent=layers * 3 * hidden * hidden,
    )


def prompt_weights(recipe: PCM3Recipe, joints: int) -> int:
    """Four domain prompts of C, two task prompts of twice the width."""
    prompts = recipe.prompts
    domain = 4 * channels(recipe, joints) if prompts.domain != "none" else 0
    return domain + (4 * prompts.width if prompts.task else 0)


def parameters(recipe: PCM3Recipe, joints: int) -> tuple[int, int]:
    """Numbers that the student holds, and that the key encoder with its projector holds."""
    of_keys = encoder_part(recipe, joints).weights + projector_part(recipe).weights
    rest = decoder_part(recipe, joints).weights + prompt_weights(recipe, joints)
    return of_keys + rest, of_keys


def fixed_memory(recipe: PCM3Recipe, joints: int) -> float:
    """Bytes whatever the batch: weights, momentum, gradients and their sum over ranks, queue."""
    student, of_keys = parameters(recipe, joints)
    queue = recipe.loss.queue * recipe.loss.embedding
    return STORED[recipe.train.precision] * (4 * student + of_keys + queue)


def sample_memory(recipe: PCM3Recipe, joints: int) -> float:
    """Bytes that one sample's forward pass keeps for its backward pass.

    That of one view, as each is followed by its backward pass: encoder, projector, and the decoder
    where one learns. Of its similarities to the queue, float32 at least, six numbers are kept:
    divided by either temperature, what both softmaxes give, and the same of its key.
    """
    cells = encoder_part(recipe, joints).cells + projector_part(recipe).cells
    cells += decoder_part(recipe, joints).cells * (decoder_passes(recipe)[1] > 0)
    similarities = 6 * recipe.loss.queue if recipe.loss.positives else 0
    precision = recipe.train.precision
    return 1.2 * (cells * DTYPES[precision].itemsize + similarities * STORED[precision])


def checkpoint_bytes(recipe: PCM3Recipe, joints: int) -> int:
    """Of student and momentum, key encoder and queue."""
    student, of_keys = parameters(recipe, joints)
    return 4 * (2 * student + of_keys + recipe.loss.queue * recipe.loss.embedding)
