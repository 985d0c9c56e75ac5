from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import skelpipe
from skelpipe.config import (
    RECIPE,
    PCM3Recipe,
    SLiMRecipe,
    apply_changes,
    build_recipe,
    load_recipe,
    setting_names,
)
from skelpipe.errors import UserError
from skelpipe.manifest import manifest_names
from skelpipe.models.decoder import MotionDecoder
from skelpipe.models.gru import SkeletonGRU
from skelpipe.models.heads import PrototypeHead
from skelpipe.models.vit import SkeletonViT
from skelpipe.optim import dropped_rate
from skelpipe.protocols.settings import load_protocol
from skelpipe.views.augment import skeleton_aware

PACKAGE = Path(skelpipe.__file__).parent
# Sections handed over whole, and who must take each of their settings by name.
HANDED_OVER: list[tuple[str, Callable[..., Any]]] = [
    ("augment", skeleton_aware),
    ("encoder", SkeletonViT.__init__),
    ("encoder", SkeletonGRU.__init__),
    ("decoder", MotionDecoder.__init__),
    ("head", PrototypeHead.__init__),
]


@pytest.mark.parametrize("name", manifest_names("recipe"))
def test_packaged_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert RECIPE.validate_json(recipe.model_dump_json()) == recipe
    assert recipe.readings()


@pytest.mark.parametrize("name", manifest_names("protocol"))
def test_packaged_protocols_load(name: str) -> None:
    assert load_protocol(name).name == name


def test_the_slim_recipe_has_the_papers_numbers() -> None:
    recipe = load_recipe("slim")
    assert recipe.train.batch == 768
    assert recipe.train.epochs == 150
    assert (recipe.optim.lr, recipe.optim.min_lr) == (2e-4, 1e-6)
    assert recipe.optim.momentum == (0.994, 1.0)
    assert recipe.optim.warmup == pytest.approx(20 / 150)
    assert recipe.loss.teacher_warmup == pytest.approx(30 / 150)
    assert recipe.loss.teacher_temperature == (0.04, 0.07)
    assert recipe.loss.student_temperature == 0.1
    assert (recipe.loss.koleo_weight, recipe.loss.contrast_weight) == (0.1, 1.0)
    encoder = recipe.encoder
    assert (encoder.layers, encoder.dim, encoder.heads) == (8, 256, 8)
    assert (encoder.patch_frames, encoder.registers, encoder.mlp_ratio) == (8, 4, 4.0)
    head = recipe.head
    assert (head.hidden, head.bottleneck, head.prototypes) == (2048, 256, 65536)
    assert [(v.frames, v.ratio) for v in recipe.views.local] == [
        (32, (0.35, 0.7)),
        (16, (0.15, 0.4)),
        (8, (0.05, 0.2)),
    ]
    assert (recipe.views.frames, recipe.views.ratio) == (64, (0.5, 1.0))
    assert (recipe.views.crops, recipe.views.anchors, recipe.views.shortest) == (2, 2, 2)
    assert (recipe.mask.ratio, recipe.mask.min_area, recipe.mask.max_area) == ((0.5, 0.9), 8, 0.5)
    assert recipe.augment.scale == (0.85, 1.15)
    assert (recipe.augment.vertical, recipe.augment.tilt) == (180, 30)
    assert load_recipe("slim").model_dump(exclude={"title"}) == SLiMRecipe(name="slim").model_dump(
        exclude={"title"}
    )


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ("optim.lrr=1", "optim.lr"),
        ("train.epoch=5", "train.epochs"),
        ("encoder.layer=2", "encoder.layers"),
        ("view.frames=8", "views."),
        ("optimm=1", "optim"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(change: str, nearest: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("slim-tiny", [change])
    assert change.partition("=")[0].partition(".")[0] in str(error.value)
    assert nearest in str(error.value)


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="'slim-tiny'"):
        load_recipe("slim-tyni")
    with pytest.raises(UserError, match="no recipe but a dataset"):
        load_recipe("ntu60")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("train.epochs=many", "train.epochs"),
        ("train.epochs=0", "train.epochs"),
        ("train.batch=2.5", "train.batch"),
        ("views.ratio=[0.5]", "views.ratio"),
        ("views.absent_body=half", "views.absent_body"),
        ("mask.max_area=1.5", "mask.max_area"),
        ("views.local=[{frames = 8}]", "views.local.0.ratio"),
        ("encoder=5", "encoder"),
    ],
)
def test_a_value_that_does_not_fit_names_its_key(change: str, key: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("slim-tiny", [change])
    assert f"place: {key}" in str(error.value)


def test_views_must_divide_into_patches() -> None:
    with pytest.raises(UserError, match="views of 30 frames"):
        load_recipe("slim", ["views.frames=30"])


@pytest.mark.parametrize(
    ("change", "section", "key", "value"),
    [
        ("train.epochs=20", "train", "epochs", 20),
        (" optim.lr = 1e-3 ", "optim", "lr", 1e-3),
        ("views.absent_body=copy", "views", "absent_body", "copy"),
        ('views.absent_body="copy"', "views", "absent_body", "copy"),
        ("mask.overshoot=true", "mask", "overshoot", True),
        ("optim.momentum=[0.99, 1.0]", "optim", "momentum", (0.99, 1.0)),
    ],
)
def test_changes_are_toml_or_plain_words(
    change: str, section: str, key: str, value: object
) -> None:
    recipe = load_recipe("slim-tiny", [change])
    assert getattr(getattr(recipe, section), key) == value


@pytest.mark.parametrize("change", ["train.epochs", "=5", "", "name.first=1"])
def test_what_is_no_setting_is_refused(change: str) -> None:
    with pytest.raises(UserError, match="is no setting"):
        load_recipe("slim-tiny", [change])


def test_changes_leave_the_table_alone() -> None:
    table = {"train": {"epochs": 1}}
    assert apply_changes(table, ["train.epochs=2"]) == {"train": {"epochs": 2}}
    assert table == {"train": {"epochs": 1}}


def test_a_later_change_wins() -> None:
    assert load_recipe("slim-tiny", ["train.epochs=2", "train.epochs=3"]).train.epochs == 3


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepochs = 3\n", encoding="utf-8")
    recipe = load_recipe(str(path), ["train.batch=5"])
    assert (recipe.name, recipe.train.epochs, recipe.train.batch) == ("mine", 3, 5)


@pytest.mark.parametrize("content", [b"epochs = ", b"\xff\xfe", None])
def test_a_recipe_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"mine\.toml"):
        load_recipe(str(path))


