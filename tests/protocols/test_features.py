from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from builders import CPU, batch_of, mixed_samples, recording, write_set
from torch import Tensor
from torch.nn import functional as F

from skelpipe.errors import UserError
from skelpipe.models.vit import SkeletonViT
from skelpipe.protocols.features import (
    Kind,
    encode_by,
    extract,
    mean_over_bodies,
    raw_features,
    token_features,
    view,
)
from skelpipe.protocols.settings import RandomView
from skelpipe.random import fold
from skelpipe.stream.source import Mapped, Resident, select


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    folder = write_set(tmp_path_factory.mktemp("set") / "toy")
    return Resident(folder, select(folder, "train"), CPU)


def encoder() -> SkeletonViT:
    torch.manual_seed(0)
    return SkeletonViT(25, layers=1, dim=16, heads=2, mlp_ratio=2.0, patch_frames=4, registers=1,
                       rope_base=100.0).eval()  # fmt: skip


def features(source: Resident | Mapped, kind: Kind = "patch", chunk: int = 256) -> Tensor:
    encode = token_features(encoder(), kind)
    see = partial(view, frames=8, centre=0.95, absent_body="skip")
    return extract(source, [encode], see, chunk=chunk)[0]


def test_features_are_means_over_tokens_and_bodies(source: Resident) -> None:
    found = features(source)
    network = encoder()
    for place in range(len(source)):
        batch = source.take(torch.tensor([place]))
        x, sample_B = view(batch, 8, centre=0.95, absent_body="skip")
        assert len(sample_B) == int(batch.bodies_N[0])
        with torch.no_grad():
            of_body = [network(body[None]).patch_BSJD.mean((1, 2))[0] for body in x]
        assert torch.allclose(found[place], torch.stack(of_body).mean(0), atol=1e-5)


def test_both_joins_patch_and_class(source: Resident) -> None:
    both = features(source, "both")
    assert torch.allclose(both[:, :16], features(source, "patch"), atol=1e-6)
    assert torch.allclose(both[:, 16:], features(source, "class"), atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_features_do_not_depend_on_the_batch(source: Resident, chunk: int) -> None:
    assert torch.allclose(features(source, chunk=chunk), features(source), atol=1e-5)


def test_resident_and_mapped_sets_have_the_same_features(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "toy")
    table = select(folder, "test")
    assert torch.equal(features(Mapped(folder, table, CPU)), features(Resident(folder, table, CPU)))


def test_several_encoders_see_the_same_views(source: Resident) -> None:
    random = RandomView(shortest=2)
    see = partial(view, frames=8, centre=0.95, absent_body="skip", random=random)
    keys = fold(0, torch.arange(len(source)))
    one, two = extract(source, [raw_features, raw_features], see, key_N=keys)
    assert torch.equal(one, two)
    (again,) = extract(source, [raw_features], see, key_N=keys, chunk=5)
    assert torch.allclose(again, one, atol=1e-6)
    (other,) = extract(source, [raw_features], see, key_N=keys + 1)
    assert not torch.allclose(other, one, atol=1e-3)


def test_mean_over_bodies_weighs_each_body_alike() -> None:
    rows = torch.tensor([[2.0], [4.0], [9.0]])
    assert mean_over_bodies(rows, torch.tensor([0, 0, 1]), 2).tolist() == [[3.0], [9.0]]


def test_the_centre_view_takes_the_first_frame_of_each_bin() -> None:
    poses = recording(0, 100)
    x, _ = view(batch_of([poses]), 8, centre=0.95, absent_body="skip")
    wanted = poses[0, [2 + place * 96 // 8 for place in range(8)]]
    assert np.array_equal(x[0].numpy(), wanted)


def test_a_random_view_of_a_short_clip_is_the_whole_of_it() -> None:
    poses = recording(0, 40)
    random = RandomView(ratio=(0.5, 1.0), shortest=64, rotation=0.0)
    x, _ = view(batch_of([poses]), 64, centre=0.95, absent_body="skip", random=random)
    assert np.allclose(x[0, 0], poses[0, 0], atol=1e-6)
    assert np.allclose(x[0, -1], poses[0, -1], atol=1e-6)


def test_a_random_view_turns_bodies_of_a_sample_alike() -> None:
    poses = recording(0, 40)
    pair = np.concatenate([poses, poses])
    random = RandomView(ratio=(1.0, 1.0), shortest=2, rotation=0.3)
    x, _ = view(batch_of([pair]), 40, centre=0.95, absent_body="skip", random=random)
    assert torch.equal(x[0], x[1])
    joints = torch.from_numpy(poses[0, 0])
    assert torch.allclose(torch.cdist(x[0, 0], x[0, 0]), torch.cdist(joints, joints), atol=1e-4)
    assert not torch.allclose(x[0, 0], joints, atol=1e-3)


def test_absent_bodies_are_left_out_unless_asked_for() -> None:
    batch = batch_of(mixed_samples())
    counts = {}
    for absent_body in ("skip", "zeros", "copy"):
        x, sample_B = view(batch, 8, centre=0.95, absent_body=absent_body)  # type: ignore[arg-type]
        counts[absent_body] = torch.bincount(sample_B).tolist()
        assert len(x) == len(sample_B)
    assert counts["skip"] == [1, 2, 2, 2, 1, 1]
    assert counts["zeros"] == counts["copy"] == [2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("absent_body", ["zeros", "copy"])
def test_the_linear_view_is_mamps_loader(absent_body: Literal["zeros", "copy"]) -> None:
    """Persons in an array of zeros, the centre crop cut out, torch's own interpolation."""
    samples = mixed_samples()
    x, sample_B = view(
        batch_of(samples), 12, centre=0.95, absent_body=absent_body, resample="linear"
    )
    assert sample_B.tolist() == [sample for sample in range(6) for _ in range(2)]
    for sample, poses in enumerate(samples):
        people = np.zeros((2, *poses.shape[1:]), dtype=np.float32)
        people[: len(poses)] = poses
        if absent_body == "copy" and len(poses) == 1:
            people[1] = poses[0]
        frames = poses.shape[1]
        trim = frames * 5 // 200  # int((1 - 0.95) * L / 2)
        cut = torch.from_numpy(people[:, trim : frames - trim]).flatten(2)
        wanted = F.interpolate(cut.mT, size=12, mode="linear").mT.unflatten(2, (25, 3))
        assert torch.allclose(x[2 * sample : 2 * sample + 2], wanted, atol=1e-5), sample


def test_a_random_linear_view_interpolates_its_crop() -> None:
    poses = recording(0, 200)
    random = RandomView(ratio=(0.5, 0.5), shortest=64, rotation=0.0)
    x, _ = view(
        batch_of([poses]), 120, centre=0.95, absent_body="skip", resample="linear", random=random
    )
    crops = torch.stack([torch.from_numpy(poses[0, begin : begin + 100]) for begin in range(101)])
    resized = F.interpolate(crops.flatten(2).mT, size=120, mode="linear").mT.unflatten(2, (25, 3))
    near = [torch.allclose(x[0], wanted, atol=1e-5) for wanted in resized]
    assert sum(near) == 1


def test_a_transformer_without_class_token_has_patches_alone() -> None:
    network = SkeletonViT(25, layers=1, dim=6, heads=2, mlp_ratio=2.0, patch_frames=4, registers=0,
                          rope_base=100.0, class_token=False, positions="learned",
                          steps=2)  # fmt: skip
    assert encode_by(network, "patch")(torch.zeros(1, 8, 25, 3)).shape == (1, 6)
    with pytest.raises(UserError, match="no class token"):
        encode_by(network, "both")
