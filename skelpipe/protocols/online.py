"""k-NN on held-out training subjects while a run trains; the test part is never read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from skelpipe.checkpoint import Run
from skelpipe.errors import UserError
from skelpipe.methods import Method
from skelpipe.protocols import knn
from skelpipe.protocols.features import default_kind, encode_by, extract, viewer
from skelpipe.protocols.metrics import accuracy
from skelpipe.protocols.question import labels
from skelpipe.protocols.settings import Knn, load_protocol
from skelpipe.shards.card import read_card
from skelpipe.stream.source import open_source, select


def online_knn(run: Run, data: Path, device: torch.device) -> Callable[[Method], dict[str, float]]:
    """What takes a method in training and returns {"knn": accuracy in per cent}.

    As `skelpipe evaluate --protocol knn --val-subjects` has it for the student: the gallery is what
    the run trains on, queries are the samples of its validation subjects in the training part. A
    resident set is read again through mapped files, so that the device holds it once.

    Args:
        run: Whose validation subjects and view.
        data: The prepared set.
        device: Where the method computes.

    Raises:
        UserError: The run holds out no subjects, or fewer samples are trained on than k.
    """
    held_out = run.data["val_subjects"]
    if not held_out:
        raise UserError(
            "k-NN during training needs subjects that are held out",
            expected="--val-subjects, such as --val-subjects 8,9",
            remedy="start the run with them, or without --knn-every; the test part is not for this",
        )
    protocol = load_protocol("knn")
    assert isinstance(protocol, Knn)
    recipe = run.recipe
    kind = "mapped" if recipe.train.source == "resident" else recipe.train.source
    gallery = open_source(data, select(data, "train", without=held_out), device, kind)
    query = open_source(data, select(data, "train", subjects=held_out), device, kind)
    knn.check_gallery(protocol.k, len(gallery))
    see = viewer(recipe, read_card(data).topology, protocol.centre)

    def validate(method: Method) -> dict[str, float]:
        training = method.training
        method.eval()
        student = encode_by(method.student.encoder, default_kind(recipe))
        query_ND, gallery_GD = (extract(source, [student], see)[0] for source in (query, gallery))
        method.train(training)
        label_G = labels(gallery)
        classes = int(label_G.max()) + 1
        place_Nk, _ = knn.retrieve(query_ND, gallery_GD, label_G, classes, protocol.k)
        found = knn.predict(label_G[place_Nk], classes)
        return {"knn": accuracy(found, labels(query))}

    return validate