def write_recipes(folder: Path, **texts: str) -> dict[str, str]:
    """Recipe files by name; returns their paths."""
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return {name: str(folder / f"{name}.toml") for name in texts}


def test_a_recipe_stands_on_its_base_and_changes_stand_on_both(tmp_path: Path) -> None:
    paths = write_recipes(
        tmp_path,
        low='base = "slim-tiny"\ntitle = "Low"\n[train]\nepochs = 7\nbatch = 9\n'
        "[views]\nlocal = [{ frames = 24, ratio = [0.1, 0.2] }]\n",
        high='base = "low.toml"\n[train]\nepochs = 5\n[encoder]\nlayers = 1\n',
    )
    tiny, recipe = load_recipe("slim-tiny"), load_recipe(paths["high"], ["encoder.layers=3"])
    assert (recipe.name, recipe.title) == ("high", "")  # each recipe's own
    assert (recipe.train.epochs, recipe.train.batch) == (5, 9)  # merged key by key
    assert [local.frames for local in recipe.views.local] == [24]  # lists are replaced whole
    assert recipe.encoder.layers == 3
    assert recipe.encoder.dim == tiny.encoder.dim != SLiMRecipe(name="x").encoder.dim
    assert recipe.optim == tiny.optim
    assert "base" not in recipe.model_dump()  # what a run stores is resolved


def test_another_base_may_stand_in(tmp_path: Path) -> None:
    paths = write_recipes(tmp_path, mine='base = "slim"\n[loss]\nmask_weight = 0.5\n')
    recipe = load_recipe(paths["mine"], base="slim-tiny")
    expected = load_recipe("slim-tiny", ["loss.mask_weight=0.5", "name=mine"])
    assert recipe == expected.model_copy(update={"title": ""})
    assert load_recipe(paths["mine"]).encoder == load_recipe("slim").encoder


def test_a_wrong_base_is_named(tmp_path: Path) -> None:
    paths = write_recipes(
        tmp_path,
        unknown='base = "slim-tyni"\n',
        data='base = "ntu60"\n',
        number="base = 5\n",
        missing='base = "nowhere.toml"\n',
        itself='base = "itself.toml"\n',
        one=f'base = "../{tmp_path.name}/two.toml"\n',
        two='base = "three.toml"\n',
        three='base = "one.toml"\n',
        wrong='base = "slim-tiny"\n[train]\nepoch = 3\n',
        scalar='base = "slim-tiny"\ntrain = 3\n',
    )
    for name, said in {
        "unknown": "unknown base 'slim-tyni'(.|\n)*did you mean 'slim-tiny'",
        "data": "unknown base 'ntu60'",
        "number": "is no name",
        "missing": r"nowhere\.toml",
        "itself": r"stands on itself(.|\n)*itself\.toml on .*itself\.toml",
        "one": r"stands on itself(.|\n)*one\.toml on .*two\.toml on .*three\.toml on .*one\.toml",
        "wrong": "did you mean 'train.epochs'",
        "scalar": "place: train",
    }.items():
        with pytest.raises(UserError, match=said):
            load_recipe(paths[name])
    with pytest.raises(UserError, match="has no setting 'base'"):
        load_recipe("slim-tiny", ["base=slim"])


def test_build_names_what_it_builds() -> None:
    with pytest.raises(UserError, match="recipe 'x'"):
        build_recipe({"name": "x", "trian": {}}, what="recipe 'x'")


def sections() -> dict[str, set[str]]:
    """Section -> its settings; "" has those of the recipe itself."""
    found: dict[str, set[str]] = {"local": {"frames", "ratio"}}
    for name in (*setting_names(SLiMRecipe), *setting_names(PCM3Recipe)):
        section, _, key = name.rpartition(".")
        found.setdefault(section, set()).add(key)
    return found


def last_name(node: ast.AST) -> str:
    """The last word of ``a.b.c`` or of ``c``; nothing for other expressions."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def bindings(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(target, value) of assignments, loops and comprehensions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                yield from pairs
        elif isinstance(node, ast.For | ast.comprehension):
            value = node.iter.body if isinstance(node.iter, ast.IfExp) else node.iter
            yield node.target, value


def settings_read(tree: ast.AST) -> set[tuple[str, str]]:
    """(section, key) of every ``….section.key``, also through a name bound to the section."""
    known, found = sections(), set()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for scope in (tree, *functions):
        alias = {
            last_name(target): last_name(value)
            for target, value in bindings(scope)
            if isinstance(target, ast.Name) and last_name(value) in known
        }
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute):
                owner = last_name(node.value)
                owner = alias.get(owner, owner)
                found.add(("" if owner == "recipe" else owner, node.attr))
    return found


def test_a_recipe_without_a_loss_is_refused() -> None:
    none = [f"loss.{name}_weight=0.0" for name in ("mask", "contrast", "koleo")]
    with pytest.raises(UserError, match="setting of recipe 'slim' does not fit") as error:
        load_recipe("slim", none)
    assert "there is nothing to learn" in str(error.value)


def test_without_a_class_token_there_is_nothing_to_contrast() -> None:
    with pytest.raises(UserError, match=r"encoder\.class_token false(.|\n)*must both be 0"):
        load_recipe("slim", ["encoder.class_token=false"])
    weights = ["loss.contrast_weight=0", "loss.koleo_weight=0"]
    assert load_recipe("slim", ["encoder.class_token=false", *weights])
    odd = ["encoder.dim=20", "encoder.heads=4"]
    with pytest.raises(UserError, match="RoPE turns"):
        load_recipe("slim", odd)
    assert load_recipe("slim", [*odd, "encoder.positions=learned"])
    with pytest.raises(UserError, match=r"no multiple of encoder\.heads 3"):
        load_recipe("slim", ["encoder.dim=20", "encoder.heads=3", "encoder.positions=learned"])


def test_every_setting_is_read_somewhere() -> None:
    files = [
        path
        for folder in (PACKAGE, PACKAGE.parent / "cli")
        for path in folder.rglob("*.py")
        if path.parent.name != "config"
    ]
    read = set().union(
        *(settings_read(ast.parse(path.read_text(encoding="utf-8"))) for path in files)
    )
    for section, taker in HANDED_OVER:
        names = set(inspect.signature(taker).parameters)
        code = ast.parse(inspect.getsource(inspect.getmodule(taker)))  # type: ignore[arg-type]
        used = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
        read |= {(section, name) for name in names & used}
    wanted = {(section, key) for section, keys in sections().items() for key in keys}
    wanted -= {("", "kind")}  # read by whoever looks for a manifest of a kind
    assert wanted - read == set()


def test_every_setting_has_a_default() -> None:
    recipe = SLiMRecipe(name="plain")
    assert recipe.views.frames % recipe.encoder.patch_frames == 0
    assert PCM3Recipe(name="plain").pipeline == "agcn"


def test_the_pcm3_recipe_has_the_papers_numbers() -> None:
    recipe = load_recipe("pcm3")
    assert isinstance(recipe, PCM3Recipe)
    assert (recipe.train.epochs, recipe.train.batch, recipe.pipeline) == (450, 128, "agcn")
    optim, loss = recipe.optim, recipe.loss
    assert (optim.lr, optim.momentum, optim.weight_decay) == (0.02, 0.9, 1e-4)
    assert (optim.drop_after, optim.drop_to) == (350 / 450, 0.1)
    assert dropped_rate(recipe, 350 / 450) == pytest.approx(0.002)
    assert dropped_rate(recipe, 349.99 / 450) == 0.02
    assert (loss.queue, loss.temperature, loss.embedding) == (16384, 0.07, 128)
    assert (loss.teacher_temperature, loss.student_temperature) == (0.05, 0.1)
    assert (loss.mask_weight, loss.kl_weight) == (40.0, 1.0)
    assert (recipe.encoder.layers, recipe.encoder.hidden) == (3, 1024)
    assert (recipe.decoder.layers, recipe.decoder.hidden) == (2, 512)
    assert (recipe.prompts.width, recipe.mask.ratio) == (128, 0.6)
    hidden = {"name", "title"}
    assert recipe.model_dump(exclude=hidden) == PCM3Recipe(name="x").model_dump(exclude=hidden)


@pytest.mark.parametrize("stream", ["bone", "motion"])
def test_the_other_streams_differ_as_released(stream: str) -> None:
    joint, other = load_recipe("pcm3").model_dump(), load_recipe(f"pcm3-{stream}").model_dump()
    joint["views"]["modality"] = stream
    joint["prompts"] |= {"domain": "none", "task": False}
    joint["loss"] |= {"kl_weight": 0.0, "detach_predicted": True}
    names = {"name": other["name"], "title": other["title"]}
    assert joint | names == other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("loss.queue=100", "queue .loss.queue. of 100 does not hold the keys of a batch of 128"),
        ("train.batch=2", "mixing needs a batch of three at least, not 2"),
        ("train.micro_batch=32", "its batch norms take their statistics of the whole batch"),
        ("train.compile=true", "a GRU gains nothing by it"),
        ("mask.clips=7", "views of 64 frames do not divide into mask.clips 7"),
        ("mix.length=[7, 17]", "does not fit mix.steps"),
        ("mix.parts=[3, 2]", "the smaller one first"),
        ("mix.cut=0.9", "a sum of at most 1"),
        ("prompts.width=2000", "larger than encoder.hidden 1024"),
        ("loss.positives=['mask', 'mask']", "names a view twice"),
        ("optim.momentum=0.0", "greater than 0"),
        ("loss.positives=['masks']", "'intra', 'inter', 'mask' or 'predict'"),
        ("head.prototypes=4", "has no setting 'head.prototypes'"),
        ("method=slimm", "unknown method 'slimm'"),
    ],
)
def test_what_pcm3_cannot_run_is_refused(change: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe("pcm3", [change])
